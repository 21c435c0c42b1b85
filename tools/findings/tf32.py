"""TF32 emulated: products of matrices whose factors have 10 mantissa bits, as GPUs round float32 where they may."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

EXPONENT_BITS, MANTISSA_BITS = 8, 10
PRODUCTS = ("dot_general", "ragged_dot_general", "conv_general_dilated")
# Operations that do no more than evaluate the function that they hold. What they say of its derivative is left out: it
# is that of the function itself.
CALLS = ("jit", "pjit", "closed_call", "checkpoint", "custom_jvp_call", "custom_vjp_call")


def with_rounded_factors(function: Callable[..., Any], mantissa_bits: int = MANTISSA_BITS) -> Callable[..., Any]:
    """`function` with the factors of every matrix product rounded to nearest; sums stay float32.

    With 23 bits, which float32 has, it is `function` itself.

    Raises:
      ValueError: when called, a product that is no `dot_general`, or inside an operation that is not in `CALLS`.
    """

    def rounded(*arguments: Any) -> Any:
        jaxpr, out = jax.make_jaxpr(function, return_shape=True)(*arguments)
        values = _evaluate(jaxpr, jax.tree.leaves(arguments), mantissa_bits)
        return jax.tree.unflatten(jax.tree.structure(out), values)

    return rounded


def _evaluate(closed: ClosedJaxpr, arguments: Sequence[Any], bits: int) -> list[Any]:
    jaxpr = closed.jaxpr
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *arguments], strict=True))

    def read(x: Any) -> Any:
        return x.val if isinstance(x, Literal) else values[x]

    for equation in jaxpr.eqns:
        given, name, inner = [read(x) for x in equation.invars], equation.primitive.name, _inside(equation.params)
        if name in CALLS:
            (called,) = inner
            out = _evaluate(called if isinstance(called, ClosedJaxpr) else ClosedJaxpr(called, ()), given, bits)
        elif name in PRODUCTS[1:] or any(map(_has_product, inner)):
            raise ValueError(f"the products of {name!r} cannot be rounded: there is no rule for it in {__name__}")
        else:
            if name == "dot_general":
                given = [jax.lax.reduce_precision(x, EXPONENT_BITS, bits) for x in given]
            out = equation.primitive.bind(*given, **equation.params)
            out = out if equation.primitive.multiple_results else [out]
        values |= zip(equation.outvars, out, strict=True)
    return [read(x) for x in jaxpr.outvars]


def _inside(parameters: dict[str, Any]) -> list[ClosedJaxpr | Jaxpr]:
    """The functions that an operation holds."""
    return [x for x in jax.tree.leaves(parameters) if isinstance(x, ClosedJaxpr | Jaxpr)]


def _has_product(jaxpr: ClosedJaxpr | Jaxpr) -> bool:
    return any(
        equation.primitive.name in PRODUCTS or any(map(_has_product, _inside(equation.params)))
        for equation in jaxpr.eqns
    )
