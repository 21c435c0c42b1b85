"""An evaluation whose result NumPy knows, in one process or several: `known_evaluation.py ADDRESS COUNT INDEX RUNS`."""

import json
import math
import sys

import jax
import numpy as np

from rae_jax.data.digits import ArraySource
from rae_jax.data.transforms import transform
from rae_jax.evaluation.evaluator import Evaluator, image_batches, source_batches
from rae_jax.evaluation.image_sets import images_of
from rae_jax.evaluation.metrics import METRICS, PIXELS, computed, measured, needed
from rae_jax.training import sharding

NAMES = ("psnr", "ssim", "rfd_encoder")


class Recorded(ArraySource):
    """Takes note of which images are read."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        return super().__getitem__(index)


def drawn(count):
    """Images, and the matrix that makes features of their pixels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return images, (rng.normal(size=(192, 5)) / 100).astype(np.float32)


def evaluated(devices, count, batch_size, seen=None, read=None):
    """The metrics of images of half the brightness against themselves, read from a source and as a set.

    Which images were seen, and which were read, is added to these lists.
    """
    images, matrix = drawn(count)
    metrics = [METRICS[name] for name in NAMES]

    def features(params, images):
        return {"mean_token": images.reshape(len(images), -1) / 255.0 @ params}

    def measure(params, batch):
        sets = {"judged": batch["image"] // 2, "reference": batch["image"]}
        found = measured(params, sets, needed(metrics), features={"encoder": features}, pairs=PIXELS)
        return found | {"seen": {"index": batch["index"]} if "index" in batch else {}}

    def on_batch(rows):
        if seen is not None and "index" in rows["seen"]:
            seen.extend(rows["seen"]["index"].tolist())

    mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, devices)
    source = Recorded(images, np.zeros(count, np.int32), ["one"])
    evaluate = Evaluator(mesh, measure, needed(metrics))
    with sharding.use(mesh):
        params = sharding.place(matrix, sharding.replicated(mesh))
        batches = source_batches(source, mesh, batch_size=batch_size, transform=transform("none", 8))
        found = evaluate(params, batches, on_batch)
        as_a_set = image_batches({"image": images_of(images, "drawn")}, mesh, batch_size=batch_size)
        again = evaluate(params, as_a_set)
    if read is not None:
        read.extend(source.read)
    assert found["judged"].count == found["reference"].count == count
    values, others = (computed(metrics, x["judged"], x["reference"]) for x in (found, again))
    assert all(math.isclose(value, others[name], rel_tol=1e-6) for name, value in values.items())
    return values


def main(address, processes, index, runs):
    if int(processes) > 1:
        jax.distributed.initialize(address, int(processes), int(index))
    results = []
    for count, batch_size in json.loads(runs):
        seen, read = [], []
        found = evaluated(jax.devices(), count, batch_size, seen, read)
        results.append([jax.device_count(), found, sorted(set(read)), seen])
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
