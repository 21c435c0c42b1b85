"""RAE's stage 1 on photographs: what each term of the loss and the noise do to reconstructions."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from configs import photographs as experiment
from rae_jax.components.decoders import decoder as decoder_component
from rae_jax.components.decoders import images_of
from rae_jax.components.encoders import encoder as encoder_component
from rae_jax.components.encoders import tokens_of
from rae_jax.evaluation.image_quality import psnr
from rae_jax.interop.lpips import pretrained
from rae_jax.models.autoencoder import to_uint8
from rae_jax.models.lpips import LPIPS
from rae_jax.training import sharding
from tools.findings.runs import Run, run
from tools.photographs import photographs

CONFIG = "configs/photographs.py"
SHORTER_SIDE = 288  # pixels, of the photographs
TILE, STRIDE, TEST_TILE = 96, 48, 64  # of what is trained on, of which 64 x 64 are cropped at random; of what is not
SIGMA = 0.5  # of the noise that "noisy" latents carry; the latents' own deviation is 1
LOSSES = {
    "L1": {"decoder.loss.lpips_weight": 0.0, "decoder.loss.gan_weight": 0.0},
    "L1 + LPIPS": {"decoder.loss.gan_weight": 0.0},
    "L1 + LPIPS + GAN": {},
}
TAUS = (0.0, 0.8)


def crops(folder: Path) -> Path:
    """Writes the photographs' crops to `folder`, as the data source "folder" reads them.

    The left three quarters of each photograph are for training, the right quarter is held out.

    Raises:
      ValueError: scikit-image is not installed.
    """
    done = folder / "complete"
    if done.exists():
        return folder
    for name, pixels in photographs().items():
        picture = Image.fromarray(pixels)
        scale = SHORTER_SIDE / min(picture.size)
        picture = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.BICUBIC)
        border = picture.width * 3 // 4
        for split, left, right, tile, stride in (
            ("train", 0, border, TILE, STRIDE), ("test", border, picture.width, TEST_TILE, TEST_TILE)
        ):  # fmt: skip
            target = folder / split / name
            target.mkdir(parents=True, exist_ok=True)
            for top in range(0, picture.height - tile + 1, stride):
                for x in range(left, right - tile + 1, stride):
                    picture.crop((x, top, x + tile, top + tile)).save(target / f"{top:03}_{x:03}.png")
    done.touch()
    return folder


def held_out(folder: Path) -> np.ndarray:
    """The held-out crops, uint8 `[N, 64, 64, 3]`."""
    return np.stack([np.asarray(Image.open(path)) for path in sorted((folder / "test").rglob("*.png"))])


class Judge:
    """PSNR and LPIPS (VGG16, on which nothing was trained) of a decoder's reconstructions of held-out crops."""

    def __init__(self, encoder: Path, images: np.ndarray):
        self._config = experiment.get_config()
        self._images, self._lpips = jnp.asarray(images), pretrained("vgg16")
        to_tokens, to_images = tokens_of(self._config), images_of(self._config)
        images = self._images / 255.0
        self._tokens = jax.jit(to_tokens)(encoder_component(self._config).load(encoder), images)

        @jax.jit
        def judge(decoder, lpips, tokens):
            decoded = to_uint8(to_images(decoder, tokens))
            distance = LPIPS("vgg16").apply({"params": lpips}, images * 2 - 1, decoded / 127.5 - 1)
            return jnp.mean(psnr(self._images, decoded)), jnp.mean(distance)

        self._judge = judge

    def of(self, decoder: Path | None) -> tuple[float, ...]:
        """PSNR and LPIPS from clean latents, then from noisy ones; of the untrained decoder if `decoder` is None."""
        part = decoder_component(self._config)
        params = sharding.unbox(part.init(jax.random.key(0))) if decoder is None else part.load(decoder)
        noisy = self._tokens + SIGMA * jax.random.normal(jax.random.key(1), self._tokens.shape)
        return tuple(float(x) for tokens in (self._tokens, noisy) for x in self._judge(params, self._lpips, tokens))


def reproduce(workdir: Path, digits: Path) -> str:
    """Trains an encoder and six decoders, two cores for about a quarter of an hour, and returns the section."""
    del digits
    folder = crops(workdir / "photographs")
    common = {"data.path": str(folder.resolve())}
    run(workdir / "encoder", CONFIG, common | {"stages": "('encoder',)"})
    encoder = workdir / "encoder" / "encoder" / "weights"
    common |= {"stages": "('decoder',)", "encoder.weights": str(encoder.resolve()), "decoder.train.log_every": 1}
    trained = {
        (loss, tau): run(
            workdir / f"{loss.replace(' + ', '_').lower()}_tau_{tau}",
            CONFIG,
            common | fields | {"decoder.noise_tau": tau},
        )
        for loss, fields in LOSSES.items()
        for tau in TAUS
    }
    images = held_out(folder)
    judge = Judge(encoder, images)
    rows = [("none: untrained", "", judge.of(None))]
    rows += [(loss, f"{tau:g}", judge.of(of.workdir / "decoder" / "weights")) for (loss, tau), of in trained.items()]
    return section(rows, {tau: trained["L1 + LPIPS + GAN", tau] for tau in TAUS}, folder, len(images))


def section(rows: list[tuple[str, str, tuple[float, ...]]], full: dict[float, Run], folder: Path, images: int) -> str:
    """The Markdown of the finding."""
    config = experiment.get_config()
    train, loss = config.decoder.train, config.decoder.loss
    tiles = len(list((folder / "train").rglob("*.png")))
    table = "\n".join(
        f"| {name} | {tau} | {clean:.2f} | {distance:.3f} | {noisy:.2f} | {noisy_distance:.3f} |"
        for name, tau, (clean, distance, noisy, noisy_distance) in rows
    )
    text = f"""## RAE's stage 1 on photographs

    python -m tools.reproduce rae_stage1

{len(photographs())} photographs of scikit-image and scikit-learn, {SHORTER_SIDE} pixels high; {tiles} tiles of their
left three quarters to train on, {images} crops of {TEST_TILE} x {TEST_TILE} pixels of their right quarters to judge by.
The encoder is a ViT of width {config.encoder.model.width}, pretrained on the tiles by masked autoencoding
({config.encoder.train.steps} steps); the decoder has width {config.decoder.model.width} and is trained for
{train.steps} steps of {train.batch_size} images. LPIPS is AlexNet's as a loss and VGG16's as a judge. The discriminator
stands on random features, not on DINO's. Noisy latents carry noise of sigma {SIGMA}; tau is the scale of the noise in
training (sigma uniform in [0, tau]). One run each.

| loss | tau | PSNR, dB | LPIPS | PSNR from noisy latents | LPIPS from noisy latents |
|---|---|---|---|---|---|
{table}

{_trade_off(rows)}

The adversarial phase, steps {loss.gan_from_step} to {train.steps}, every step looked at. The adaptive weight is clamped
to [0, {loss.adaptive_maximum:g}].

| tau | discriminator accuracy, least to greatest | adaptive weight, least to greatest | last loss | not finite |
|---|---|---|---|---|
"""
    return text + "\n".join(_stability(tau, of, loss.gan_from_step) for tau, of in full.items())


def _trade_off(rows: list[tuple[str, str, tuple[float, ...]]]) -> str:
    """What the noise costs and brings, loss by loss."""
    found = {(name, tau): values for name, tau, values in rows}
    plain, perceptual = (found[loss, f"{TAUS[0]:g}"] for loss in ("L1", "L1 + LPIPS"))
    lines = [
        f"- LPIPS in the loss, without noise, changes PSNR by {perceptual[0] - plain[0]:+.2f} dB and the judge's "
        f"LPIPS, that of another network, by {perceptual[1] - plain[1]:+.3f}."
    ]
    for loss in LOSSES:
        without, with_noise = (found[loss, f"{tau:g}"] for tau in TAUS)
        change = [b - a for a, b in zip(without, with_noise, strict=True)]
        lines.append(
            f"- {loss}: training with noise changes PSNR by {change[0]:+.2f} dB and LPIPS by {change[1]:+.3f} on clean "
            f"latents, by {change[2]:+.2f} dB and {change[3]:+.3f} on noisy ones."
        )
    return "\n".join(lines)


def _stability(tau: float, of: Run, first: int) -> str:
    seen = {}
    for name in ("discriminator_accuracy", "adaptive_weight", "discriminator_loss", "loss"):
        # The metrics of the update that follows step `first` are recorded as those of step `first + 1`.
        seen[name] = [value for step, value in of.metric("decoder", name).items() if step > first]
    accuracy, weight = seen["discriminator_accuracy"], seen["adaptive_weight"]
    numbers = np.array(list(seen.values()))
    return (
        f"| {tau:g} | {min(accuracy):.3f} to {max(accuracy):.3f} | {min(weight):.3g} to {max(weight):.3g} "
        f"| {seen['discriminator_loss'][-1]:.3f} | {np.sum(~np.isfinite(numbers))} of {numbers.size:,} |"
    )
