"""What a config of ours does, in the terms of the recipe files: their fields, their units, their words.

The files are those of `../shared/recipes`, or of the directory that `RAE_JAX_RECIPES` names. Numbers come from what a
run would be made of, not from the config alone: schedules are called, parameters counted, times drawn up. `described`
gives dotted names and values; a recipe's are `flattened`.
"""

import dataclasses
import importlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rae_jax.components.catalogue import component, trained_components
from rae_jax.components.conditions import condition
from rae_jax.components.generators import time_shift
from rae_jax.components.language import tells_features
from rae_jax.components.latent_spaces import IDENTITY, latent_space
from rae_jax.flow.times import MAX_TRAINING_TIME, sampling_times
from rae_jax.models.autoencoder import EPSILON
from rae_jax.models.diffaug import TRANSLATION
from rae_jax.models.embeddings import sincos_table
from rae_jax.models.language_model import SIZES as LANGUAGE_MODELS
from rae_jax.models.language_model import SIZES as QWENS
from rae_jax.models.vit import PRETRAINED
from rae_jax.objectives.cmt import all_pairs, label_times
from rae_jax.training.durations import resolve, steps_per_epoch
from rae_jax.training.muon import COEFFICIENTS, SAFETY, UPDATE_SCALE
from rae_jax.training.optimizer import make_optimizer

DIRECTORY = Path(os.environ.get("RAE_JAX_RECIPES") or Path(__file__).resolve().parents[2] / "shared" / "recipes")
RECIPES = {path.stem: path for path in sorted(DIRECTORY.glob("*.json"))}
IMAGES = 1_281_167  # of ImageNet's training split
SOURCES = {  # by source and path: what recipes call it, and its images
    ("tfds:imagenet2012", "data/imagenet"): ("ImageNet", IMAGES),
    ("conversations", "data/blip3o"): ("BLIP3o", 31_970_000),
    ("conversations", "data/rendered_text"): ("rendered text", 12_040_000),
    ("conversations", "data/flux"): ("FLUX synthetic", 24_390_000),
}
FRACTIONS = ("0", "0.01", "0.05", "0.1", "0.25", "0.5", "0.75", "0.9", "1")
GENERATORS = {"velocity", "consistency_mid_training", "meanflow"}


def effective(name: str) -> dict[str, Any]:
    """What the recipe `name` says of a run."""
    return json.loads(RECIPES[name].read_text())["effective"]


def flattened(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`; the terms of a loss, a list, are named by their first words."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = {_term(entry): entry for entry in value}
            if "language" in value:  # what stands beside it is of images
                value["image"] = value.pop("only")
        found |= flattened(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _term(entry: dict[str, Any]) -> str:
    words = {
        "L1 of pixels": "pixels", "L1": "l1", "LPIPS": "lpips", "adversarial": "adversarial", "pivot": "pivot",
        "squared distance of restored": "features", "mean of mu^2": "kl", "next-token": "language",
    }  # fmt: skip
    words |= {"the same for the early head": "the same for the early head"}
    return next((name for start, name in words.items() if entry["term"].startswith(start)), "only")


def described(config: ConfigDict, stage: str, recipe: dict[str, Any]) -> dict[str, Any]:
    """The fields of one stage; durations that a recipe gives for several lengths of a run are taken from it."""
    if config[stage].objective == "text_to_image":
        return flattened(_text_to_image(config, config[stage]))
    config = resolve(config, IMAGES)
    section = config[stage]
    if section.objective == "mixture_of_transformers":
        return flattened(_mixture(config, stage, recipe))
    found: dict[str, Any] = {
        "data": {} if tells_features(config) else _data(config, stage),
        "encoder": _encoder(config, stage),
        "precision": {"compute": config.dtype},
    }
    if section.objective == "latent_statistics":
        return flattened({"script": {"data": found["data"], "epsilon": EPSILON, "writes": _writes(section)}})
    found |= _training(config, stage, recipe)
    if section.objective in GENERATORS:
        found |= _generator(config, stage)
        if tells_features(config):  # whose epochs are of steps, not of images
            found |= _told(config) | {"epochs": f"20 of {section.train.steps // 20:,} steps"}
    elif section.objective == "bridge":
        found |= _bridge(config)
    elif section.objective == "rectified_coder":
        found |= _coder(config)
    else:
        found |= _reconstruction(config, stage, recipe)
    return flattened(found)


def _text_to_image(config: ConfigDict, section: ConfigDict) -> dict[str, Any]:
    """Language model and DiT in one, whose two optimizers each have their rates."""
    train, sampling, fields = section.train, config.sampling, config.text_dit.model.to_dict()
    published = {
        name: it for name, it in PRETRAINED.items() if it.architecture.items() <= config.encoder.model.to_dict().items()
    }
    (encoder,) = [it.checkpoint for it in published.values()]
    (language_model,) = [
        name for name, it in QWENS.items()
        if it.items() - {("vocabulary", it["vocabulary"])} <= config.language_model.model.to_dict().items()
    ]  # fmt: skip
    size = language_model.removeprefix("qwen2.5-").upper()
    (tokens, channels), each = latent_space(config).shape, fields["patch_size"] ** 2
    side = math.isqrt(tokens // each)
    billions = _count(config, "text_dit") / 1e9
    groups = {"language_model": train.optimizer, "head": section.image_optimizer}
    times = sampling_times(sampling.num_steps, shift=time_shift(config), grid=sampling.grid)
    steps, batch = train.steps or None, train.batch_size
    return {
        "task": "text-to-image, language model with diffusion head",
        "architecture": {
            "language_model": f"Qwen2.5-{size}-Instruct", "query_tokens": tokens // each,
            "head": {
                "kind": "LightningDiT", "width": fields["width"], "depth": fields["depth"],
                "heads": fields["num_heads"], "patch_tokens": fields["patch_size"],
                "condition_width": fields["condition_width"], "in_channels": channels,
                "parameters_billions": round(billions, 1),
            },
        },
        "encoder": {"checkpoint": encoder, "tokens": tokens // each, "trained": False},
        "latent": {
            "shape_chw": [channels * each, side, side],
            "normalisation": _normalisation(config),
        },
        "batch_global": batch, "epochs": train.epochs or None, "steps": steps,
        "context_tokens": config.language_model.context,
        "optimizer": {name: _optimizer(each) for name, each in groups.items()}
        | {"clip_global_norm": train.optimizer.clip_norm},
        "learning_rate": {name: _rates_of_whole(each, train) for name, each in groups.items()}
        | {"warmup_ratio": _warmup(train.optimizer, train)},
        "ema": None if not train.ema_decay else {"decay": train.ema_decay},
        "loss": {"language": {"weight": 1.0}, "image": {"weight": section.image_weight}},
        "time": {
            "distribution": section.time_distribution, "mean": section.logit_normal_mean,
            "std": section.logit_normal_std, "shift": time_shift(config),
        },
        "condition_dropout": section.condition_dropout,
        "precision": {"compute": config.dtype, "noise": "drawn in float32"},
        "sampling": {
            "sampler": sampling.method, "points": len(times), "network_evaluations": sampling.num_steps,
            "guidance_default": sampling.guidance_scale,
        },
        "data": {"images": config.data.train_images},
        # As the paper counts and names them.
        "language_model": f"Qwen2.5-{size}", "head_parameters_billions": round(billions, 1),
    }  # fmt: skip


def _warmup(optimizer: ConfigDict, train: ConfigDict) -> float:
    """The warm-up's share of the run."""
    return optimizer.warmup_epochs / train.epochs if train.epochs else optimizer.warmup_steps / train.steps


def _rates_of_whole(optimizer: ConfigDict, train: ConfigDict) -> dict[str, Any]:
    """The base rate, and the rates at fractions of a run so long that one update more or less is nothing."""
    whole = 1e12
    durations = {"warmup_steps": _warmup(optimizer, train) * whole, "decay_end_step": whole}
    schedule = make_optimizer(ConfigDict(optimizer.to_dict() | durations))[1]
    rates = {fraction: float(schedule(float(fraction) * whole)) for fraction in FRACTIONS}
    return {"base": optimizer.learning_rate, "at_fraction": rates}


def _told(config: ConfigDict) -> dict[str, Any]:
    sampling, published = config.sampling, LANGUAGE_MODELS["qwen3-0.6b"]
    fields = config.language_model.model.to_dict()
    assert all(fields[name] == value for name, value in published.items())
    own = {1.0: "off"}.get(sampling.internal_guidance_scale, sampling.internal_guidance_scale)
    low, high = (f"{end:g}" for end in sampling.guidance_interval)
    return {
        "text": {"encoder": "Qwen3-0.6B, last hidden state", "tokens": config.flow.model.condition_tokens},
        "sampling": {
            "sampler": sampling.method, "network_evaluations": sampling.num_steps, "internal_guidance": own,
            "guidance": f"classifier-free {sampling.guidance_scale} on [{low}, {high}]",
        },
    }  # fmt: skip


def _data(config: ConfigDict, stage: str) -> dict[str, Any]:
    transform, size = config[stage].train.transform, config.data.image_size
    bicubic = "bicubic with antialias (PIL)"
    resize, crop = {
        "random_crop": (f"shorter side to {size * 3 // 2}, {bicubic}", f"random {size}"),
        "center_crop": (
            f"ADM: halved by box filter while shorter side >= {2 * size}, then bicubic to shorter side {size} (PIL)",
            f"centre {size}",
        ),
    }[transform.removesuffix("_flip")]
    if sources := config[stage].get("sources", ()):
        assert len({weight for *_, weight in sources}) == 1
        names = {name: images for name, images in (SOURCES[each[:2]] for each in sources)}
        return {
            "dataset": f"{', '.join(names)}: equal weights, drawn each step", "images": names, "resolution_px": size,
            "horizontal_flip": 0.5 if transform.endswith("_flip") else 0.0, "crop": crop,
        }  # fmt: skip
    return {
        "dataset": {"tfds:imagenet2012": "ImageNet-1k"}[config.data.source] + f" {config.data.train_split}",
        "images": IMAGES, "resolution_px": size, "resize": resize, "crop": crop, "pixel_range": [0, 1],
        "horizontal_flip": 0.5 if transform.endswith("_flip") else 0.0,
    }  # fmt: skip


def _encoder(config: ConfigDict, stage: str) -> dict[str, Any]:
    model = config.encoder.model.to_dict()
    if not model:
        return {}
    known = {name: it for name, it in PRETRAINED.items() if it.architecture.items() <= model.items()}
    (published,) = known.values()
    if model["stored_periods"]:  # RAEv2 names the model, not the file
        layers = list(model["layers"]) or "last"
        combined = "mean of the listed layers plus the mean token of the last" if model["layers"] else "last"
        published = dataclasses.replace(published, checkpoint="DINOv3 ViT-L/16")
        more = {"layers": layers, "combined": combined, "final_norm": "layer norm without affine"}
    else:
        more = {}
    return more | {
        "checkpoint": published.checkpoint, "width": model["width"], "depth": model["depth"],
        "heads": model["num_heads"], "mlp": model["mlp_dim"], "patch_px": model["patch_size"],
        "input_px": config.encoder.input_size, "image_mean": list(config.encoder.image_mean),
        "image_std": list(config.encoder.image_std), "trained": "encoder" in trained_components(config, stage),
        "dropped_tokens": f"class token and {model['num_registers']} registers" if model["num_registers"]
        else "class token" if model["cls_token"] else "none (there is no class token)",
    }  # fmt: skip


def _writes(section: ConfigDict) -> list[str]:
    return ["mean", "var"] if section.centred else ["var"]


def _epoch(config: ConfigDict, stage: str) -> int:
    """The steps of an epoch, which is of the mean number of images where there are several sources."""
    sources = config[stage].get("sources", ())
    images = sum(SOURCES[each[:2]][1] for each in sources) // len(sources) if sources else IMAGES
    return steps_per_epoch(images, config[stage].train.batch_size)


def _training(config: ConfigDict, stage: str, recipe: dict[str, Any]) -> dict[str, Any]:
    train = config[stage].train
    epoch = _epoch(config, stage)
    return {
        "batch_global": train.batch_size,
        "accumulation_steps": train.gradient_accumulation,
        "epochs": train.steps / epoch,
        "steps_per_epoch": epoch,
        "steps": train.steps,
        "optimizer": _optimizer(train.optimizer),
        "learning_rate": _rates(train.optimizer, epoch, recipe),
        "ema": {"decay": train.ema_decay},
    }


def _optimizer(section: ConfigDict) -> dict[str, Any]:
    if section.name == "muon":
        numbers = {"bfloat16_3x": "float32", "released": "bfloat16"}[section.muon_products]
        named = {"polar_express": "Polar Express"}[section.muon_coefficients]
        steps = {5: "five"}[len(COEFFICIENTS[section.muon_coefficients])]
        return {
            "matrices": {
                "name": "muon", "parameters": "every parameter of two axes, embedding tables included",
                "momentum": section.muon_momentum, "nesterov": section.muon_nesterov,
                "orthogonalisation": f"{steps} Newton-Schulz steps with {named} coefficients (safety {SAFETY}), "
                f"on {numbers}",
                "update_scale": f"{UPDATE_SCALE} sqrt(max(rows, columns))", "weight_decay": section.weight_decay,
            },
            "others": {"name": "adamw", "beta1": section.beta1, "beta2": section.beta2, "epsilon": section.epsilon,
                       "weight_decay": section.weight_decay},
            "clip_global_norm": section.clip_norm,
        }  # fmt: skip
    return {
        "name": "adamw", "beta1": section.beta1, "beta2": section.beta2, "epsilon": section.epsilon,
        "weight_decay": section.weight_decay, "clip_global_norm": section.clip_norm,
    }  # fmt: skip


def _rates(section: ConfigDict, epoch: int, recipe: dict[str, Any], own_updates: int = 0) -> dict[str, Any]:
    schedule = make_optimizer(section)[1]

    def at(updates: int) -> dict[str, float]:
        return {f: float(schedule(min(math.floor(float(f) * updates), updates - 1))) for f in FRACTIONS}

    constant = section.shape == "constant"
    found = {
        "base": section.learning_rate, "shape": section.shape, "final": float(schedule(10**12)),
        "warmup_steps": section.warmup_steps, "decay_end_step": None if constant else section.decay_end_step,
        "decay_end_epoch": None if constant else section.decay_end_step / epoch,
        "decay_start_epoch": section.warmup_steps / epoch,
        "warmup_epochs": section.warmup_steps / epoch,
    }  # fmt: skip
    if not constant:
        ramp = "linear from zero: (k + 1) / warmup_steps at update k"
        found["warmup"] = ramp if section.warmup_from_zero else "constant at the base rate"
    if own_updates:
        return found | {"own_updates": own_updates, "at_fraction_of_own_updates": at(own_updates)}
    for name in recipe.get("learning_rate", {}):
        if name.startswith("at_fraction"):
            of_epochs = name.removeprefix("at_fraction_of_").removesuffix("_epochs")
            whole = recipe.get("steps") or (recipe.get("steps_reported") or [section.decay_end_step or 100_000])[-1]
            found[name] = at(int(of_epochs) * epoch if of_epochs.isdigit() else whole)
    return found


def _count(config: ConfigDict, name: str) -> int:
    section = config.flow if name in ("flow_map", "mid_training") else config[name]
    section.model.scan = True  # the same parameters, traced in a fraction of the time
    return sum(leaf.size for leaf in jax.tree.leaves(component(config, name).structure()))


def _mlp(fields: dict[str, Any], width: int) -> dict[str, Any]:
    hidden = int(2 / 3 * int(width * fields["mlp_ratio"]))
    return {"mlp": "SwiGLU" if fields["swiglu"] else "GELU", "mlp_hidden": hidden}


def _transformer(config: ConfigDict, stage: str) -> dict[str, Any]:
    section = config.flow if stage in ("flow_map", "mid_training") else config[stage]
    fields, (tokens, channels) = section.model.to_dict(), latent_space(config).shape
    side = math.isqrt(tokens) // fields["patch_size"]
    if section.family == "dit_in_context":
        return _in_context(fields, channels, section.base_coefficient)
    trained = fields["trained_tables"]
    found = {
        "patch_tokens": fields["patch_size"], "in_channels": channels,
        "norm": "RMS norm with scale, epsilon 1e-6" if fields["rms_norm"] else "layer norm",
        "label_table_rows": condition(config).num_classes + 1,
        "absolute_positions_trained": trained, "fourier_frequencies_trained": trained,
        "parameters_millions": (
            _count(config, stage) + (0 if trained else sincos_table(side, fields["width"]).size)
        ) / 1e6,
    }  # fmt: skip
    sizes = {"width": fields["width"], "depth": fields["depth"], "heads": fields["num_heads"]}
    if section.family == "dit_dh":
        head = {name: fields[f"head_{ours}"] for name, ours in
                (("width", "width"), ("depth", "depth"), ("heads", "num_heads"))}  # fmt: skip
        return found | {
            "kind": "DiT^DH",
            "qk_norm": fields["qk_norm"],
            "backbone": sizes | _mlp(fields, sizes["width"]),
            "head": head | _mlp(fields, head["width"]),
        }
    qk_norm = f"RMS norm of each head's {sizes['width'] // sizes['heads']} channels"
    return found | sizes | _mlp(fields, sizes["width"]) | {
        "kind": "LightningDiT", "qk_norm": qk_norm if fields["qk_norm"] else False,
    }  # fmt: skip


def _in_context(fields: dict[str, Any], channels: int, base_coefficient: float) -> dict[str, Any]:
    return {
        "kind": "DiT^DH with condition tokens in the sequence and an early head",
        "backbone": {"width": fields["width"], "depth": fields["depth"], "heads": fields["num_heads"], "mlp": "SwiGLU"},
        "head": {"width": fields["head_width"], "depth": fields["head_depth"], "heads": fields["head_num_heads"]},
        "in_channels": channels, "patch_tokens": fields["patch_size"], "qk_norm": "RMS norm", "modulation": "head only",
        "time_tokens": fields["time_tokens"], "class_tokens": fields["condition_tokens"],
        "early_head_after_block": fields["base_depth"], "early_loss_weight": base_coefficient,
        "fourier_frequencies_trained": fields["trained_frequencies"],
    }  # fmt: skip


def _chw(config: ConfigDict) -> list[int]:
    tokens, channels = latent_space(config).shape
    return [channels, math.isqrt(tokens), math.isqrt(tokens)]


def _generator(config: ConfigDict, stage: str) -> dict[str, Any]:
    section, shift = config[stage], time_shift(config)
    centred = "centred" if config.stats.centred else "not centred (released file)"
    normalisation = f"divided by sqrt(variance + 1e-5), one value an element, {centred}"
    if stage in ("mid_training", "flow_map"):
        normalisation = "as RAE stage 2"
    if config.stats.weights == IDENTITY:
        normalisation = "none"
    latent = {"shape_chw": _chw(config), "normalisation": normalisation, "noise_augmentation": 0.0}
    if config.autoencoder == "rpiae":
        latent["used"] = "mode of the posterior"
    found = {"architecture": _transformer(config, stage), "latent": latent}
    if section.objective == "velocity":
        time = {"distribution": section.time_distribution}
        if section.time_distribution == "logit_normal":
            time |= {"mean": section.logit_normal_mean, "std": section.logit_normal_std}
        found["label_dropout"] = found["condition_dropout"] = section.label_dropout
        found["prediction"] = {"x": "clean latent", "velocity": "velocity"}[section.prediction]
        found["loss"] = {"only": {"weight": 1.0}}
        if section.prediction == "x":
            difference = f"/ max(t, {section.t_eps})"
            found["loss"] = {
                "only": {"term": f"squared error of (z_t - prediction) {difference} against (z_t - z) {difference}",
                         "weight": 1.0},
                "the same for the early head": {"weight": section.base_coefficient},
            }  # fmt: skip
        return found | {"time": time | {"truncated_to": [0.0, section.largest_time], "shift": shift}}
    dropped = {"loss": section.label_dropout, "network": section.label_dropout_network}
    kept = (1 - dropped["loss"]) * (1 - dropped["network"])
    found |= {
        "shift": shift, "label_dropout_loss": dropped["loss"], "label_dropout_network": dropped["network"],
        "label_dropout_student_total": 1 - kept, "label_dropout_teacher": dropped["loss"],
        "loss": {"only": {"weight": 1.0}},
    }  # fmt: skip
    return found | (_flow_map(config) if section.objective == "meanflow" else _trajectory(config))


def _flow_map(config: ConfigDict) -> dict[str, Any]:
    section = config.flow_map
    kind = {"finite_difference": "central difference", "jvp": "exact"}[section.derivative]
    return {
        "time": {"distribution": section.time_distribution, "truncated_to": [0.0, MAX_TRAINING_TIME],
                 "shift": time_shift(config), "draws": 2},
        "teacher_share_eta": section.eta, "ratio_r_not_t": section.unequal_share,
        "derivative": {"kind": kind, "dt": section.dt, "clamped": False},
    }  # fmt: skip


def _times(steps: int, config: ConfigDict, grid: str) -> tuple[np.ndarray, dict[str, float]]:
    times = sampling_times(steps, shift=time_shift(config), grid=grid)
    return times, {"first": times[0], "second": times[1], "last_but_one": times[-2], "last": times[-1]}


def _trajectory(config: ConfigDict) -> dict[str, Any]:
    section = config.mid_training
    times, told = _times(section.trajectory_steps, config, section.trajectory_grid)
    even = np.array_equal(label_times(times, section.time_labels), np.linspace(1, 0, len(times), dtype=np.float32))
    return {
        "pairs": {"per_step": section.pairs * section.train.batch_size, "per_trajectory_mean": section.pairs,
                  "possible_per_trajectory": len(all_pairs(len(times)))},
        "trajectory": {
            "method": section.trajectory_method, "points": len(times), "steps": section.trajectory_steps, "times": told,
            "labels_of_points": "evenly spaced from 1 to 0, whatever the shift" if even else "the times of the points",
        },
    }  # fmt: skip


def _noise(section: ConfigDict) -> dict[str, Any]:
    tau = section.noise_tau
    sigma = {"uniform": f"uniform(0, {tau}), one an image", "half_normal": "absolute value of normal(0, tau^2)"}
    return {"tau": tau, "sigma": sigma[section.noise_distribution]}


def _bridge(config: ConfigDict) -> dict[str, Any]:
    section, (channels, *_) = config.bridge, _chw(config)
    used = {"mode": "mode of the posterior, also in training", "sample": "samples of the posterior"}[section.latent]
    encoder, decoder = config.bridge_encoder.model, config.bridge_decoder.model
    normalised = config.feature_stats.weights != IDENTITY
    return {
        "latent": {"shape_chw": _chw(config), "used": used, "normalisation": "tokens" if normalised else "none"},
        "noise_augmentation": _noise(section),
        "loss": {"features": {"weight": section.feature_weight}, "kl": {"weight": section.kl_weight},
                 "pixels": {"weight": section.pixel_weight}},
        "architecture": {
            "encoder": {"attention_heads": encoder.num_heads, "latent_channels": channels,
                        "mlp_ratio": encoder.mlp_dim / config.encoder.model.width},
            "decoder": {"layers": decoder.depth, "attention_heads": decoder.num_heads, "mlp": 4 * decoder.width},
        },
    }  # fmt: skip


TOKENS = {"caption": 350, "edit": 540}  # of a sample, as the specification estimates them


def _normalisation(config: ConfigDict) -> str:
    if config.stats.weights != IDENTITY:
        return "statistics"
    return f"of the {_vae(config)[0]} VAE" if config.autoencoder == "kl" else "none beyond the layer norm"


def _vae(config: ConfigDict) -> tuple[str, str]:
    """Name and description of a published KL-VAE, by what is published of its latents."""
    model = config.teacher.model
    described = f"{model.latent_channels} channels, scale {model.scaling_factor}, shift {model.shift_factor}"
    return {"16 channels, scale 0.3611, shift 0.1159": "FLUX"}[described], described


def _mixture(config: ConfigDict, stage: str, recipe: dict[str, Any]) -> dict[str, Any]:
    section, sampling = config[stage], config.sampling
    tokens, channels = latent_space(config).shape
    qwen = {name: section.model[name] for name in ("width", "depth", "num_heads", "hidden", "vocabulary")}
    size = next(name for name, size in QWENS.items() if qwen.items() <= size.items())
    dimension_dependent = math.isclose(time_shift(config), math.sqrt(tokens * channels / 4096))
    if isinstance(recipe["architecture"], str):  # the paper, of both its stages
        edit = resolve(importlib.import_module("configs.rpiae_edit").get_config(), IMAGES)
        return {
            "architecture": f"BAGEL mixture of transformers from {size.replace('q', 'Q').replace('b', 'B')}",
            "t2i": _paper_stage(config, stage, recipe["t2i"]),
            "edit": _paper_stage(edit, stage, recipe["edit"]),
            "shift": "sqrt(latent elements / 4096)" if dimension_dependent else "another",
            "guidance": sampling.guidance_scale,
        }
    training = _training(config, stage, recipe)
    trained = {name: training[name] for name in ("accumulation_steps", "steps", "optimizer", "learning_rate", "ema")}
    trained["learning_rate"]["warmup"] = "linear from zero" if section.train.optimizer.warmup_from_zero else "none"
    text_channel = "per token by the text-guided norm"
    renormalisation = {"text_channel": text_channel}.get(sampling.renormalisation, sampling.renormalisation)
    return trained | {
        "architecture": {
            "kind": "mixture of transformers: two experts, shared attention",
            "qk_norm": section.model.qk_norm,
            "generation_expert": "copied from the understanding one",  # as a stage that starts from Qwen2.5 leaves it
            "vae_to_llm": "linear",
            "llm_to_vae": "a wide head" if section.model.wide_head else "linear, zeros",
            "latent_positions": "fixed sine-cosine",
            "max_latent_side": section.model.latent_capacity,
            "latent_channels_after_patch": channels,
            "latent_patch": config.latent_patch_size,
            **({"vae": ", ".join(_vae(config))} if config.autoencoder == "kl" else {}),
            "pixels_per_token": config.data.image_size // math.isqrt(tokens),
        },
        "time": {"distribution": "logit_normal", "mean": 0.0, "std": 1.0, "one_for": "each image",
                 "shift": time_shift(config)},
        "condition_dropout": {"text": section.text_dropout, "vae": section.source_dropout,
                              "vit": section.semantic_dropout},
        "precision": {"compute": config.dtype},
        "task": {"caption": "text-to-image", "edit": "image editing"}[section.task],
        "sampling": {
            "sampler": sampling.method, "points": sampling.num_steps + 1, "network_evaluations": sampling.num_steps,
            "times": "1 to 0 evenly, then shifted" if sampling.grid == "full" and not sampling.last_step else "others",
            "shift": time_shift(config), "text_guidance": sampling.guidance_scale,
            "image_guidance": sampling.image_guidance_scale, "interval": list(sampling.guidance_interval),
            "renormalisation": f"{renormalisation}, minimum {sampling.least_norm:g}",
            "resolution_px": config.data.image_size,
        },
    }  # fmt: skip


def _paper_stage(config: ConfigDict, stage: str, recipe: dict[str, Any]) -> dict[str, Any]:
    section = config[stage]
    tokens = section.train.batch_size * section.pack_images * TOKENS[section.task]
    low, high = recipe["tokens_per_step"]
    return {"steps": section.train.steps, "tokens_per_step": [low, high] if low <= tokens <= high else [tokens] * 2}


def _coder(config: ConfigDict) -> dict[str, Any]:
    section = config.coder
    return {
        "resolution_px": config.data.image_size, "steps_each_way": section.num_steps,
        "latent_channels": config.teacher.model.latent_channels, "step_noise": section.noise,
        "time_grid": "random" if section.random_times else "even",
        "loss_weights": {
            "path": section.path_weight, "latent": section.latent_weight, "pixel": section.pixel_weight,
            "round_trip": section.round_trip_weight, "mean_velocity": section.mean_velocity_weight or None,
        },
        "optimizer": _optimizer(section.train.optimizer) | {"learning_rate": section.train.optimizer.learning_rate},
    }  # fmt: skip


def _decoder(config: ConfigDict) -> dict[str, Any]:
    model, (_, channels) = config.decoder.model.to_dict(), (None, config.encoder.model.width)
    grid = config.data.image_size // model["patch_size"]
    trained = model["trained_tables"]
    positions = 0 if trained else sincos_table(grid, model["width"], class_token=True).size
    plain = {"output": "pixels in [0, 1] directly"} if config.decoder.plain_pixels else {}
    return plain | {
        "input_channels": channels, "width": model["width"], "depth": model["depth"], "heads": model["num_heads"],
        "mlp": model["mlp_dim"], "patch_px": model["patch_size"],
        "norm": f"layer norm, epsilon {model['norm_epsilon']:.0e}", "positions_trained": trained,
        "parameters_millions": (_count(config, "decoder") + positions) / 1e6,
    }  # fmt: skip


def _reconstruction(config: ConfigDict, stage: str, recipe: dict[str, Any]) -> dict[str, Any]:
    section, loss, epoch = config[stage], config[stage].loss, _epoch(config, stage)

    def start(step: int) -> dict[str, Any]:
        return {"start_step": step, "start_epoch": step / epoch}

    losses = {
        "l1": {"weight": 1.0, **start(0)},
        "lpips": {"weight": loss.lpips_weight, "input_range": list(loss.lpips_range), **start(loss.lpips_from_step)},
        "adversarial": {"weight": loss.gan_weight, **start(loss.gan_from_step)},
    }
    found = {
        "architecture": _decoder(config),
        "noise_augmentation": _noise(section),
        "latent": {"shape_chw": [config.encoder.model.width, *_grid(config)]},
        "adaptive_weight": {
            "clamp": [0, loss.adaptive_maximum],
            "by": {"last_layer": "weight of the decoder's last linear layer", "pixels": "pixels"}[loss.adaptive_weight],
        },
        "discriminator": _discriminator(config, stage, recipe),
        "loss_weights": {"L1": 1.0, "lpips": loss.lpips_weight, "adversarial": loss.gan_weight},
    }
    if stage == "pivot":
        losses["pivot"] = {"weight": section.pivot_weight, "start_step": 0}
        found["pivot_adaptive_weight"] = {"first_steps_fixed": section.pivot_fixed_steps}
    return found | {"loss": losses}


def _grid(config: ConfigDict) -> Iterator[int]:
    side = config.encoder.input_size // config.encoder.model.patch_size
    return iter((side, side))


def _discriminator(config: ConfigDict, stage: str, recipe: dict[str, Any]) -> dict[str, Any]:
    networks, section = config.discriminator, config[stage]
    loss, model, epoch = section.loss, networks.model, _epoch(config, stage)
    own = section.train.steps - loss.discriminator_from_step
    names = {(384, 12, 8): ("DINO ViT-S/8", "DINO-S/8")}[model.width, model.depth, model.patch_size]
    table = model.image_size // model.patch_size
    fakes = {
        "clean": "made anew after the decoder's update, eval mode, without noise, clamped and rounded to 256 levels",
        "noisy": "the images that the decoder's own step made, of noisy latents, detached, "
        "clamped and rounded to 256 levels",
    }
    last = ", ".join(map(str, model.key_depths))
    wanted = recipe.get("discriminator", {}).get("backbone", "")
    rates = _rates(loss.discriminator_optimizer, epoch, {}, own_updates=own)
    return {
        "backbone": names[1] if wanted == names[1] else
        f"{names[0]}, frozen, {model.image_size} px, position table of {table} x {table}",
        "features": f"output of the last block, then of blocks {last} (counted from 0); "
        "class token dropped; no final norm",
        "heads": 1 + len(model.key_depths),
        "spectral_norm": networks.spectral_norm,
        "augmentation": {"name": "DiffAug", "probability": networks.augmentation_probability,
                         "translation": TRANSLATION, "cutout": networks.cutout},
        "loss": {"hinge": "hinge, half of the sum of the two means"}.get(networks.loss),
        "optimizer": _optimizer(loss.discriminator_optimizer),
        "start_epoch": loss.discriminator_from_step / epoch, "start_step": loss.discriminator_from_step,
        "adversarial_start_epoch": loss.gan_from_step / epoch,
        "epochs": rates["decay_end_epoch"],
        "learning_rate": rates, "fakes": fakes[loss.discriminator_fakes],
    }  # fmt: skip


def sampled(config: ConfigDict, guided: bool) -> dict[str, Any]:
    """The fields of a recipe of sampling: of a velocity network, guided as the config says or not at all."""
    config = resolve(config, IMAGES)
    sampling = config.sampling
    found: dict[str, Any] = {
        "evaluation": {"images": sampling.num_samples, "labels": _labels(config), "label_permutation_seed": config.seed}
    }
    if not sampling.num_steps:
        steps = {len(times) - 1: list(times) for times in sampling.flow_map_times}
        names = {1: "1", 2: "2"} | {n: f"{n} ({config.data.image_size} px)" for n in (3, 4)}
        return flattened(found | {"times": {names[n]: times for n, times in steps.items()}})
    times, told = _times(sampling.num_steps, config, sampling.grid)
    found |= {
        "sampler": sampling.method, "points": len(times), "network_evaluations": sampling.num_steps,
        "label_null": condition(config).num_classes, "shift": time_shift(config), "times": told,
    }  # fmt: skip
    if sampling.internal_guidance_scale != 1:
        found |= {
            "guidance": {"kind": "internal (early head)", "scale": sampling.internal_guidance_scale,
                         "interval": list(sampling.internal_guidance_interval)},
            "classifier_free_scale": sampling.guidance_scale, "images": sampling.num_samples, "last_time": times[-1],
        }  # fmt: skip
    elif guided:
        found["guidance"] = {
            "kind": sampling.guidance, "scale": sampling.guidance_scale, "interval": list(sampling.guidance_interval)
        } | _guide(config)  # fmt: skip
        found["guided"] = found["guidance"]
    return flattened(found)


def _guide(config: ConfigDict) -> dict[str, Any]:
    if config.guide.weights.startswith("{workdir}"):
        steps = int(config.guide.weights.rpartition("/")[2])
        own = config.guide.model.to_dict() == config.flow.model.to_dict()
        guide = "the same LightningDiT-XL" if own else "another"
    elif config.guide.weights:
        return {}  # a published file: its name tells
    else:
        steps = config.guide.train.steps
        sizes = config.guide.model
        guide = {(384, 12, 2048): "DiT^DH-S"}.get((sizes.width, sizes.depth, sizes.head_width))
    return {"guide": guide, "guide_epoch": steps / steps_per_epoch(IMAGES, config.flow.train.batch_size)}


def _labels(config: ConfigDict) -> str:
    sampling, classes = config.sampling, condition(config).num_classes
    permuted = f"{sampling.num_samples // classes} of each class, permuted"
    return permuted if sampling.labels == "permuted" else sampling.labels
