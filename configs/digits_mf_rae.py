"""MF-RAE on a laptop: the digits experiment, and after it a flow map that needs one or two network evaluations.

    python -m rae_jax.main --config=configs/digits_mf_rae.py

To `configs/digits.py` it adds consistency mid-training, which starts a flow map from the 50-step generator, and
MeanFlow distillation. 1,000 digits are then also sampled in one step and in two: `samples_1step.npz` and so on.
"""

from ml_collections import ConfigDict

from configs import digits


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; `configs/digits_mf_rae.py:tiny` takes seconds, for tests: nothing is learnt."""
    config = digits.get_config(variant)
    config.stages = (*config.stages, "mid_training", "flow_map")
    # A batch of mid-training is one of trajectories, each with 15 evaluations of the teacher and 8 pairs to learn from.
    digits.stage(config.mid_training.train, steps=1500, batch_size=32, learning_rate=1e-3, ema_decay=0.998)
    digits.stage(config.flow_map.train, steps=2000, batch_size=128, learning_rate=3e-4, ema_decay=0.998)
    config.flow_map.train.max_gradient_norm = 1e4
    if variant == "tiny":
        config.mid_training.trajectory_steps = 3
        config.mid_training.pairs = 2
        for name in ("mid_training", "flow_map"):
            digits.shorten(config[name].train)
    return config
