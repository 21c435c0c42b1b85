"""MF-RAE at 256 pixels, second of two stages: MeanFlow distillation after consistency mid-training.

    python -m rae_jax.main --config=configs/mf_rae_mfd_256.py --config.data.path=TFDS_DIR \\
        --config.mid_training.weights=DIR --config.flow.weights=DIR --config.encoder.weights=DIR \\
        --config.stats.weights=DIR --config.decoder.weights=DIR

Reported by the paper: FID 2.03 in one step, 1.89 in two; `configs/mf_rae_mfd_256.py:jvp` has the exact derivative, with
1.96 and 1.87. Batch, learning rate and average are the released ones; the number of steps is ours, the paper says 21
H100 days. Nothing of it has been run yet.
"""

from collections.abc import Sequence

from ml_collections import ConfigDict

from configs import variants
from configs.mf_rae_cmt_256 import flow_map_of_dit_dh_xl, mid_training

STAGES = {"cmt": "mid_training", "mfd": "flow_map"}  # by the words that name them


def get_config(variant: str = "") -> ConfigDict:
    return meanflow(256, variant, file="configs/mf_rae_mfd_256.py")


def meanflow(image_size: int, variant: str, *, file: str) -> ConfigDict:
    """MeanFlow distillation.

    Raises:
      ValueError: `variant` is unknown; `file` is named.
    """
    words = variants.words_of(variant, ("jvp",), file=file)
    config = flow_map_of_dit_dh_xl(image_size)
    config.stages = ("flow_map",)
    if "jvp" in words:
        config.flow_map.derivative = "jvp"
    train = config.flow_map.train
    train.steps = 200_000
    train.batch_size, train.ema_decay = (256, 0.9999) if image_size == 256 else (128, 0.9995)
    train.max_gradient_norm = 1e4  # without mid-training the paper sees 1e5 by the second epoch
    train.optimizer.learning_rate = 1e-4
    return config


def on_another_generator(config: ConfigDict, words: Sequence[str], *, transform: str, file: str) -> None:
    """Gives `config` those of both stages that are among `words`, or both, with the numbers of 256 pixels."""
    chosen = [word for word in words if word in STAGES] or STAGES
    config.stages = tuple(stage for word, stage in STAGES.items() if word in chosen)
    config.mid_training = mid_training(256, "paper", file=file).mid_training
    config.flow_map = meanflow(256, "", file=file).flow_map
    for stage in STAGES.values():
        config[stage].train.transform = transform
    config.sampling.num_steps = 0  # the teacher has been sampled where it was trained
    config.mesh.fsdp = 8 if "mid_training" in config.stages else 16  # mid-training has 8 trajectories
