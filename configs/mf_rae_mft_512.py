"""MF-RAE at 512 pixels, optional last stage: MeanFlow training on data, without a teacher, of a distilled flow map.

    python -m rae_jax.main --config=configs/mf_rae_mft_512.py --config.data.path=TFDS_DIR \\
        --config.mid_training.weights=DIR --config.encoder.weights=DIR \\
        --config.stats.weights=DIR --config.decoder.weights=DIR

`mid_training.weights` is the flow map to start from: the `flow_map/weights` of `configs/mf_rae_mfd_512.py`, or those of
mid-training. Nothing of it has been run yet.
"""

from ml_collections import ConfigDict

from configs.mf_rae_mfd_256 import meanflow


def get_config(variant: str = "") -> ConfigDict:
    config = meanflow(512, variant, file="configs/mf_rae_mft_512.py")
    config.flow_map.eta = 0.0
    return config
