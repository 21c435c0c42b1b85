"""RPiAE's three stages on DINOv2-B with a ViT-XL decoder, on ImageNet at 256 pixels.

    python -m rae_jax.main --config=configs/rpiae_dinov2b_vitxl.py --config.data.path=TFDS_DIR \\
        --config.encoder.weights=DIR --config.discriminator.weights=DINO_VIT_S8_FILE

Encoder and decoder are trained together under pivot regularisation (I), then the variational bridge alone (II), then
the decoder for what the bridge restores (III). `configs/rpiae_xl.py` generates in the latent space that they leave.
Words after the colon, joined by hyphens, change it (`configs/rpiae_dinov2b_vitxl.py:conv-width32`):

    width32 width128     channels of the latent, instead of 64
    conv                 the convolutional decoder of the preliminary experiments and of Table 5b
    joint                everything at once in a single stage, the baseline of Table 5a
    frozen               only stages II and III after RAE's decoder: the encoder stays as it was
    paper                the paper's text: batches of 512 in every stage, pivot weight 1, and a bridge that decodes
                         samples of its posterior

Without words it is the release: batches of 256, 512 and 256, the bridge decodes the mode, its rate falls until epoch 16
of 32, and no tokens are normalised. Reported by the paper: rFID 0.50, PSNR 21.3, SSIM 0.525, LPIPS 0.216. With
`--config.linear_head.weights=DIR_OF_DINOV2_WITH_HEAD` the published classifier is tried on the encoder as it was and as
stage I leaves it: 84.56 and 84.18 %. Nothing of it has been run at full size with this code yet.
"""

from ml_collections import ConfigDict

from configs import architectures, base, released, variants
from configs.rae_dinov2b_vitxl import adversarial_stage, reconstruction_stage
from rae_jax.models.decoder import SIZES
from rae_jax.models.kl_vae import RPIAE_CONV_DECODER

WIDTHS = {"width32": 32, "width128": 128}
WORDS = (*WIDTHS, "conv", "joint", "frozen", "paper")


def get_config(variant: str = "") -> ConfigDict:
    words = variants.words_of(variant, *([word] for word in WORDS), file="configs/rpiae_dinov2b_vitxl.py")
    config = base.get_config()
    config.dtype = "bfloat16"
    released.use_pretrained_encoder(
        config, "dinov2_b"
    )  # not scanned: the pivot is balanced by its last block's gradient
    released.use_bridge(config, latent_channels=next((WIDTHS[word] for word in words if word in WIDTHS), 64))
    use_decoder(config, convolutional="conv" in words)
    config.linear_head.model = ConfigDict(dict(num_classes=1000))

    first = "decoder" if "frozen" in words else "pivot"
    config.stages = (first, "bridge", "specialisation")
    adversarial = 512 if "paper" in words else 256
    adversarial_stage(config, first, epochs=16, batch_size=512 if first == "decoder" else adversarial)
    reconstruction_stage(config.bridge.train, epochs=32)
    config.bridge.train.optimizer.decay_end_epoch = 16
    adversarial_stage(config, "specialisation", epochs=16, batch_size=adversarial)
    config.bridge.latent = "mode"
    config.feature_stats.weights = "identity"
    if "paper" in words:
        config.bridge.train.optimizer.decay_end_epoch = 32
        config.bridge.latent = "sample"
        config.pivot.pivot_weight = 1.0
    if "joint" in words:
        config.stages = ("pivot",)
        config.pivot.trains = ("encoder", "decoder", "bridge_encoder", "bridge_decoder")

    config.mesh.fsdp = 8
    return config


def use_decoder(config: ConfigDict, *, convolutional: bool) -> None:
    """Fills in `config.decoder` for images of 256 pixels from 16 x 16 tokens."""
    if convolutional:
        config.decoder.family = "conv"
        config.decoder.model = ConfigDict(RPIAE_CONV_DECODER)
    else:
        config.decoder.model = architectures.vit_decoder(patch_size=16, **SIZES["xl"], scan=True)
