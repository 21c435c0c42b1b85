"""MF-RAE at 512 pixels, second of two stages: MeanFlow distillation after consistency mid-training.

    python -m rae_jax.main --config=configs/mf_rae_mfd_512.py --config.data.path=TFDS_DIR \\
        --config.mid_training.weights=DIR --config.flow.weights=DIR --config.encoder.weights=DIR \\
        --config.stats.weights=DIR --config.decoder.weights=DIR

Reported by the paper: FID 3.23 in one step. Batch, learning rate and average are the released ones; the number of steps
is ours. Nothing of it has been run yet.
"""

from ml_collections import ConfigDict

from configs import mf_rae_mfd_256


def get_config(backbone: str = "XL") -> ConfigDict:
    config = mf_rae_mfd_256.get_config(f"{backbone}-512")
    train = config.flow_map.train
    train.batch_size = 128
    train.ema_decay = 0.9995
    return config
