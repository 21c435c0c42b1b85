"""RAC on digits: steps of decoding, the terms of the loss, the reversed flow as encoder, generated latents.

It runs configs/digits_rac.py, then trains coders on its teacher that differ in one thing each, on the same batches and
with a constant learning rate, so that every length of training is a point of one run.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from sklearn.decomposition import PCA

from configs import digits_rac
from rae_jax.components.catalogue import component
from rae_jax.components.conditions import ClassCondition
from rae_jax.components.encoders import tokens_of
from rae_jax.components.latent_spaces import coder, teacher
from rae_jax.data.batches import evaluation_batches, training_batches
from rae_jax.data.sources import open_source
from rae_jax.data.transforms import transform
from rae_jax.evaluation import pictures
from rae_jax.evaluation.frechet import Gaussian, Moments, frechet_distance
from rae_jax.evaluation.image_quality import psnr
from rae_jax.evaluation.judge import train_judge
from rae_jax.flow import both_ways
from rae_jax.interop.weights import save_weights
from rae_jax.models.autoencoder import to_uint8
from rae_jax.models.coder import decode, encode, image_of, velocity_function
from rae_jax.models.kl_vae import to_map
from rae_jax.objectives.catalogue import OBJECTIVES
from rae_jax.sampling.generator import generator, sample_keys
from rae_jax.sampling.samples import save_png
from rae_jax.training import sharding
from tools.findings.runs import run

CONFIG = "configs/digits_rac.py"
DOCS = Path(__file__).resolve().parents[2] / "docs"
NUM_STEPS = (1, 2, 4, 8, 16)  # of decoding
LENGTHS = (50, 100, 200, 400, 800)  # of training
SHORT = 400  # steps of the coders that are compared
ABLATIONS = {
    "K = 1": {"num_steps": 1},
    "no path loss": {"path_weight": 0.0},
    "no latent loss": {"latent_weight": 0.0},
    "no pixel loss": {"pixel_weight": 0.0},
    "no round trip": {"round_trip_weight": 0.0},
    "neither way back (only decoding)": {"latent_weight": 0.0, "pixel_weight": 0.0, "round_trip_weight": 0.0},
    "round trip of the state": {"round_trip": "state"},
}


class Bench:
    """The finished pipeline's teacher and encoder, the digits, and what is measured with them."""

    def __init__(self, pipeline: Path):
        self.pipeline, self.config = pipeline, self.configured()
        self.parts = {name: self.load(name) for name in ("encoder", "teacher", "coder", "stats", "flow")}
        self.train, self.train_labels = self.images("train")
        self.test, self.test_labels = self.images("test")
        kl_vae, to_tokens = teacher(self.config), tokens_of(self.config)

        @jax.jit
        def latents(images: jax.Array) -> jax.Array:
            return kl_vae.apply(self.parts["teacher"], images / 255.0, method="encode").mode()

        @jax.jit
        def mean_token(images: jax.Array) -> jax.Array:
            return jnp.mean(to_tokens(self.parts["encoder"], images / 255.0), axis=1)

        self.mean_token, self.z = mean_token, latents(self.test.astype(np.float32))
        self.reference = self.features(self.test)
        self.teacher_decode = jax.jit(lambda z: to_uint8(kl_vae.apply(self.parts["teacher"], z, method="decode")))

    def configured(self, **changes: Any) -> ConfigDict:
        """The pipeline's config with these fields of the coder changed, and a constant learning rate."""
        config = digits_rac.get_config()
        config.coder.update(changes)
        config.coder.train.optimizer.shape = "constant"
        return config

    def load(self, name: str) -> Any:
        """A component's weights."""
        return component(self.config, name).load(self.pipeline / name / "weights")

    def images(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """All images of a split and their labels."""
        crop = transform("center_crop", self.config.data.image_size)
        source = open_source("digits", split, "")
        (batch,) = evaluation_batches(source, batch_size=len(source), transform=crop)
        return batch["image"], batch["label"]

    def features(self, images: np.ndarray) -> Gaussian:
        """Moments of the encoder's mean token."""
        return Moments.of(np.asarray(self.mean_token(images.astype(np.float32)))).gaussian()

    def measure(self, images: jax.Array) -> tuple[float, float]:
        """PSNR and Fréchet distance of reconstructions of the held-out digits."""
        images = np.asarray(images)
        return float(np.mean(psnr(self.test, images))), frechet_distance(self.features(images), self.reference)

    def coder(self, name: str, length: int, **changes: Any) -> dict[int, Any]:
        """The averaged parameters of a coder after each of `LENGTHS` up to `length` steps; kept on disk."""
        config = self.configured(**changes)
        lengths = [n for n in LENGTHS if n <= length]
        folders = {n: self.pipeline.parent / "coders" / name.replace(" ", "_") / str(n) for n in lengths}
        if not folders[length].exists():
            objective = OBJECTIVES[config.coder.objective](config, "coder")
            crop = transform("center_crop", config.data.image_size)
            batches = training_batches(
                open_source("digits", "train", ""), batch_size=config.coder.train.batch_size, seed=0, transform=crop
            )
            state = sharding.unbox(objective.init(jax.random.key(0), {})).replace(
                frozen={"teacher": self.parts["teacher"]}
            )
            step = jax.jit(objective.train_step, donate_argnums=0)
            state = jax.tree.map(jnp.array, state)
            for n in range(1, length + 1):
                state, _ = step(state, next(batches))
                if n in folders:
                    save_weights(
                        folders[n],
                        jax.device_get(state.ema_params),
                        {"component": "coder", "variant": name, "steps": n},
                    )
            print(f"{name}: {length} steps", flush=True)
        return {n: coder(config).load(folder) for n, folder in folders.items()}

    def decoded(self, params: Any, num_steps: int) -> jax.Array:
        """The held-out digits decoded from the teacher's latents, uint8."""
        model = coder(self.config).module
        return jax.jit(lambda p, z: to_uint8(decode(model, p, z, num_steps)))(params, self.z)

    def encoded(self, params: Any, num_steps: int) -> jax.Array:
        """The latents that the reversed flow finds for the held-out digits."""
        model = coder(self.config).module
        return jax.jit(lambda p, x: encode(model, p, x / 255.0, num_steps))(params, self.test.astype(np.float32))

    def latent_error(self, z: jax.Array) -> float:
        """Mean squared error against the teacher's latents, over their variance."""
        return float(jnp.mean(jnp.square(z - self.z)) / jnp.var(self.z))


def reproduce(workdir: Path, digits: Path) -> str:
    """The section of docs/findings.md; runs below `workdir`. Nothing is taken from `digits`."""
    del digits
    pipeline = run(workdir / "pipeline", CONFIG, {})
    bench = Bench(pipeline.workdir)
    whole = bench.coder("whole", LENGTHS[-1])
    variants = {"all terms, K = 4": whole[SHORT]}
    variants |= {name: bench.coder(name, SHORT, **changes)[SHORT] for name, changes in ABLATIONS.items()}
    teacher = bench.measure(bench.teacher_decode(bench.z))
    figures(bench, whole[LENGTHS[-1]])
    return "\n\n".join(
        [
            "## RAC: decoding in steps (`python -m tools.reproduce rac`)",
            f"The teacher is a KL-VAE of {CONFIG}: 4 x 4 latents of 4 channels for 32 x 32 pixels. Its own decoder "
            f"reconstructs the held-out digits at {teacher[0]:.2f} dB, Fréchet distance {teacher[1]:.4f} (in the mean "
            "tokens of the small encoder, as everywhere here). The coders are trained on the same batches at a "
            "constant learning rate of 1e-3; their averaged parameters are measured.",
            "Decoding the teacher's latents, PSNR in dB / Fréchet distance, against the number of equal steps:",
            table(
                "training steps",
                [f"{k} step{'s' if k > 1 else ''}" for k in NUM_STEPS],
                {str(n): [pair(bench.measure(bench.decoded(p, k))) for k in NUM_STEPS] for n, p in whole.items()},
            ),
            f"One thing changed at a time, {SHORT} training steps. The encoder's error is that of the reversed flow's "
            "latents (4 steps), squared and over the variance of the teacher's; the round trip is the coder's own "
            "encoding, decoded by it:",
            table(
                "trained with",
                ["1 step", "4 steps", "16 steps", "encoder's error", "round trip"],
                {
                    name: [
                        *(pair(bench.measure(bench.decoded(p, k))) for k in (1, 4, 16)),
                        f"{bench.latent_error(bench.encoded(p, 4)):.4f}",
                        pair(bench.measure(to_uint8(round_trip(bench, p, 4)))),
                    ]
                    for name, p in variants.items()
                },
            ),
            f"The reversed flow as encoder, after {LENGTHS[-1]} training steps, against the number of steps:",
            table(
                "",
                [f"{k} step{'s' if k > 1 else ''}" for k in NUM_STEPS],
                {
                    "error of the latents over their variance": [
                        f"{bench.latent_error(bench.encoded(whole[LENGTHS[-1]], k)):.4f}" for k in NUM_STEPS
                    ]
                },
            ),
            "The same 500 generated latents, decoded by the pipeline's coder and by the teacher:",
            generated(bench),
            "![States of decoding and of encoding](rac_trajectories.png)",
            "From above: the latent's state s_0 as an image, the states of decoding in 4 steps, the digit itself, and "
            "the states of encoding it.",
            "![The same in the plane of the first two principal components](rac_pca.png)",
            "Decoding paths of twelve held-out digits in the plane of the first two principal components of all end "
            "states, with the straight line to the digit dashed.",
        ]
    )


def round_trip(bench: Bench, params: Any, num_steps: int) -> jax.Array:
    """Images from the coder's own latents of the held-out digits."""
    model = coder(bench.config).module
    return jax.jit(lambda p, z: decode(model, p, z, num_steps))(params, bench.encoded(params, num_steps))


def generated(bench: Bench) -> str:
    """The table of generated latents by decoder."""
    judge = train_judge(bench.train, bench.train_labels)
    labels = ClassCondition(10).chosen(500)
    rows = {}
    for name, autoencoder, num_steps in (
        *((f"coder, {k} step{'s' if k > 1 else ''}", "rac", k) for k in (1, 4, 8)),
        ("teacher", "kl", 4),
    ):
        config = bench.configured()
        config.autoencoder, config.sampling.coder_steps = autoencoder, num_steps
        drawn = jax.jit(generator(config))(
            bench.parts["flow"], bench.parts, sample_keys(config.seed, jnp.arange(len(labels))), jnp.asarray(labels)
        )
        images = np.asarray(to_uint8(drawn))
        distance = frechet_distance(bench.features(images), bench.reference)
        rows[name] = [f"{100 * judge.agrees(images, labels).mean():.1f} %", f"{distance:.4f}"]
    return table("decoded by", ["label agreement", "Fréchet distance"], rows)


def figures(bench: Bench, params: Any) -> None:
    """Writes docs/rac_trajectories.png and docs/rac_pca.png."""
    model, times = coder(bench.config).module, both_ways.uniform_grid(4)
    velocity = velocity_function(model, params)
    first, last = model.latent_state(to_map(bench.z)), model.image_state(bench.test.astype(np.float32) / 255.0)
    down = jax.jit(lambda s: both_ways.decode(velocity, s, times, trajectory=True))(first)
    back = jax.jit(lambda s: both_ways.encode(velocity, s, times, trajectory=True))(last)
    rows = {f"decoded to {k}/4": np.asarray(to_uint8(image_of(down[k, :12]))) for k in range(5)}
    rows |= {"the digit": bench.test[:12]}
    rows |= {f"encoded to {4 - k}/4": np.asarray(to_uint8(image_of(back[k, :12]))) for k in range(1, 5)}
    first_row = rows.pop("decoded to 0/4")
    save_png(DOCS / "rac_trajectories.png", pictures.reconstruction_grid(first_row, rows, columns=12))

    ends = np.concatenate([np.asarray(x).reshape(len(bench.test), -1) for x in (first, last)])
    plane = PCA(2).fit(ends)
    paths = np.stack([plane.transform(np.asarray(s).reshape(len(bench.test), -1)) for s in down])
    goals = plane.transform(np.asarray(last).reshape(len(bench.test), -1))
    figure = Figure(figsize=(6, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for i in range(12):
        axes.plot(*np.stack([paths[0, i], goals[i]]).T, "--", color="0.7", linewidth=1)
        axes.plot(*paths[:, i].T, ".-", linewidth=1.2)
    axes.set_xlabel("first component")
    axes.set_ylabel("second component")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    save_png(DOCS / "rac_pca.png", np.asarray(canvas.buffer_rgba())[..., :3].copy())


def pair(measured: tuple[float, float]) -> str:
    """PSNR and Fréchet distance in one cell."""
    return f"{measured[0]:.2f} / {measured[1]:.4f}"


def table(corner: str, columns: list[str], rows: dict[str, list[str]]) -> str:
    """A Markdown table."""
    lines = [[corner, *columns], ["---"] * (len(columns) + 1), *([name, *cells] for name, cells in rows.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
