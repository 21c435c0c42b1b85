"""MF-RAE at 256 pixels, first of two stages: consistency mid-training of a flow map from a trained DiT^DH-XL.

    python -m rae_jax.main --config=configs/mf_rae_cmt_256.py --config.data.path=TFDS_DIR \\
        --config.flow.weights=DIR --config.stats.weights=DIR --config.decoder.weights=DIR

Batch, learning rate and average are the released ones; the number of steps is ours. Nothing of it has been run yet.
`configs/mf_rae_mfd_256.py` continues from `<workdir>/mid_training/weights`.
"""

from ml_collections import ConfigDict

from configs import dith_xl


def get_config(variant: str = "XL") -> ConfigDict:
    config = dith_xl.get_config(variant)
    config.stages = ("mid_training",)
    train = config.mid_training.train
    train.steps = 20_000
    train.batch_size = 8  # noise vectors, of which each gives 8 pairs
    train.ema_decay = 0.999
    train.optimizer.learning_rate = 1e-4
    config.mesh.fsdp = 8
    config.sampling.num_steps = 0  # the teacher has been sampled where it was trained
    return config
