"""MF-RAE at 256 pixels, first of two stages: consistency mid-training of a flow map from a trained DiT^DH-XL.

    python -m rae_jax.main --config=configs/mf_rae_cmt_256.py --config.data.path=TFDS_DIR \\
        --config.flow.weights=DIR --config.stats.weights=DIR --config.decoder.weights=DIR

Batch, pairs, learning rate and average are the released ones, and so is how the teacher's points are told to the flow
map: by evenly spaced times, although it walked the shifted grid. `configs/mf_rae_cmt_256.py:paper` has the true times
of the paper's equation. The number of steps is ours; the paper says 2.1 H100 days. Nothing of it has been run yet.
`configs/mf_rae_mfd_256.py` continues from `<workdir>/mid_training/weights`.
"""

from ml_collections import ConfigDict

from configs import architectures, base, released, variants
from rae_jax.models.dit_dh import SIZES

FEW_STEPS_512 = ((1.0, 0.0), (1.0, 0.5, 0.0), (1.0, 2 / 3, 1 / 3, 0.0), (1.0, 0.75, 0.5, 0.25, 0.0))  # times


def get_config(variant: str = "") -> ConfigDict:
    return mid_training(256, variant, file="configs/mf_rae_cmt_256.py")


def mid_training(image_size: int, variant: str, *, file: str) -> ConfigDict:
    """Consistency mid-training.

    Raises:
      ValueError: `variant` is unknown; `file` is named.
    """
    words = variants.words_of(variant, ("paper",), file=file)
    config = flow_map_of_dit_dh_xl(image_size)
    config.stages = ("mid_training",)
    section = config.mid_training
    section.pairs = 64 if image_size == 256 else 8  # of each trajectory: 512 a step, and 64
    if "paper" not in words:
        section.trajectory_grid = "released"
        section.time_labels = "released"
    train = section.train
    train.steps = 20_000
    train.batch_size = 8  # trajectories
    train.ema_decay = 0.999
    train.optimizer.learning_rate = 1e-4
    config.mesh.fsdp = 8
    return config


def flow_map_of_dit_dh_xl(image_size: int) -> ConfigDict:
    """A flow map with a DiT^DH-XL as its teacher, on DINOv2-B latents; nothing to train is listed yet."""
    config = base.get_config()
    # Nearest to the release's float32 with TF32. In bfloat16 the difference quotient, which divides rounding by 2 dt,
    # would be wrong by a sixth.
    config.dtype = "bfloat16_3x"
    released.use_rae(config, "dinov2_b", image_size)
    config.flow.model = architectures.dit_dh(**SIZES["XL"])
    config.sampling.num_steps = 0  # the teacher has been sampled where it was trained
    if image_size == 512:  # where the paper goes on to three and four steps
        config.sampling.flow_map_times = FEW_STEPS_512
    config.mesh.fsdp = 16
    return config
