"""The shipped configs have, field by field, the numbers of the official releases; what differs is listed as ours.

The numbers are those of the releases' own configuration files and code: bytetriper/RAE (December 2025), sony/mf-rae,
360CVGroup/RPiAE, and of RAC's paper, which has no code. Fields are read from the whole config, so that a default of
`configs/base.py` cannot change unseen either. `OURS` is where a config does not follow its release, with the released
value in the comment.
"""

import pytest

from configs import (
    dith_xl,
    mf_rae_cmt_256,
    mf_rae_cmt_512,
    mf_rae_mfd_256,
    mf_rae_mfd_512,
    mf_rae_mft_256,
    mf_rae_mft_512,
    rac_256,
    rae_dinov2b_vitxl,
    rpiae_dinov2b_vitxl,
    rpiae_xl,
)


def under(prefix, **fields):
    return {f"{prefix}.{name}": value for name, value in fields.items()}


def adamw(stage, *, clip_norm=1.0, learning_rate=2e-4, beta2=0.95, **fields):
    return under(
        f"{stage}.train.optimizer", beta1=0.9, beta2=beta2, epsilon=1e-8, weight_decay=0.0, clip_norm=clip_norm,
        learning_rate=learning_rate, **fields,
    )  # fmt: skip


LINEAR_FALL = {"shape": "linear", "final_learning_rate": 2e-5, "warmup_from_zero": False}
COSINE_FALL = {"shape": "cosine", "final_learning_rate": 2e-5, "warmup_from_zero": True}
XL = {"width": 1152, "depth": 28, "num_heads": 16, "patch_size": 1, "mlp_ratio": 4.0, "swiglu": True, "rms_norm": True}
IMAGES = {"data.image_size": 256, "flow.num_classes": 1000}

GENERATOR = (
    IMAGES
    | adamw("flow", **LINEAR_FALL)
    | under("flow.train", batch_size=1024, ema_decay=0.9995, gradient_accumulation=1, transform="center_crop_flip")
    | under("flow", objective="velocity", label_dropout=0.1, shift_base=4096)
)
DIT_DH = GENERATOR | under(
    "flow.model", **XL, head_width=2048, head_depth=2, head_num_heads=16, qk_norm=False, absolute_positions=True
)
# The sampler's 50 points end at t = 0.001: 49 evaluations on the grid "released".
DIT_DH_SAMPLING = under("sampling", method="euler", guidance_scale=1.0, num_samples=50_000, labels="permuted")

MID_TRAINING = (
    IMAGES
    | adamw("mid_training", learning_rate=1e-4, shape="constant")
    | under("mid_training.train", batch_size=8, ema_decay=0.999)
    | under("mid_training", initial="flow", label_dropout=0.1, trajectory_steps=15, trajectory_method="euler")
)
FLOW_MAP = (
    IMAGES
    | adamw("flow_map", learning_rate=1e-4, shape="constant")
    | under("flow_map", eta=1.0, derivative="finite_difference", dt=0.005, unequal_share=0.25, adaptive_power=1.0,
            label_dropout=0.1, initial="mid_training")
    | under("sampling", flow_map_times=((1.0, 0.0), (1.0, 0.5, 0.0)), guidance_scale=1.0)
)  # fmt: skip
AT_256, AT_512 = (
    under("flow_map.train", batch_size=256, ema_decay=0.9999),
    under("flow_map.train", batch_size=128, ema_decay=0.9995) | {"data.image_size": 512},
)

LIGHTNING_DIT = (
    GENERATOR
    | under("flow.model", **XL, qk_norm=True, rope=True, learn_sigma=False)
    | under("flow", family="lightning_dit", time_distribution="logit_normal", logit_normal_mean=0.0,
            logit_normal_std=1.0)
    | under("sampling", method="euler", grid="released", guidance="autoguidance", guidance_scale=2.05,
            guidance_interval=(0.0, 1.0))
    | {"stats.weights": "identity", "bridge_encoder.model.latent_channels": 64}
)  # fmt: skip
IMAGE_LOSS = {"lpips_weight": 1.0, "lpips_from_step": 0, "lpips_range": (-1.0, 1.0), "gan_weight": 0.75,
              "adaptive_weight": "last_layer", "adaptive_maximum": 1e4, "discriminator_fakes": "clean"}  # fmt: skip
DISCRIMINATOR = under(
    "discriminator", loss="hinge", kernel_size=9, spectral_norm=True, augmentation_probability=1.0, cutout=0.0
)
CRITIC_ADAMW = under("loss.discriminator_optimizer", beta1=0.9, beta2=0.95, weight_decay=0.0, clip_norm=0.0,
                     learning_rate=2e-4, **COSINE_FALL)  # fmt: skip
PIVOT = (
    adamw("pivot", clip_norm=0.0, **COSINE_FALL)
    | under("pivot.train", ema_decay=0.9978, transform="random_crop")
    | under("pivot.loss", **IMAGE_LOSS)
    | under("pivot", **CRITIC_ADAMW)
    | under("pivot", trains=("encoder", "decoder"), initial=("encoder",), noise_tau=0.8, noise_distribution="uniform",
            pivot_weight=0.75, pivot_balance="adaptive", pivot_balance_layer="scale", pivot_fixed_steps=1000,
            pivot_features="plain")
    | DISCRIMINATOR
)  # fmt: skip
BRIDGE = (
    adamw("bridge", clip_norm=0.0, **COSINE_FALL)
    | under("bridge.train", batch_size=512, ema_decay=0.9978)
    | under("bridge", noise_tau=0.8, noise_distribution="uniform", feature_weight=1.0, kl_weight=1e-3,
            pixel_weight=0.05)
)  # fmt: skip
DECODER = (
    adamw("decoder", clip_norm=0.0, **COSINE_FALL)
    | under("decoder.train", batch_size=512, ema_decay=0.9978, transform="random_crop")
    | under("decoder.loss", **IMAGE_LOSS)
    | under("decoder", **CRITIC_ADAMW)
    | under("decoder", noise_tau=0.8, noise_distribution="uniform")
    | DISCRIMINATOR
)
CODER = (
    under("coder.train.optimizer", beta1=0.9, beta2=0.99, learning_rate=3e-4)
    | under("coder", num_steps=4, random_times=True, noise=0.05, path_weight=0.1, latent_weight=1.0, pixel_weight=1.0,
            round_trip_weight=1.0, mean_velocity_weight=0.0, encodes=False)
    | {"coder.model.state_channels": 4, "teacher.model.latent_channels": 4, "sampling.coder_steps": 4}
)  # fmt: skip

OURS = {
    "dith_xl": {
        "flow.time_distribution": "uniform",  # logit_normal in December; uniform in the first release
        "sampling.num_steps": 50, "sampling.grid": "full",  # 49 evaluations, "released"
    },
    "cmt": {
        "mid_training.pairs": 8,  # 64 a trajectory at 256 pixels; 8 at 512
        "mid_training.trajectory_grid": "full", "mid_training.time_labels": "true",  # both "released"
    },
    "rpiae_xl": {
        "flow.train.ema_decay": 0.9999,  # 0.9995
        "flow.train.optimizer.shape": "constant",  # a prefix of the fall over 800 epochs
        # The guide is the generator itself after 20 epochs.
        "guide.train.ema_decay": 0.9999, "guide.model.width": 384, "guide.model.depth": 12,
        "guide.train.optimizer.learning_rate": 2e-4, "guide.train.batch_size": 1024,
        "guide.time_distribution": "logit_normal", "guide.label_dropout": 0.1,
        "sampling.num_steps": 49,  # 249
    },
    "rpiae_dinov2b_vitxl": {
        "pivot.train.batch_size": 512,  # 256; the paper has 512
        "bridge.latent": "sample",  # "mode"; the paper samples
    },
}  # fmt: skip

CONFIGS = {
    "dith_xl": (dith_xl.get_config(), DIT_DH | DIT_DH_SAMPLING | OURS["dith_xl"]),
    "dith_xl:XL-512": (
        dith_xl.get_config("XL-512"), DIT_DH | DIT_DH_SAMPLING | OURS["dith_xl"] | {"data.image_size": 512}
    ),
    "mf_rae_cmt_256": (mf_rae_cmt_256.get_config(), MID_TRAINING | OURS["cmt"]),
    "mf_rae_cmt_512": (mf_rae_cmt_512.get_config(), MID_TRAINING | OURS["cmt"] | {"data.image_size": 512}),
    "mf_rae_mfd_256": (mf_rae_mfd_256.get_config(), FLOW_MAP | AT_256),
    "mf_rae_mfd_512": (mf_rae_mfd_512.get_config(), FLOW_MAP | AT_512),
    "mf_rae_mft_256": (mf_rae_mft_256.get_config(), FLOW_MAP | AT_256 | {"flow_map.eta": 0.0}),
    "mf_rae_mft_512": (mf_rae_mft_512.get_config(), FLOW_MAP | AT_512 | {"flow_map.eta": 0.0}),
    "rpiae_xl": (rpiae_xl.get_config(), LIGHTNING_DIT | OURS["rpiae_xl"]),
    "rpiae_xl:800-250": (
        rpiae_xl.get_config("800-250"),
        LIGHTNING_DIT | OURS["rpiae_xl"] | {"flow.train.optimizer.shape": "linear", "sampling.num_steps": 249},
    ),
    "rae_dinov2b_vitxl": (rae_dinov2b_vitxl.get_config(), DECODER),
    "rpiae_dinov2b_vitxl": (rpiae_dinov2b_vitxl.get_config(), PIVOT | BRIDGE | OURS["rpiae_dinov2b_vitxl"]),
    "rac_256": (rac_256.get_config(), CODER | {"coder.round_trip": "latent"}),
    "rac_256:state_1x": (rac_256.get_config("state_1x"), CODER | {"coder.round_trip": "state"}),
}  # fmt: skip


def value_of(config, field):
    for name in field.split("."):
        config = config[name]
    return config


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_has_the_numbers_of_its_release(name):
    config, expected = CONFIGS[name]
    assert {field: value_of(config, field) for field in expected} == expected
