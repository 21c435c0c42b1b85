"""Images a second that this machine reads, decodes, crops and places, against what the experiment's devices need.

    python -m tools.data_benchmark --config=configs/rae_dinov2b_vitxl.py --config.data.path=DIR --needed=2900
    python -m tools.data_benchmark --decoders

The first measures the config's own pipeline (`data.source` or `data.latents`, the stage's transform,
`data.num_workers`), whole batches as training takes them from the devices of this host, for `--seconds` after the first
of them. `--needed` is what one host has to feed: batch size over seconds a step, over the number
of hosts; `tools.compile_report` estimates the step. The second compares decoders on one thread, on JPEG files of
500 x 375 pixels made from scikit-learn's photographs.
"""

import io
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from absl import app, flags
from PIL import Image

from rae_jax.data.decoding import decode_image
from rae_jax.data.device import DeviceBatches, batch_rows
from rae_jax.data.transforms import transform
from rae_jax.experiment import flags as experiment
from rae_jax.experiment.configuration import resolved, stage_of
from rae_jax.experiment.stages import open_batches, open_sources
from rae_jax.objectives.catalogue import OBJECTIVES
from rae_jax.training import sharding

DECODERS = flags.DEFINE_bool("decoders", False, "Compare JPEG decoders instead.")
STAGE = flags.DEFINE_string("stage", "", "Whose transform and batch are measured; the config's first stage by default.")
SECONDS = flags.DEFINE_float("seconds", 20.0, "How long to measure.")
NEEDED = flags.DEFINE_float("needed", 0.0, "Images a second that this host has to feed.")


def photographs() -> list[bytes]:
    """JPEG files of 500 x 375 pixels, quality 90."""
    from sklearn.datasets import load_sample_images

    files = []
    for pixels in load_sample_images().images:
        file = io.BytesIO()
        Image.fromarray(pixels).resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def decoders() -> dict[str, Callable[[bytes], np.ndarray]]:
    """What turns a JPEG file into uint8 RGB `[H, W, 3]`, by name."""
    import cv2
    import simplejpeg

    cv2.setNumThreads(1)
    return {
        "rae_jax (simplejpeg, Pillow for odd files)": decode_image,
        "simplejpeg": lambda data: simplejpeg.decode_jpeg(data, "RGB"),
        "opencv": lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB),
        "pillow": lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
    }


def rate(function: Callable[[int], object], seconds: float) -> float:
    """Calls of `function(i)` a second, one after the other."""
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        function(count)
        count += 1
    return count / (time.perf_counter() - began)


def compare_decoders(seconds: float) -> None:
    """Prints images a second of each decoder on one thread, alone and with the decoder stage's crop behind it."""
    files, crop = photographs(), transform("random_crop", 256)
    random = np.random.default_rng(0)
    print(f"{'one thread, images a second':45} {'decoding':>9} {'and random crop 256':>20}")
    for name, decode in decoders().items():
        decode(files[0])
        alone = rate(lambda i, decode=decode: decode(files[i % len(files)]), seconds)
        both = rate(lambda i, decode=decode: crop(decode(files[i % len(files)]), random), seconds)
        print(f"{name:45} {alone:9.0f} {both:20.0f}")


class Measured(NamedTuple):
    """What a pipeline does.

    Attributes:
      seconds: until the source was open, the workers up and the first batch there.
      images: a second from then on, or cached latents.
      bytes: of those that the devices are given, a second.
    """

    seconds: float
    images: float
    bytes: float


def measure_pipeline(config, stage: str, seconds: float) -> Measured:
    """Measures how the config's training pipeline fills the devices of this host with batches for `seconds`.

    Raises:
      ValueError: the data cannot be opened, or a batch does not divide over the devices.
    """
    began, size = time.perf_counter(), config[stage].train.batch_size
    rows = sharding.batch_sharding(sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, jax.local_devices()))
    objective = OBJECTIVES[config[stage].objective](config, stage)
    source = open_sources(config)["train"]
    batches = DeviceBatches(open_batches(config, stage, objective, source, batch_rows(rows, size)), rows)
    try:
        first = jax.block_until_ready(next(batches))
        until_first = time.perf_counter() - began
        images = rate(lambda _: jax.block_until_ready(next(batches)), seconds) * size
        return Measured(until_first, images, images * sum(value.nbytes for value in first.values()) / size)
    finally:
        batches.close()


def main(arguments: list[str]) -> None:
    del arguments
    if DECODERS.value:
        compare_decoders(SECONDS.value / 8)
        return
    config = experiment.config()
    try:
        config = resolved(config, experiment.workdir())
        found = measure_pipeline(config, stage_of(config, STAGE.value, otherwise=0), SECONDS.value)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    print(
        f"{found.images:,.0f} images a second, {found.bytes / 1e6:,.0f} MB, with {config.data.num_workers} workers; "
        f"the first batch came after {found.seconds:.1f} s"
    )
    if NEEDED.value:
        share = found.images / NEEDED.value
        verdict = "enough" if share >= 1 else "too few: raise data.num_workers, or take hosts with more cores"
        print(f"{NEEDED.value:,.0f} are needed: {share:.0%}, {verdict}")


if __name__ == "__main__":
    app.run(main, flags_parser=experiment.parse)
