"""Official PyTorch checkpoints into weights directories and back.

    python -m tools.convert list
    python -m tools.convert import --kind=dit_dh --source=model.pt --output=weights/dit_dh_xl
    python -m tools.convert export --kind=rae_decoder --source=runs/digits/decoder/weights --output=decoder.safetensors

A weights directory is a config value, `--config.flow.weights=weights/dit_dh_xl`, and so is the official file itself.
The architecture is told by names and shapes; what they do not tell comes from the published sizes, from `config.json`
beside the weights, from `--config`, or from an option. README.md beside this file has the table of kinds.
"""

import argparse
import dataclasses
import json
import math
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
from flax.traverse_util import unflatten_dict

from rae_jax.components.catalogue import component as component_of
from rae_jax.components.catalogue import described
from rae_jax.experiment.flags import read_config
from rae_jax.experiment.workdir import config_of
from rae_jax.files import local_path
from rae_jax.interop import hub, kinds, lpips, weights
from rae_jax.interop.checkpoint_files import PICKLES, read_tensors, write_tensors
from rae_jax.interop.kinds import KINDS
from rae_jax.interop.layout import Tensors, flatten, unstack_blocks
from rae_jax.interop.model import Model
from rae_jax.training import checkpoint_weights

# Where the configurations of Hugging Face's libraries have what tensors do not tell, by option.
HUGGING_FACE = {
    "num_heads": ("num_attention_heads",),
    "decoder_heads": ("decoder_num_attention_heads",),
    "num_groups": ("norm_num_groups",),
    "scaling_factor": ("scaling_factor",),
    "shift_factor": ("shift_factor",),
}


def import_checkpoint(
    kind: str, source: str, output: str | Path, *, part: str = "", config: str = "", **options: float
) -> Model:
    """Writes the official checkpoint `source` as the weights directory `output`, and returns what was in it.

    Args:
      kind: a key of `KINDS`.
      source: a file or directory, or several joined by commas whose tensors belong together.
      output: the directory to write.
      part: the entry of a training checkpoint, or the prefix of the names, to read.
      config: an experiment (`configs/dith_xl.py`) or a `config.json` that has what the tensors do not tell.
      **options: the same, one by one, as the kind lists them.

    Raises:
      ValueError: whatever is wrong with the files; nothing has been written.
    """
    paths = [local_path(hub.local(path)) for path in source.split(",")]
    told = _told(kind, config or next((p / "config.json" for p in paths if (p / "config.json").is_file()), ""))
    if kind == "lpips" and paths[0].suffix == ".ckpt":
        network, params = lpips.read_package_file(paths[0])
        model = Model({"network": network}, params)
    else:
        model = kinds.import_model(kind, _read_all(paths, part), **told | options)
    weights.save_model(output, kind, model)
    return model


def export_checkpoint(kind: str, source: str | Path, output: str | Path, *, component: str = "") -> Tensors:
    """Writes weights as the official checkpoint `output`, and returns its tensors.

    Args:
      source: a weights directory; what a stage left, several of them; a checkpoint; or the working directory of a run,
        whose last weights of each component count.
      component: which of several components that a file of this kind could hold.

    Raises:
      ValueError: there are no weights of that kind, or ones that its files cannot express; nothing has been written.
    """
    source = local_path(source)
    if Path(output).suffix not in (".safetensors", *PICKLES):
        raise ValueError(f"{output}: a checkpoint's name ends in .safetensors or one of {', '.join(PICKLES)}")
    if weights.is_weights(source) and "kind" in weights.read_weights(source)[0]:
        model = _as_kind(kind, *weights.read_model(source))
    else:
        model = trained_model(kind, _trained_weights(Path(source)), source, component)
    exported = kinds.export_model(kind, model)
    write_tensors(output, exported)
    return exported


def _read_all(paths: list[Path], part: str) -> Tensors:
    tensors: Tensors = {}
    for path in paths:
        more = read_tensors(path, part)
        if twice := sorted(tensors.keys() & more.keys()):
            raise ValueError(f"{path} has tensors that another source has too: {', '.join(twice[:5])}")
        tensors |= more
    return tensors


def _as_kind(kind: str, own: str, model: Model) -> Model:
    """`model` of kind `own` as one of `kind`: the same, or one part of it."""
    if kind == own:
        return model
    wanted = kinds.find(kind).modules.get("")
    for part, module in KINDS[own].modules.items():
        if part and module is wanted and wanted is not None:
            return Model(model.architecture[part], model.params[part])
    raise ValueError(f"the weights were imported from kind {own!r} and are none of kind {kind!r}")


@dataclasses.dataclass(frozen=True)
class Trained:
    """A component that an experiment has trained: its `module` (None for statistics) and its `params`."""

    module: nn.Module | None
    params: dict[str, Any]


def _trained_weights(source: Path) -> dict[str, Trained]:
    """The components whose trained weights are in `source`, by name."""
    if checkpoint := checkpoint_weights.find(source):
        config = config_of(checkpoint.config)
        return {
            name: Trained(component_of(config, name).module, unstack_blocks(checkpoint.read(name)))
            for name in checkpoint.about["components"]
        }
    if weights.is_weights(source):
        directories = [source]
    else:  # what a stage left, or all that a run's stages left, in the order in which they were trained
        run = source / "config.json"
        stages = json.loads(run.read_text())["stages"] if run.is_file() else []
        folders = [source / stage / "weights" for stage in stages] or [source]
        directories = [d for folder in folders for d in (folder, *sorted(folder.glob("*"))) if weights.is_weights(d)]
    if not directories:
        raise ValueError(f"{source} is no weights directory, holds none, and is no working directory of a run")
    found = {}
    for directory in directories:
        description, tensors, _ = weights.read_weights(directory)
        if not description.keys() >= {"component", "config"}:
            raise ValueError(f"{directory}: {weights.DESCRIPTION} names neither kind nor component")
        name = description["component"]
        module = component_of(config_of(description["config"]), name).module
        found[name] = Trained(module, unflatten_dict(tensors, sep="/"))
    return found


def trained_model(kind: str, found: dict[str, Trained], source: str | Path, component: str) -> Model:
    """What was trained, as a model of `kind`."""
    offered = kinds.find(kind).modules
    if component and component not in found:
        raise ValueError(f"{source} has no weights of {component!r}; it has {', '.join(found)}")
    if "" in offered:
        fitting = [
            name
            for name, part in found.items()
            if (type(part.module) if part.module else None) is offered[""] and component in ("", name)
        ]
        if len(fitting) > 1:
            raise ValueError(f"{source} has several components of kind {kind!r}: choose one with --component="
                             f"{' or '.join(fitting)}")  # fmt: skip
        if not fitting:
            raise ValueError(f"{source} holds {', '.join(found)}, of which none is a model of kind {kind!r}")
        (part,) = (found[name] for name in fitting)
        return Model({} if part.module is None else weights.architecture_of(part.module), part.params)
    required = [name for name, module in offered.items() if module is not None]
    if missing := [name for name in required if name not in found]:
        raise ValueError(f"a file of kind {kind!r} holds {', '.join(offered)}; {source} has no {', '.join(missing)}")
    parts = {name: found[name] for name in offered if name in found}
    return Model(
        {name: weights.architecture_of(part.module) for name, part in parts.items() if part.module is not None},
        {name: part.params for name, part in parts.items()},
    )


def _told(kind: str, config: str | Path) -> dict[str, Any]:
    """The options of `kind` that a configuration tells."""
    if not config:
        return {}
    if str(config).endswith(".json"):
        return _hugging_face(kind, json.loads(Path(config).read_text()))
    experiment = read_config(str(config))
    if experiment.flow.num_classes == -1:  # as many as the data have: the tensors tell it
        experiment.flow.num_classes = 1
    told: dict[str, Any] = {}
    for name in described(experiment):
        module = component_of(experiment, name).module
        if type(module) in kinds.find(kind).modules.values():
            told |= weights.options_of(kind, module)
    return told


def _hugging_face(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    config = {**config, **config.get("vision_config", {})}
    options = kinds.find(kind).options
    names = HUGGING_FACE | ({"num_heads": ("decoder_num_attention_heads",)} if kind == "rae_decoder" else {})
    told = {o: config[name] for o in options for name in names.get(o, ()) if config.get(name) is not None}
    if "grid_size" in options and {"encoder_input_size", "encoder_patch_size"} <= config.keys():
        told["grid_size"] = config["encoder_input_size"] // config["encoder_patch_size"]
    return told


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m tools.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the kinds, what they hold and which options they take")
    reader = commands.add_parser("import", help="official checkpoint -> weights directory")
    writer = commands.add_parser("export", help="weights directory -> official checkpoint")
    for command, source, output in (
        (reader, "the file or directory; several joined by commas are read as one", "the directory to write"),
        (
            writer,
            "a weights directory, a checkpoint, or a run's working directory",
            "the file to write; its ending, .safetensors or .pt, says how",
        ),
    ):
        command.add_argument("--kind", required=True, help="one of: " + ", ".join(sorted(KINDS)))
        command.add_argument("--source", required=True, help=source)
        command.add_argument("--output", required=True, type=local_path, help=output)
    reader.add_argument("--part", default="", help="entry of a training checkpoint (model, ema) or prefix of names")
    reader.add_argument("--config", default="", help="experiment or config.json that has what the tensors do not tell")
    writer.add_argument(
        "--component", default="", help="which of several components of that kind, such as flow or guide"
    )
    options = {option: kind for kind in KINDS.values() for option in kind.options}
    for option in options:
        reader.add_argument(f"--{option}", type=float if option.endswith("_factor") else int)
    parser.set_defaults(options=tuple(options))
    return parser


def _report(verb: str, kind: str, tensors: Mapping[str, Any], output: str) -> str:
    count = sum(math.prod(value.shape) for value in tensors.values())
    return f"{kind}: {verb} {len(tensors)} tensors, {count:,} numbers, to {output}"


def main(arguments: list[str]) -> None:
    flags = _parser().parse_args(arguments)
    try:
        if flags.command == "list":
            for name, kind in sorted(KINDS.items()):
                options = f"  ({', '.join(f'--{option}' for option in kind.options)})" if kind.options else ""
                print(f"{name:15} {kind.holds}{options}")
        elif flags.command == "import":
            options = {name: getattr(flags, name) for name in flags.options if getattr(flags, name) is not None}
            model = import_checkpoint(
                flags.kind, flags.source, flags.output, part=flags.part, config=flags.config, **options
            )
            print(json.dumps(model.architecture))
            print(_report("imported", flags.kind, flatten(model.params), flags.output))
        else:
            exported = export_checkpoint(flags.kind, flags.source, flags.output, component=flags.component)
            print(_report("exported", flags.kind, exported, flags.output))
    except (ValueError, OSError, pickle.UnpicklingError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
