"""RAEv2 in one step: MF-RAE's consistency mid-training and MeanFlow distillation on RAEv2's generator.

    python -m rae_jax.main --config=configs/raev2_one_step.py:cmt-mfd --config.data.path=TFDS_DIR \\
        --config.flow.weights=FILE --config.encoder.weights=FILE --config.stats.weights=FILE \\
        --config.decoder.weights=FILE

Nobody has published it. The teacher is the generator of `configs/raev2_dinov3l.py:k7`, the released `checkpoint.pt` or
one's own. The flow map is the same network with four more tokens, of the length of the interval, and predicts the data
too: its mean velocity is `(z_t - prediction) / max(t, 0.05)`. Its early output stays as the teacher's and is not used.
Numbers are MF-RAE's at 256 pixels (`configs/mf_rae_cmt_256.py`, `configs/mf_rae_mfd_256.py`). Words after the colon,
joined by hyphens, are the stages: `cmt`, `mfd`; both without a word. Nothing of it has been run at full size.
"""

from ml_collections import ConfigDict

from configs import base, raev2_dinov3l, variants
from configs.mf_rae_cmt_256 import mid_training
from configs.mf_rae_mfd_256 import meanflow

STAGES = {"cmt": "mid_training", "mfd": "flow_map"}


def get_config(variant: str = "") -> ConfigDict:
    """The experiment.

    Raises:
      ValueError: a word of `variant` is unknown.
    """
    words = variants.words_of(variant, ["cmt"], ["mfd"], file="configs/raev2_one_step.py") or list(STAGES)
    config = base.get_config()
    config.stages = tuple(stage for word, stage in STAGES.items() if word in words)
    config.dtype = "bfloat16_3x"  # a difference quotient divides its rounding by a small number
    raev2_dinov3l.latents(config, raev2_dinov3l.LAYERS["k7"])
    raev2_dinov3l.generator(config)
    config.mid_training = mid_training(256, "paper", file="configs/raev2_one_step.py").mid_training
    config.flow_map = meanflow(256, "", file="configs/raev2_one_step.py").flow_map
    for stage in STAGES.values():
        config[stage].train.transform = "center_crop"
    config.sampling.num_steps = 0  # the teacher has been sampled where it was trained
    config.sampling.internal_guidance_scale = 1.0
    config.mesh.fsdp = 8 if "mid_training" in config.stages else 16  # mid-training has 8 trajectories
    return config
