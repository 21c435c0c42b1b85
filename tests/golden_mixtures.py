"""Mixtures of transformers built for the golden cases `bagel_*`, and the official packs as our arrays."""

import functools
from typing import Any, NamedTuple

import numpy as np
from golden import Case

from rae_jax.interop import bagel, kinds
from rae_jax.interop.layout import import_params
from rae_jax.interop.model import Model
from rae_jax.models.mixture_of_transformers import Images, MixtureOfTransformers, Texts
from rae_jax.models.pack import Places, visible

# Fields of the official decoder that change nothing here: its kind, the only one that a mixture can be of, and the
# length of the table of rotary angles, which are computed for any position.
SAME = {"layer_module": "Qwen2MoTDecoderLayer", "max_position_embeddings": None}


def decoder_fields(told: dict[str, Any]) -> dict[str, Any]:
    """Arguments of our decoder; the test fails at a field that is not known to change nothing."""
    told = dict(told)
    for name, only in SAME.items():
        assert told.pop(name, only) == only or only is None, name
    fields = {
        "vocabulary": told.pop("vocab_size"),
        "width": told.pop("hidden_size"),
        "depth": told.pop("num_hidden_layers"),
        "num_heads": told.pop("num_attention_heads"),
        "num_kv_heads": told.pop("num_key_value_heads"),
        "hidden": told.pop("intermediate_size"),
        "qk_norm": told.pop("qk_norm"),
        "rope_theta": told.pop("rope_theta"),
        "norm_epsilon": told.pop("rms_norm_eps"),
        "freeze_understanding": told.pop("freeze_und", False),
    }
    tied = told.pop("tie_word_embeddings", False)
    assert not told, f"{told}: a field that our mixture of transformers does not know"
    return fields | {
        "head_dim": fields["width"] // fields["num_heads"],
        "qkv_bias": True,
        "language_head": "tied" if tied else "own",
    }


class Built(NamedTuple):
    model: MixtureOfTransformers
    params: Any
    read: Model


@functools.cache
def mixture(case: Case) -> Built:
    """The whole model of a case."""
    told = dict(case.constructor)
    expected = decoder_fields(told.pop("llm_config"))
    vae, patch = told.pop("vae_config"), told.pop("latent_patch_size")
    expected |= {
        "latent_channels": patch**2 * vae["z_channels"],
        "latent_capacity": told.pop("max_latent_size"),
    }
    options = {"num_heads": expected["num_heads"], "rope_theta": expected["rope_theta"]}
    options["norm_epsilon"] = expected["norm_epsilon"]
    seeing = told.pop("visual_und")
    assert told.pop("visual_gen") and not told.pop("interpolate_pos")
    if seeing:
        vision = dict(told.pop("vit_config"))
        assert not vision.pop("rope") and vision.pop("hidden_act") == "gelu_pytorch_tanh"
        assert told.pop("connector_act") == "gelu_pytorch_tanh" and vision.pop("num_channels") == 3
        options["vision_heads"] = vision.pop("num_attention_heads")
        patch = vision.pop("patch_size")
        expected |= {
            "semantic_capacity": told.pop("vit_max_num_patch_per_side"),
            "semantic_channels": 3 * patch**2,
            "vision": {
                "positions": (vision.pop("image_size") // patch) ** 2,
                "width": vision.pop("hidden_size"),
                "depth": vision.pop("num_hidden_layers"),
                "num_heads": options["vision_heads"],
                "mlp_dim": vision.pop("intermediate_size"),
            },
        }
        epsilon = vision.pop("layer_norm_eps")
        assert not vision, f"{vision}: a field that our vision encoder does not know"
    del told["special_tokens"], told["timestep_shift"]
    assert not told, f"{told}: a field that our mixture of transformers does not know"
    read = kinds.import_model("bagel", case.weights, **options)
    found = read.architecture
    if expected["language_head"] == "tied" and not found["language_head"]:  # a file need not hold the table twice
        found = found | {"language_head": "tied"}
    assert found == {k: v for k, v in expected.items() if k != "freeze_understanding"}
    if seeing:
        expected["vision"]["norm_epsilon"] = epsilon
    return Built(MixtureOfTransformers(**expected), read.params, read)


def decoder_params(case: Case, fields: dict[str, Any]) -> Any:
    """The parameters of the layers and final norms, of a case that holds the language model alone."""
    others = [r"lm_head\.weight", r"model\.embed_tokens\.weight"]
    return import_params(case.weights, bagel.decoder_rules(fields), others)[0]


def places_of(inputs: dict[str, Any]) -> Places:
    """Where the tokens of an official pack are, in its order; with the official mask compared."""
    ends = np.cumsum(inputs["sample_lens"])
    starts = np.cumsum([0, *inputs["split_lens"][:-1]])
    samples = np.searchsorted(ends, starts, side="right").tolist()
    places = Places.of_splits(inputs["split_lens"], inputs["attn_modes"], samples, inputs["packed_position_ids"])
    if "attention_mask" in inputs:
        np.testing.assert_array_equal(visible(places, places), inputs["attention_mask"])
    return places


def at(places: Places, indexes: Any) -> Places:
    """The places of some tokens, as a batch of one."""
    return Places(*(np.asarray(field)[indexes][None] for field in places))


def row(values: Any) -> np.ndarray:
    """A batch of one."""
    return np.asarray(values)[None]


class Pack(NamedTuple):
    """An official training pack as a batch of one.

    Attributes:
      noised, clean: which of the latents' tokens each has.
    """

    texts: Texts
    noised: Images
    clean: Images | None
    semantic: Images | None
    noised_at: np.ndarray
    clean_at: np.ndarray


def patches_of(latent: np.ndarray, grids: np.ndarray, patch: int) -> np.ndarray:
    """Padded latents `[M, C, H, W]` as tokens, `[n, p * p * C]`, ordered (row in patch, column in patch, channel)."""
    tokens = []
    for image, (rows, columns) in zip(latent, grids, strict=True):
        cut = image[:, : rows * patch, : columns * patch]
        cut = cut.reshape(cut.shape[0], rows, patch, columns, patch)
        tokens.append(cut.transpose(1, 3, 2, 4, 0).reshape(rows * columns, -1))
    return np.concatenate(tokens)


def official_pack(case: Case, inputs: dict[str, Any], x_t: Any, t: Any) -> Pack:
    """The pack of a training call, with noised latents `x_t [n, C]` at times `t [n]`."""
    places, latents = places_of(inputs), inputs["packed_vae_token_indexes"]
    is_noised = np.isin(latents, inputs["mse_loss_indexes"])

    def images(which: np.ndarray) -> Images | None:
        chosen = np.flatnonzero(which)
        if not len(chosen):
            return None
        position = inputs["packed_latent_position_ids"][chosen]
        return Images(row(x_t[chosen]), row(position), at(places, latents[chosen]), row(t[chosen]))

    semantic = None
    if "packed_vit_tokens" in inputs:
        values, position = row(inputs["packed_vit_tokens"]), row(inputs["packed_vit_position_ids"])
        semantic = Images(values, position, at(places, inputs["packed_vit_token_indexes"]))
    texts = Texts(row(inputs["packed_text_ids"]), at(places, inputs["packed_text_indexes"]))
    return Pack(
        texts, images(is_noised), images(~is_noised), semantic, np.flatnonzero(is_noised), np.flatnonzero(~is_noised)
    )
