"""The rules between the tensors of an official PyTorch checkpoint and our parameters: names and layouts, both ways.

Each kind of model in `interop/` writes a list of `Rule`s with every index spelled out; this module applies them.
Nothing is computed: importing and then exporting returns the same tensors, bit for bit. Parameters are nested dicts of
NumPy arrays with unrolled blocks (`blocks_0`, `blocks_1`, ...); `stack_blocks` and `unstack_blocks` go to and from the
scanned form. Rules name a parameter by its path, `"blocks_0/attention/qkv/kernel"`.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax.core import meta
from flax.traverse_util import flatten_dict, unflatten_dict

from rae_jax.spelling import nearest

Tensors = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How arrays are laid out in an official checkpoint and here; the two functions are inverse to each other.

    Attributes:
      to_flax: one argument for each official tensor of the rule; returns our array, or a tuple of them.
      to_torch: one argument for each parameter of ours; returns the official tensor, or a tuple of them.
    """

    to_flax: Callable[..., Any]
    to_torch: Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Rule:
    """Official tensor (or tensors) `official` holds our parameter (or parameters) `ours`, up to `layout`."""

    official: str | tuple[str, ...]
    ours: str | tuple[str, ...]
    layout: Layout


IDENTITY = Layout(lambda w: w, lambda w: w)

# Linear [out, in] <-> Dense kernel [in, out].
LINEAR = Layout(lambda w: w.transpose(1, 0), lambda w: w.transpose(1, 0))

# Convolution [out, in, ...] <-> [..., in, out] in any number of spatial dimensions.
CONV = Layout(
    lambda w: w.transpose(*range(2, w.ndim), 1, 0),
    lambda w: w.transpose(w.ndim - 1, w.ndim - 2, *range(w.ndim - 2)),
)

# Rotary embedding pairs channels (2i, 2i + 1) of the first axis <-> pairs (i, i + E/2).
ROTARY = Layout(
    lambda w: w.reshape(-1, 2, *w.shape[1:]).swapaxes(0, 1).reshape(w.shape),
    lambda w: w.reshape(2, -1, *w.shape[1:]).swapaxes(0, 1).reshape(w.shape),
)


def to_heads(num_heads: int, parts: int = 3, rotary: bool = False) -> Layout:
    """Queries', keys' and values' linear layers: weights `[K * E, D]` <-> one kernel `[K * parts * E, D]`; biases too.

    Biases `[K * E]` <-> one bias `[K, parts, E]`; of two parts, queries' and values', where keys have none. With
    `rotary` queries and keys have their channels in `ROTARY`'s order.
    """

    def turned(w: np.ndarray, part: int, turn: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        return np.stack([turn(head) for head in w]) if rotary and part < parts - 1 else w

    def to_flax(*official: np.ndarray) -> np.ndarray:
        heads = [w.reshape(num_heads, -1, *w.shape[1:]) for w in official]  # [K, E, D] or [K, E]
        ours = np.stack([turned(w, i, ROTARY.to_flax) for i, w in enumerate(heads)], axis=1)
        return ours.reshape(-1, ours.shape[-1]) if ours.ndim == 4 else ours

    def to_torch(ours: np.ndarray) -> tuple[np.ndarray, ...]:
        if ours.ndim == 2:
            ours = ours.reshape(num_heads, parts, -1, ours.shape[1])
        heads = [turned(ours[:, i], i, ROTARY.to_torch) for i in range(parts)]
        return tuple(w.reshape(-1, *w.shape[2:]) for w in heads)

    return Layout(to_flax, to_torch)


def stacked(layout: Layout, parts: int = 3) -> Layout:
    """`layout` of `parts` official tensors where the checkpoint has them one below the other, as one."""
    return Layout(
        lambda w: layout.to_flax(*np.split(w, parts, axis=0)),
        lambda ours: np.concatenate(layout.to_torch(ours), axis=0),
    )


def fused(*layouts: Layout) -> Layout:
    """One official tensor whose rows are equal parts, each a parameter of ours in its own layout (gate and up)."""

    def split(w: np.ndarray) -> tuple[np.ndarray, ...]:
        parts = np.split(w, len(layouts), axis=0)
        return tuple(layout.to_flax(part) for layout, part in zip(layouts, parts, strict=True))

    def join(*parts: np.ndarray) -> np.ndarray:
        return np.concatenate([layout.to_torch(part) for layout, part in zip(layouts, parts, strict=True)], axis=0)

    return Layout(split, join)


def patch_embedding(patch_size: int) -> Layout:
    """Convolution `[D, C, p, p]` with stride p <-> Dense kernel `[p * p * C, D]` on patches flattened as (p, p, C)."""

    def to_torch(w: np.ndarray) -> np.ndarray:
        return w.reshape(patch_size, patch_size, -1, w.shape[1]).transpose(3, 2, 0, 1)

    return Layout(lambda w: w.transpose(2, 3, 1, 0).reshape(-1, w.shape[0]), to_torch)


def without_leading(axes: int) -> Layout:
    """`[1, ..., 1, *shape]` with `axes` leading ones <-> `[*shape]`."""
    leading = tuple(range(axes))
    return Layout(lambda w: w.squeeze(leading), lambda w: np.expand_dims(w, leading))


def moved(tensors: Mapping[str, np.ndarray], name: str, fixed: np.ndarray, tolerance: float) -> bool:
    """Whether the table `name` of a file has the shape of the `fixed` one and other values: it has been trained."""
    table = np.asarray(tensors[name], np.float32)
    return table.shape == fixed.shape and not np.allclose(table, fixed, atol=tolerance)


def import_params(
    tensors: Mapping[str, np.ndarray],
    rules: Iterable[Rule],
    carried: Iterable[str] = (),
    like: Any = None,
) -> tuple[dict[str, Any], Tensors]:
    """Our parameters from the tensors of an official checkpoint.

    Args:
      tensors: every tensor of the checkpoint by its official name; dtypes are kept.
      rules: the kind's rules.
      carried: regular expressions; tensors whose whole name matches one are not parameters of ours (fixed tables,
        unused heads) and are handed back as they are, so that an export can return the same file.
      like: the module's own parameter tree, arrays or shapes (`jax.eval_shape` of its `init`); when given, the result
        has this structure and these shapes.

    Returns:
      `(params, carried tensors)`.

    Raises:
      ValueError: listing every missing, unexpected and misshapen tensor.
    """
    rules = list(rules)
    carried_tensors = {name: np.asarray(w) for name, w in tensors.items() if _matches(name, carried)}
    tensors = {name: np.asarray(w) for name, w in tensors.items() if name not in carried_tensors}
    params, problems = _convert(tensors, [(r.official, r.ours, r.layout.to_flax) for r in rules])
    if like is not None:
        problems += _differences(params, flatten(like), {ours: rule for rule in rules for ours in _names(rule.ours)})
    _raise_if_any(problems, "the checkpoint does not fit this model")
    return unflatten_dict(params, sep="/"), carried_tensors


def export_params(params: Any, rules: Iterable[Rule], carried: Mapping[str, np.ndarray] | None = None) -> Tensors:
    """The tensors of an official checkpoint from our parameters: the inverse of `import_params`.

    Raises:
      ValueError: listing every parameter that is missing, has no rule, or cannot be laid out.
    """
    ours = {path: np.asarray(w) for path, w in flatten(params).items()}
    tensors, problems = _convert(ours, [(r.ours, r.official, r.layout.to_torch) for r in rules])
    _raise_if_any(problems, "the parameters do not fit the official layout")
    tensors |= carried or {}
    # One at a time: a joined tensor is laid out anew, and not kept twice.
    return {name: np.asarray(tensors.pop(name), order="C") for name in list(tensors)}


def flatten(params: Any) -> dict[str, Any]:
    """A nested parameter dict by path, `{"a/b": leaf}`; boxes with logical axis names are opened."""
    return flatten_dict(meta.unbox(params), sep="/")


def stack_blocks(params: Mapping[str, Any], structure: Mapping[str, Any]) -> dict[str, Any]:
    """`params` with the unrolled blocks stacked wherever `structure`, the parameters of a scanning module, has them so.

    `blocks_0`, `blocks_1`, ... become `blocks`, every leaf with a leading axis over the blocks; likewise any other name
    of `structure`, at any depth. The inverse of `unstack_blocks`.
    """
    stacked = dict(params)
    for name, value in structure.items():
        if name not in params and f"{name}_0" in params:
            members = [key for key in params if re.fullmatch(rf"{re.escape(name)}_\d+", key)]
            blocks = [stacked.pop(key) for key in sorted(members, key=lambda key: int(key.rsplit("_", 1)[1]))]
            stacked[name] = jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)
        elif isinstance(value, Mapping) and isinstance(params.get(name), Mapping):
            stacked[name] = stack_blocks(params[name], value)
    return stacked


def unstack_blocks(params: Mapping[str, Any]) -> dict[str, Any]:
    """`params` with every scanned stack (`blocks`, `head_blocks`, ...) as `blocks_0`, `blocks_1`, ..., at any depth."""
    unstacked = {}
    for name, value in params.items():
        if not isinstance(value, Mapping):
            unstacked[name] = value
        elif name == "blocks" or name.endswith("_blocks"):
            stack = jax.tree.map(np.asarray, value)
            depth = len(jax.tree.leaves(stack)[0])
            unstacked |= {f"{name}_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], stack) for i in range(depth)}
        else:
            unstacked[name] = unstack_blocks(value)
    return unstacked


def under(tensors: Mapping[str, np.ndarray], prefix: str) -> Tensors:
    """The tensors whose name starts with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def affine(official: str, ours: str, weight: Layout | None = None) -> list[Rule]:
    """Weight and bias: of a norm, or with a layout for the weight of a linear layer or a convolution."""
    kernel = Rule(f"{official}.weight", f"{ours}/{'kernel' if weight else 'scale'}", weight or IDENTITY)
    return [kernel, Rule(f"{official}.bias", f"{ours}/bias", IDENTITY)]


def prefixed(rules: list[Rule], official: str, ours: str) -> list[Rule]:
    """The rules with a prefix before every official name and every path of ours."""

    def add(prefix: str, names: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return prefix + names if isinstance(names, str) else tuple(prefix + name for name in names)

    return [Rule(add(official, rule.official), add(ours, rule.ours), rule.layout) for rule in rules]


def require(tensors: Mapping[str, Any], *names: str) -> None:
    """Raises a KeyError for the first of `names`, without which the architecture cannot be told, that is not there."""
    for name in names:
        if name not in tensors:
            raise KeyError(name)


def count_blocks(names: Iterable[str], block: str) -> int:
    """How many blocks there are, from the highest number in names that begin with `block`, as `"encoder.layer.{}."`."""
    pattern = re.compile(re.escape(block).replace(r"\{\}", r"(\d+)"))
    return max((int(found[1]) + 1 for name in names if (found := pattern.match(name))), default=0)


def _names(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _convert(arrays: Tensors, conversions: list[tuple[Any, Any, Callable[..., Any]]]) -> tuple[Tensors, list[str]]:
    """`arrays` through `(sources, targets, function)` conversions, and what did not fit."""
    converted: Tensors = {}
    missing, misshapen = [], []
    used = set()
    for sources, targets, function in conversions:
        sources, targets = _names(sources), _names(targets)
        used.update(sources)
        absent = [name for name in sources if name not in arrays]
        missing += absent
        if absent:
            continue
        try:
            results = function(*(arrays[name] for name in sources))
        except (ValueError, IndexError):  # the array has too few axes, or one that does not divide
            misshapen += [f"misshapen  {name}: {arrays[name].shape}" for name in sources]
            continue
        results = results if isinstance(results, tuple) else (results,)
        converted.update(zip(targets, results, strict=True))
    unexpected = [name for name in arrays if name not in used]
    # Where hundreds of names differ, a few hints show what is wrong, and finding all of them would take minutes.
    hinted = {*missing[:20], *unexpected[:20]}
    hint = {name: nearest(name, unexpected if name in missing else missing) for name in hinted}
    return converted, [
        *(f"missing    {name}{hint.get(name, '')}" for name in missing),
        *(f"unexpected {name} {arrays[name].shape}{hint.get(name, '')}" for name in unexpected),
        *misshapen,
    ]


def _differences(params: Tensors, like: dict[str, Any], rules: dict[str, Rule]) -> list[str]:
    """Where `params` differs from the module's parameters `like` in names or shapes."""
    problems = []
    for path in like.keys() - rules.keys():
        problems.append(f"no rule for parameter {path} {like[path].shape}{nearest(path, rules)}")
    for path, w in params.items():
        official = "" if path not in rules else f" (from {', '.join(_names(rules[path].official))})"
        if path not in like:
            problems.append(f"unexpected {path} {w.shape}{official}{nearest(path, like)}")
        elif w.shape != like[path].shape:
            problems.append(f"misshapen  {path}: {w.shape}, the model has {like[path].shape}{official}")
    return sorted(problems)


def _raise_if_any(problems: list[str], what: str) -> None:
    if problems:
        raise ValueError(f"{what}; {len(problems)} problems:\n  " + "\n  ".join(problems))
