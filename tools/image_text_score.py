"""How well images fit the prompts that they were made from, as SigLIP sees it.

    python -m tools.image_text_score runs/x/samples.npz --model=models/google/siglip2-so400m-patch14-224

The model is a SigLIP or SigLIP 2 of fixed size as Hugging Face has it (a directory with the weights and
`tokenizer.json`, or `hf://google/siglip2-...`): the very files whose image tower is the encoder. Prompts are those in
the file, lower-cased and padded as in its training. Printed are the mean cosine times 100, and the mean probability.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from rae_jax.files import local_path, whole_file
from rae_jax.interop import hub
from rae_jax.interop.checkpoint_files import read_tensors
from rae_jax.interop.siglip_pair import import_pair
from rae_jax.sampling.samples import check_images, open_npz


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.image_text_score",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("samples", type=local_path, help="an .npz with arr_0 and prompts")
    parser.add_argument("--model", required=True, help="a directory of SigLIP's files, or hf://OWNER/NAME")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--output", type=local_path, help="a JSON file for the numbers, those of each image too")
    options = parser.parse_args(arguments)
    try:
        found = scores(options.samples, options.model, options.batch_size)
    except ValueError as error:
        sys.exit(f"error: {error}")
    means = {name: float(np.mean(values)) for name, values in found.items()}
    for name, value in means.items():
        print(f"{name:24} {value:.4f}")
    if options.output:
        each = {name: [float(value) for value in values] for name, values in found.items()}
        with whole_file(options.output) as file:
            file.write((json.dumps(means | {"each": each}, indent=2) + "\n").encode())


def scores(samples: Path, model: str, batch_size: int) -> dict[str, np.ndarray]:
    """`image_text_cosine`, times 100, and `image_text_probability` of each image.

    Raises:
      ValueError: the samples have no prompts, or the directory is no such model.
    """
    with open_npz(samples) as archive:
        if missing := {"arr_0", "prompts"} - set(archive):
            raise ValueError(f"{samples} has no {' and no '.join(sorted(missing))}; it holds {sorted(archive)}")
        images, prompts = archive["arr_0"], [str(prompt) for prompt in archive["prompts"]]
    check_images(images, f"images in {samples}")
    if len(prompts) != len(images):
        raise ValueError(f"{samples} has {len(prompts)} prompts for {len(images)} images")
    directory = Path(hub.local(model))
    network, params = import_pair(read_tensors(directory), _heads(directory))
    ids, size = token_ids(directory, prompts, network.text.length), network.image.image_size

    @jax.jit
    def score(images: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        shape = (len(images), size, size, 3)
        pixels = jax.image.resize(images.astype(jnp.float32), shape, "linear", antialias=True) / 127.5 - 1
        return network.apply({"params": params}, pixels, ids)

    rows: list[Any] = []
    for start in range(0, len(images), batch_size):
        count = min(batch_size, len(images) - start)
        filled = np.resize(np.arange(start, start + count), batch_size)  # the last batch too: there is one shape
        cosine, probability = score(images[filled], ids[filled])
        rows.append((100 * np.asarray(cosine[:count]), np.asarray(probability[:count])))
    cosines, probabilities = (np.concatenate(values) for values in zip(*rows, strict=True))
    return {"image_text_cosine": cosines, "image_text_probability": probabilities}


def token_ids(directory: Path, prompts: list[str], length: int) -> np.ndarray:
    """The prompts as SigLIP's training had them: lower-cased, with the end token, cut and padded to `length`."""
    file = directory / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"{directory} has no tokenizer.json")
    tokenizer = Tokenizer.from_file(str(file))
    padding = next((i for token in ("<pad>", "</s>") if (i := tokenizer.token_to_id(token)) is not None), 0)
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=padding)
    return np.array([tokenizer.encode(prompt.lower()).ids for prompt in prompts], np.int32)


def _heads(directory: Path) -> dict[str, int] | None:
    """The numbers of heads that `config.json` tells, if it does."""
    file = directory / "config.json"
    config = json.loads(file.read_text()) if file.is_file() else {}
    towers = {"image": config.get("vision_config", {}), "text": config.get("text_config", {})}
    told = {name: tower.get("num_attention_heads") for name, tower in towers.items()}
    return told if all(told.values()) else None


if __name__ == "__main__":
    main()
