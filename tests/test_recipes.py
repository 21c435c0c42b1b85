"""The shipped configs do what the official runs do, field by field: the recipes are data, read from their files.

`COUNTERPARTS` says which stage of which config is which recipe, `ON_PURPOSE` what differs and why: a difference that is
not listed fails, and so does a listed one that is none. Fields that one side does not have are not compared.
"""

import fnmatch
import functools
import importlib
import math
import numbers
from typing import Any

import pytest
from ml_collections import ConfigDict
from recipe_terms import RECIPES, described, effective, flattened, sampled

from rae_jax.models.dit_dh import SIZES
from rae_jax.models.vit import PRETRAINED

# By recipe: a config, and the stage that is it; of the recipes of sampling "guided", "unguided" or "".
COUNTERPARTS = {
    **{f"rae_stage1_{name}": (f"rae_{name}_vitxl", "decoder") for name in ("siglip2b", "maeb", "dinov2s", "dinov2l")},
    "rae_stage1_dinov2b": ("rae_dinov2b_vitxl", "decoder"),
    **{
        f"rae_stage1_dinov2b_{word}": (f"rae_dinov2b_vitxl:{word}", "decoder")
        for word in ("december", "november", "october", "512")
    },
    "paper_rae_table12": ("rae_dinov2b_vitxl:paper", "decoder"),
    "rae_stats": ("rae_dinov2b_vitxl", "stats"),
    **{f"rae_stage2_dit_dh_{size.lower()}_256": (f"dith_xl:{size}", "flow") for size in ("S", "B", "L", "XL")},
    "rae_stage2_dit_dh_xl_256_october": ("dith_xl:october", "flow"),
    "rae_stage2_dit_dh_xl_512": ("dith_xl:XL-512", "flow"),
    "rae_stage2_dit_xl_256": ("dit_xl:dinov2_b", "flow"),
    "rae_stage2_dit_xl_256_siglip2": ("dit_xl:siglip2_b", "flow"),
    "rae_stage2_dit_xl_256_mae": ("dit_xl:mae_b", "flow"),
    "rae_sampling_256_unguided": ("dith_xl:XL", "unguided"),
    "rae_sampling_256_autoguidance": ("dith_xl:XL", "guided"),
    "rae_sampling_512_autoguidance": ("dith_xl:XL-512", "guided"),
    **{f"mf_rae_cmt_{size}": (f"mf_rae_cmt_{size}", "mid_training") for size in (256, 512)},
    **{f"mf_rae_{run}": (f"mf_rae_{run}", "flow_map") for run in ("mfd_256", "mfd_512", "mft_256", "mft_512")},
    "mf_rae_sampling": ("mf_rae_mfd_512", ""),
    "rpiae_stage1": ("rpiae_dinov2b_vitxl", "pivot"),
    "rpiae_stage2": ("rpiae_dinov2b_vitxl", "bridge"),
    "rpiae_stage3": ("rpiae_dinov2b_vitxl", "specialisation"),
    "rpiae_lightning_dit": ("rpiae_xl:800", "flow"),
    "rpiae_sampling": ("rpiae_xl:800", "guided"),
    "bagel_t2i": ("rpiae_t2i:vae", "mixture"),
    "bagel_edit": ("rpiae_edit:vae", "mixture"),
    "paper_rpiae_t2i": ("rpiae_t2i", "mixture"),
    **{f"raev2_imagenet_{k}": (f"raev2_dinov3l:{k}", "flow") for k in ("k1", "k7", "k23")},
    **{f"raev2_stage1_{k}_imagenet": (f"raev2_dinov3l:{k}", "decoder") for k in ("k7", "k23")},
    **{f"raev2_stage1_{k}_general": (f"raev2_dinov3l:{k}-general", "decoder") for k in ("k7", "k23")},
    "raev2_t2i": ("raev2_t2i", "flow"),
    "raev2_sampling_imagenet_k7": ("raev2_dinov3l:k7", "guided"),
    "paper_rac": ("rac_256:coder_0.1x", "coder"),
    "scale_rae_stage1": ("t2i_qwen1_5b_dit2_4b", "text_to_image"),
    "scale_rae_stage1_webssl": ("t2i_qwen1_5b_dit2_4b:webssl", "text_to_image"),
    "scale_rae_stage1_vae": ("t2i_qwen1_5b_dit2_4b:vae", "text_to_image"),
    "scale_rae_stage2": ("t2i_qwen1_5b_dit2_4b:stage2", "text_to_image"),
    "paper_rae_t2i": ("t2i_qwen1_5b_dit2_4b:paper", "text_to_image"),
}  # fmt: skip

ENCODERS = {published.checkpoint: name for name, published in PRETRAINED.items()}
THAWED = "December's trainer thaws the tables by accident; trained_tables does so on demand"
TRAINER = "the released code names 1400 epochs; trained are those of which results are reported"
BFLOAT16 = "as the first release and its branch for TPUs; --config.dtype=bfloat16_3x is nearer to float32 with TF32"
NEAR_TF32 = "three bfloat16 passes a product: nearer to float32 than the TF32 that the release allows"
ONCE = "dropping labels once more in the student contradicts its target; label_dropout_network does so on demand"
NEVER = "the release's rate begins to fall after 6.4 million steps, far beyond any run"
PARTS = "parts of a batch change nothing but memory; the batch is the same"
TABLE = "the recipe counts the position table of 256 pixels"
SMALL = "RPiAE's images have 256 pixels, 16 x 16 latents"
SHIFT = "RAE's, of the latents' size, in training and sampling"
RPIAE = "as RPiAE trains on Bagel's code"
REPORTED = "text guidance of 4 alone, as RPiAE says; the image's on demand"
WORDS = "the same in other words"
CROPPED = "ADM's centre crop, which the release has done beforehand"
EPOCHS = "the recipe's rates are of ImageNet's epochs of 2,502 steps; its note and the code have 34,000"
FLOAT32 = "float32 in three passes; muon_products='released' has the half precisions"

ON_PURPOSE: dict[str, dict[str, str]] = {
    "rae_stage1_*": {"architecture.positions_trained": THAWED, "precision.compute": WORDS},
    "rae_stage1_dinov2b_512": {"architecture.parameters_millions": TABLE},
    "rae_stage1_dinov2b_november": {"discriminator.fakes": WORDS},
    "paper_rae_table12": {
        "optimizer.name": "Adam is AdamW without decay",
        "data.resize": "the release's resize: the shorter side, which keeps the aspect ratio",
    },
    "rae_stats": {
        "script.writes": "the released file, which the generators saw, has no mean; December's script adds one",
    },
    "rae_stage2_*": {
        "architecture.*_trained": THAWED, "epochs": TRAINER, "steps": TRAINER, "precision.compute": BFLOAT16,
    },
    "rae_stage2_*_512": {"architecture.parameters_millions": TABLE},
    "mf_rae_cmt_*": {
        "learning_rate.shape": NEVER, "learning_rate.final": NEVER, "learning_rate.warmup_steps": NEVER,
        "learning_rate.decay_end_step": NEVER,
    },
    "mf_rae_[cm][mf]*": {
        "precision.compute": NEAR_TF32, "label_dropout_network": ONCE, "label_dropout_student_total": ONCE,
        "accumulation_steps": PARTS,
    },
    "mf_rae_*_512": {"data.resize": WORDS, "architecture.parameters_millions": TABLE},
    "raev2_*": {"precision.compute": WORDS},
    "raev2_[is]*": {"data.dataset": CROPPED, "data.crop": CROPPED},
    "raev2_stage1_*": {"data.resize": CROPPED},
    "raev2_stage1_*_general": {
        "learning_rate.at_fraction.0*": EPOCHS, "discriminator.learning_rate.at_fraction_of_own_updates.*": EPOCHS,
    },
    "raev2_[it]*": {
        "latent.normalisation": WORDS, "learning_rate.warmup": WORDS,
        "optimizer.matrices.orthogonalisation": FLOAT32,
    },
    "rpiae_*": {"precision.compute": WORDS},
    "rpiae_stage?": {"architecture.positions_trained": THAWED, "discriminator.fakes": WORDS},
    "scale_rae_*": {
        "precision.compute": "the default of a TPU, on which the scripts ran: one bfloat16 pass a product",
        "precision.noise": "noise of 8 bits' mantissa is an accident of the code",
        "sampling.sampler": "the same, and named for what its code does",
    },
    "scale_rae_stage1_webssl": {
        "architecture.head.in_channels": "the script's, which is SigLIP's; WebSSL has 1024",
        "latent.shape_chw": "likewise", "time.shift": "of the latent's own dimension",
    },
    "scale_rae_stage1_vae": {
        "architecture.head.in_channels": "the recipe has SigLIP's; latents of 16 channels in patches of 2 x 2 are 64",
    },
    "rpiae_lightning_dit": {"architecture.*_trained": THAWED, "epochs": TRAINER, "steps": TRAINER},
    "bagel_*": {
        "architecture.max_latent_side": SMALL, "sampling.shift": SHIFT, "time.shift": SHIFT, "steps": RPIAE,
        "learning_rate.at_fraction.0": "the warm-up's first update has a 2,000th of the rate, and not none",
    },
    "bagel_t2i": {"sampling.resolution_px": SMALL},
    "bagel_edit": {"sampling.image_guidance": REPORTED, "sampling.interval": REPORTED,
                   "sampling.renormalisation": REPORTED},
}  # fmt: skip


def counterpart(name: str) -> tuple[str, str] | None:
    """The config and stage of a recipe: of one that is not listed, what its encoder, sizes and pixels say."""
    if name in COUNTERPARTS:
        return COUNTERPARTS[name]
    recipe = flattened(effective(name))
    pixels = ["512"] if recipe.get("data.resolution_px") == 512 else []
    encoder = ENCODERS.get(recipe.get("encoder.checkpoint"))
    if name.startswith("rae_stage1_") and encoder:
        decoder = {768: ["vitb"], 1024: ["vitl"]}.get(recipe["architecture.width"], [])
        return f"rae_{encoder.replace('_', '')}_vitxl:{'-'.join([*decoder, *pixels, 'december'])}", "decoder"
    if name.startswith("rae_stage2_") and recipe.get("architecture.kind") == "DiT^DH":
        widths = {size["width"]: backbone for backbone, size in SIZES.items()}
        release = ["october"] if recipe.get("time.distribution") == "uniform" else []
        return f"dith_xl:{'-'.join([widths[recipe['architecture.backbone.width']], *pixels, *release])}", "flow"
    if name.startswith("rae_stage2_") and recipe.get("architecture.kind") == "LightningDiT" and encoder:
        return f"dit_xl:{encoder}", "flow"
    return None


@functools.cache
def config_of(name: str) -> ConfigDict:
    file, _, variant = name.partition(":")
    return importlib.import_module(f"configs.{file}").get_config(*[variant] * bool(variant))


def purposes(recipe: str) -> dict[str, str]:
    """Field patterns and reasons of all entries that the recipe's name fits."""
    fitting = [fields for name, fields in ON_PURPOSE.items() if fnmatch.fnmatch(recipe, name)]
    return {field: reason for fields in fitting for field, reason in fields.items()}


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, numbers.Real) and isinstance(theirs, numbers.Real) and not isinstance(ours, bool):
        return math.isclose(ours, theirs, rel_tol=2e-5, abs_tol=1e-12)  # recipes have six digits
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == theirs


@functools.cache
def compared(name: str) -> dict[str, tuple[Any, Any]]:
    """`(ours, the release's)` of every field that both have."""
    file, stage = counterpart(name)
    recipe = effective(name)
    if stage in ("guided", "unguided", ""):
        ours = sampled(config_of(file), stage == "guided")
    else:
        ours = described(config_of(file), stage, recipe)
    theirs = flattened(recipe)
    return {field: (ours[field], theirs[field]) for field in theirs if field in ours and theirs[field] is not None}


def differences(name: str) -> dict[str, tuple[Any, Any]]:
    return {field: values for field, values in compared(name).items() if not same(*values)}


@pytest.mark.parametrize("name", RECIPES)
def test_a_config_does_what_its_official_run_does(name):
    if counterpart(name) is None:
        pytest.skip(f"no config is {name}")
    told = sum(value is not None for value in flattened(effective(name)).values())
    few = 7 if told >= 7 else told - 2  # a paper tells no more
    assert len(compared(name)) >= few, f"{name} has hardly a field of those that a config has"
    reasons = purposes(name)
    unlisted = {
        field: values
        for field, values in differences(name).items()
        if not any(fnmatch.fnmatch(field, pattern) for pattern in reasons)
    }
    assert not unlisted, f"{counterpart(name)}: (ours, the release's) differ"


def test_every_reason_is_of_a_difference_that_there_is():
    if not COUNTERPARTS.keys() & RECIPES.keys() >= {"rae_stats", "rpiae_stage1", "mf_rae_mft_512"}:
        pytest.skip("some of the recipes that the reasons are for are not here")
    needed = {
        (entry, pattern)
        for name in filter(counterpart, RECIPES)
        for field in differences(name)
        for entry, reasons in ON_PURPOSE.items()
        for pattern in reasons
        if fnmatch.fnmatch(name, entry) and fnmatch.fnmatch(field, pattern)
    }
    listed = {(entry, pattern) for entry, reasons in ON_PURPOSE.items() for pattern in reasons}
    assert listed == needed, "ON_PURPOSE has reasons of differences that there are not"
