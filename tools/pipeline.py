"""A run's whole pipeline, for PyTorch: its encoder, decoder, statistics and generators as one directory.

    python -m tools.pipeline runs/digits --output=pipelines/digits

Each component becomes an official file of its name (`flow.safetensors`), or of its kind where that holds several
(`rpiae.safetensors`). `autoencoder/` is for `from_pretrained` of diffusers' AutoencoderRAE or AutoencoderKL, if one of
these can hold it. `pipeline.json` says what each file is, what is left out and why, and has the run's config, with the
settings that samples are made with.
"""

import argparse
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rae_jax.components.catalogue import CATALOGUE, component
from rae_jax.components.component import RANDOM
from rae_jax.components.latent_spaces import IDENTITY, identity_statistics
from rae_jax.experiment.weights import Weights
from rae_jax.experiment.workdir import CONFIG, config_of
from rae_jax.files import local_path
from rae_jax.interop import diffusers_config, kinds, vit
from rae_jax.interop.checkpoint_files import PICKLES, write_safetensors, write_tensors
from rae_jax.interop.kinds import KINDS
from rae_jax.interop.layout import Tensors, unstack_blocks
from rae_jax.interop.statistics import from_params
from rae_jax.models.decoder import ViTDecoder
from tools.convert import Trained, trained_model

# What judges images and training, and what was on the way to a flow map: a pipeline does without.
ONLY_IN_TRAINING = ("lpips", "lpips_alexnet", "inception", "discriminator", "mid_training")
TOGETHER = ("rpiae", "scale_rae", "rpiae_bridge")  # kinds whose files hold several components, the largest first
AUTOENCODER, CONTENTS = "autoencoder", "pipeline.json"


def export_pipeline(
    run: str | Path, output: str | Path, *, ending: str = ".safetensors", transformers: int = 5
) -> dict[str, Any]:
    """Writes the pipeline of the working directory `run` to the new directory `output`, whole or not at all.

    Args:
      ending: of the official files; those of torch need PyTorch.
      transformers: the major version of transformers beside which diffusers will run: names depend on it.

    Returns:
      `files`, the kind and the components of each, and `left_out`, the reason for each component.

    Raises:
      ValueError: `run` is no working directory with trained weights, or `output` is there already.
    """
    run, output = local_path(run), local_path(output)
    if not (run / CONFIG).is_file():
        raise ValueError(f"{run} is no working directory of a run: there is no {CONFIG} in it")
    if output.exists():
        raise ValueError(f"{output} is there already; name a directory that is not")
    plain = json.loads((run / CONFIG).read_text())
    config = config_of(plain)
    found, left_out = _weights(config, plain, run)
    if not found:
        raise ValueError(f"{run} has no trained weights yet")
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        files = {}
        for name, (kind, parts) in _planned(config, found).items():
            try:
                tensors = _official(kind, parts, found, run)
            except ValueError as error:
                left_out[name] = str(error)
            else:
                write_tensors(folder / f"{name}{ending}", tensors)
                files[f"{name}{ending}"] = {"kind": kind, "components": parts}
        try:
            about, tensors, parts = _autoencoder(config, found, run, transformers)
        except ValueError as error:
            left_out[AUTOENCODER] = str(error)
        else:
            (folder / AUTOENCODER).mkdir()
            (folder / AUTOENCODER / diffusers_config.CONFIG).write_text(json.dumps(about, indent=1) + "\n")
            write_safetensors(folder / AUTOENCODER / diffusers_config.WEIGHTS, tensors)
            files[AUTOENCODER] = {"kind": f"diffusers.{about['_class_name']}", "components": parts}
        contents = {"files": files, "left_out": left_out}
        (folder / CONTENTS).write_text(json.dumps(contents | {"config": plain}, indent=1) + "\n")
        folder.chmod(0o755)
        os.replace(folder, output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return contents


def _weights(config: ConfigDict, plain: dict[str, Any], run: Path) -> tuple[dict[str, Trained], dict[str, str]]:
    """The weights of each component that has some, and why others are left out."""
    places, found, left_out = Weights(config, plain, run, mesh=None, warn=print), {}, {}
    for name in CATALOGUE:
        if name in ONLY_IN_TRAINING or not places.available(name):
            continue
        part, place = component(config, name), places.place(name)
        if place == RANDOM:
            left_out[name] = "its weights are random"
            continue
        params = identity_statistics(part.structure()) if place == IDENTITY else part.load(place)
        found[name] = Trained(part.module, unstack_blocks(params))
    return found, left_out


def _planned(config: ConfigDict, found: dict[str, Trained]) -> dict[str, tuple[str, list[str]]]:
    """The official files to write, by name: the kind of each and the components in it."""
    files, left = {}, list(found)
    for kind in TOGETHER:
        parts = list(KINDS[kind].modules)
        if set(parts) <= set(left):
            files[kind] = (kind, parts)
            left = [name for name in left if name not in parts]
    return files | {name: (component(config, name).kind, [name]) for name in left}


def _official(kind: str, parts: list[str], found: dict[str, Trained], run: Path) -> Tensors:
    if not kind:
        raise ValueError("no kind of official file holds it")
    return kinds.export_model(kind, trained_model(kind, found, run, parts[0] if len(parts) == 1 else ""))


def _autoencoder(
    config: ConfigDict, found: dict[str, Trained], run: Path, transformers: int
) -> tuple[dict[str, Any], Tensors, list[str]]:
    """The configuration and the tensors of diffusers' class, and the components in it.

    Raises:
      ValueError: it has none that can hold what the run has.
    """
    if config.autoencoder in ("kl", "rac") and "teacher" in found:
        model = trained_model("diffusers_kl", found, run, "teacher")
        about = diffusers_config.autoencoder_kl(found["teacher"].module)
        return about, kinds.export_model("diffusers_kl", model), ["teacher"]
    if config.autoencoder != "rae" or config.latent_patch_size != 1 or not {"encoder", "decoder"} <= found.keys():
        raise ValueError(
            f"diffusers has no class for autoencoder={config.autoencoder!r} of {', '.join(found)}, "
            f"latent_patch_size={config.latent_patch_size}"
        )
    encoder, decoder = found["encoder"].module, found["decoder"].module
    if not isinstance(decoder, ViTDecoder) or config.decoder.plain_pixels:
        raise ValueError("diffusers.AutoencoderRAE has only ViTs that make normalised pixels for decoders")
    if "stats" not in found:
        found = found | {"stats": Trained(None, identity_statistics(component(config, "stats").structure()))}
    kind, section = component(config, "encoder").kind, config.encoder
    pixels = dict(image_mean=tuple(section.image_mean), image_std=tuple(section.image_std))
    statistics = from_params(found["stats"].params)
    about = diffusers_config.autoencoder_rae(
        kind, encoder, decoder, statistics, input_size=section.input_size, **pixels
    )
    # SigLIP's class is the one of transformers 4, with a name before all others: with 5 it does not run in diffusers.
    prefix = vit.PREFIXES["siglip"] if kind == "siglip" else ""
    model = dataclasses.replace(
        trained_model("diffusers_rae", found, run, ""),
        carried=diffusers_config.beside_autoencoder_rae(kind, encoder, **pixels),
        names={"family": kind, "version": 4 if kind == "siglip" else transformers, "prefix": prefix},
    )
    return about, kinds.export_model("diffusers_rae", model), ["encoder", "decoder", "stats"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m tools.pipeline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=local_path, help="the working directory of a run")
    parser.add_argument("--output", type=local_path, required=True, help="the directory to write")
    parser.add_argument("--ending", default=".safetensors", choices=(".safetensors", *PICKLES), help="of its files")
    parser.add_argument(
        "--transformers", type=int, default=5, choices=(4, 5), help="the major version beside which diffusers will run"
    )
    given = parser.parse_args(arguments)
    try:
        contents = export_pipeline(given.run, given.output, ending=given.ending, transformers=given.transformers)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    for file, about in contents["files"].items():
        print(f"{given.output / file}: {', '.join(about['components'])} ({about['kind']})")
    for name, reason in contents["left_out"].items():
        print(f"left out: {name}: {reason}")


if __name__ == "__main__":
    main()
