"""Networks that look at images and judge them: the perceptual distance, FID's Inception, the discriminator."""

from ml_collections import ConfigDict

from rae_jax.components.component import Component, of_module, spec
from rae_jax.models.discriminator import DinoDiscriminator, DinoFeatures, Heads
from rae_jax.models.inception import IMAGE_SIZE, Inception
from rae_jax.models.lpips import LPIPS


def lpips(config: ConfigDict) -> Component:
    """The perceptual distance of two images."""
    return _lpips(config, "lpips", config.lpips.network, "config.lpips.network")


def lpips_alexnet(config: ConfigDict) -> Component:
    """The perceptual distance that is reported, whatever network the loss has."""
    return _lpips(config, "lpips_alexnet", "alexnet", "AlexNet, as config.lpips_alexnet always is")


def _lpips(config: ConfigDict, name: str, network: str, described_by: str) -> Component:
    images = spec(64, 64, 3)  # no parameter depends on the size
    return of_module(
        config, name, lambda dtype: LPIPS(network), images, images, kind="lpips", described_by=described_by
    )


def inception(config: ConfigDict) -> Component:
    """The network whose features define FID and rFID."""
    images = spec(IMAGE_SIZE, IMAGE_SIZE, 3)
    return of_module(config, "inception", lambda dtype: Inception(), images, kind="inception_fid")


def discriminator(config: ConfigDict) -> Component:
    """The frozen part of the discriminator, its DINO."""
    fields = config.discriminator.model.to_dict()
    size = fields["image_size"]
    return of_module(
        config,
        "discriminator",
        lambda dtype: DinoFeatures(**fields, dtype=dtype),
        spec(size, size, 3),
        kind="dino_disc",
    )


def with_heads(config: ConfigDict) -> DinoDiscriminator:
    """The whole discriminator of the adversarial loss: the heads that are trained, on the frozen DINO."""
    section = config.discriminator
    return DinoDiscriminator(discriminator(config).module, Heads(section.kernel_size, section.spectral_norm))
