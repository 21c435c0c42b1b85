"""The mixture of transformers against Bagel's code: one layer, the decoder, and whole training packs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from golden import cases
from golden_mixtures import at, decoder_fields, decoder_params, mixture, official_pack, patches_of, places_of, row

from rae_jax.flow.path import interpolate, velocity_target
from rae_jax.flow.times import shift_times
from rae_jax.interop import bagel
from rae_jax.interop.layout import import_params
from rae_jax.models.language_model import rotary_angles
from rae_jax.models.mixture_of_transformers import Decoder, Layer, MixtureOfTransformers
from rae_jax.models.pack import Places, visible

LAYER = ("width", "num_heads", "num_kv_heads", "head_dim", "hidden", "qkv_bias", "qk_norm", "norm_epsilon")


def of_decoder(fields):
    return {k: v for k, v in fields.items() if k not in ("vocabulary", "language_head")}


def with_causal(places: Places, causal: bool) -> Places:
    """The same tokens, as one split of one sample."""
    length = len(places.order)
    return Places.of_splits([length], ["causal" if causal else "full"], [0], places.rotary)


@cases("bagel_mot_layer")
def test_a_layer_is_the_official_one(case):
    fields = decoder_fields(case.constructor)
    layer = Layer(**{name: fields[name] for name in LAYER}, freeze_understanding=fields["freeze_understanding"])
    params, _ = import_params(case.weights, bagel.layer_rules(fields))

    @jax.jit
    def run(u, g, places):
        angles = rotary_angles(places.rotary, fields["head_dim"], fields["rope_theta"])
        mask = visible(places, places)[:, None]
        out, seen = layer.apply(
            {"params": params}, (u, g), angles, mask, capture_intermediates=True, mutable=["intermediates"]
        )
        attended = [seen["intermediates"][expert]["out"]["__call__"][0] for expert in ("understanding", "generation")]
        return jnp.concatenate(out, axis=1)[0], jnp.concatenate(attended, axis=1)[0], angles

    train = case.call(r".*forward_train")
    inputs, outputs = train.inputs, train.outputs
    places = places_of(inputs)
    und, gen = inputs["packed_und_token_indexes"], inputs["packed_gen_token_indexes"]
    hidden, order = inputs["packed_sequence"], np.concatenate([und, gen])
    out, attended, angles = run(row(hidden[und]), row(hidden[gen]), at(places, order))
    case.assert_close(out, outputs["layer output"][order])
    case.assert_close(attended, outputs["self_attn output after the output projection"][order])
    for name, table in zip(("cos", "sin"), angles, strict=True):
        half = table.shape[-1]
        case.assert_close(table[0], outputs[name][order, :half])

    for call in case.calls(r".*forward_inference.*"):
        count = call.inputs["num_tokens"]
        alike = "mode und" in call.function
        first = Places(*(np.asarray(field)[:count] for field in places))
        tokens = np.arange(count)
        plain = tokens if alike else tokens[np.isin(tokens, und)]
        other = np.setdiff1d(tokens, plain)
        order = np.concatenate([plain, other]).astype(int)
        causal = "not causal" not in call.function
        out, _, _ = run(row(hidden[plain]), row(hidden[other]), at(with_causal(first, causal), order))
        case.assert_close(out, call.outputs["layer output"][order])


@cases("bagel_mot", where=lambda case: case.name.startswith("bagel_mot") and "layer" not in case.name)
def test_the_decoder_is_the_official_one_packed_and_through_its_cache(case):
    fields = decoder_fields(case.constructor)
    decoder, params = Decoder(**of_decoder(fields)), decoder_params(case, fields)
    train = case.call(r".*forward_train")
    places = places_of(train.inputs)
    sequence = train.inputs["packed_sequence"]
    und, gen = train.inputs["packed_und_token_indexes"], train.inputs["packed_gen_token_indexes"]
    order = np.concatenate([und, gen])

    @jax.jit
    def run(u, g, places):
        out, seen = decoder.apply(
            {"params": params}, (u, g), places, capture_intermediates=True, mutable=["intermediates"]
        )
        each = [seen["intermediates"][f"blocks_{i}"]["__call__"][0] for i in range(fields["depth"])]
        return [jnp.concatenate(x, axis=1)[0] for x in (out, *each)]

    out, *each = run(row(sequence[und]), row(sequence[gen]), at(places, order))
    case.assert_close(out, train.outputs["last_hidden_state"][order])
    case.assert_close(np.stack(each), train.outputs["output of each layer"][:, order])

    # Pieces that are remembered, and pieces that look back at them and are not.
    call = case.call(r".*forward_inference.*cache")
    kept = [np.arange(piece["start"], piece["end"]) for piece in call.inputs["pieces"] if piece["update_cache"]]
    others = [np.arange(piece["start"], piece["end"]) for piece in call.inputs["pieces"] if not piece["update_cache"]]

    def of_kinds(tokens):
        """The tokens, each expert's apart."""
        return [indexes[np.isin(indexes, tokens)] for indexes in (und, gen)]

    given = of_kinds(np.concatenate(kept))
    context = at(places, np.concatenate(given))

    @jax.jit
    def remember(u, g):
        return decoder.apply({"params": params}, (u, g), context, mutable=["cache"])

    remembered, cache = remember(*(row(sequence[indexes]) for indexes in given))
    found = np.full_like(sequence, np.nan)
    found[np.concatenate(given)] = np.concatenate(remembered, axis=1)[0]
    for piece in others:
        asked = of_kinds(piece)
        there = at(places, np.concatenate(asked))
        run_after = jax.jit(
            lambda u, g, there=there: decoder.apply({"params": params, **cache}, (u, g), there, context)
        )
        out = run_after(*(row(sequence[indexes]) for indexes in asked))
        found[np.concatenate(asked)] = np.concatenate(out, axis=1)[0]
    order = np.concatenate([np.arange(piece["start"], piece["end"]) for piece in call.inputs["pieces"]])
    case.assert_close(found[order], call.outputs["last hidden state of all pieces, concatenated"])
    in_cache = np.argsort(np.concatenate(given))
    for ours, theirs in (
        ("key", "cached keys per layer, after rotary embedding"),
        ("value", "cached values per layer"),
    ):
        held = np.stack([np.asarray(cache["cache"][f"blocks_{i}"][ours])[0] for i in range(fields["depth"])])
        case.assert_close(held[:, in_cache], call.outputs[theirs])

    ids, head = case.call("embed_tokens"), case.call(r"lm_head.*")
    table = case.weights["model.embed_tokens.weight"]
    case.assert_close(table[ids.inputs["input_ids"]], ids.outputs["embedding"])
    model = MixtureOfTransformers(**fields, latent_channels=1, latent_capacity=1)
    states = train.outputs["last_hidden_state"][head.inputs["indexes"]]
    words = {"embedding": table, "head": case.weights.get("lm_head.weight")}
    case.assert_close(model.apply({"params": words}, states, method="logits"), head.outputs["logits"])


@cases("bagel_edit", "bagel_t2i_loss")
def test_a_training_pack_gives_the_official_velocities(case):
    model, params, _ = mixture(case)
    call = case.call(r"Bagel\.forward.*")
    inputs, outputs = call.inputs, call.outputs
    z = patches_of(
        inputs["padded_latent"], inputs["patchified_vae_latent_shapes"], case.constructor["latent_patch_size"]
    )
    shift = case.constructor["timestep_shift"]
    t = np.asarray(jax.jit(lambda x: shift_times(jax.nn.sigmoid(x), shift))(inputs["packed_timesteps"]))
    case.assert_close(t, outputs["t after sigmoid and shift, per latent token"])
    x_t = np.asarray(jax.jit(interpolate)(z, inputs["noise"], t))
    pack = official_pack(case, inputs, x_t, t)
    velocity, states = jax.jit(model.apply)({"params": params}, *pack[:4])
    expected = outputs["velocity at the loss tokens"]
    case.assert_close(velocity[0], expected)
    target = velocity_target(z, inputs["noise"])[pack.noised_at]
    case.assert_close(np.square(velocity[0] - target), outputs["mse"])
    case.assert_close(states[0], outputs["last_hidden_state"][inputs["packed_text_indexes"]])
    for name, value in {"clean latent tokens": z, "x_t": x_t, "target velocity": target}.items():
        if name in outputs:
            case.assert_close(value, outputs[name])


def test_each_expert_multiplies_its_own_tokens_and_no_others():
    """A step of the decoder of Qwen2.5-0.5B's widths costs at most 1.1 times what its tokens cost."""
    size = {"width": 896, "depth": 1, "num_heads": 14, "num_kv_heads": 2, "head_dim": 64, "hidden": 4864}
    texts, image, samples = 94, 256, 2
    lengths = [texts, image + 2] * samples
    rotary = np.concatenate([np.r_[np.arange(texts), np.full(image + 2, texts)]] * samples)
    places = Places.of_splits(lengths, ["causal", "noise"] * samples, [0, 0, 1, 1], rotary)
    starts = np.cumsum([0, *lengths])[1::2]
    gen = np.concatenate([start + 1 + np.arange(image) for start in starts])
    und = np.setdiff1d(np.arange(len(rotary)), gen)
    decoder, there = Decoder(**size), at(places, np.concatenate([und, gen]))
    x = tuple(jax.ShapeDtypeStruct((1, len(part), size["width"]), jnp.float32) for part in (und, gen))
    params = jax.eval_shape(decoder.init, jax.random.key(0), x, there)["params"]

    def loss(params, x):
        return sum(jnp.sum(part) for part in decoder.apply({"params": params}, x, there))

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, x).compile()
    matrices = 896 * (896 + 2 * 128) + 896 * 896 + 3 * 896 * 4864  # of one expert
    pairs = int(np.sum(visible(places, places)))
    own = 3 * (2 * matrices * len(rotary) + 4 * pairs * 896)
    assert own < compiled.cost_analysis()["flops"] < 1.1 * own


@pytest.mark.parametrize("fused", [True, False])
def test_only_without_the_kernel_the_decoder_has_a_forward_mode_derivative_on_a_tpu(fused):
    """MeanFlow by `jax.jvp` takes the student apart with `fused_attention=False`."""
    sizes = dict(width=16, depth=1, num_heads=2, num_kv_heads=1, head_dim=8, hidden=16)
    decoder = Decoder(**sizes, fused_attention=fused, dtype=jnp.bfloat16)
    whole = Places.of_splits([64, 64], ["causal", "noise"], [0, 0], np.arange(128))
    places = jax.tree.map(lambda field: jnp.asarray(field)[None], whole)
    x = jnp.ones((1, 64, 16))
    params = {"params": meta.unbox(decoder.init(jax.random.key(0), (x, x), places)["params"])}

    def derivative(x):
        return jax.jvp(lambda g: decoder.apply(params, (x, g), places)[1], (x,), (x,))[1]

    traced = jax.jit(derivative).trace(x)
    if fused:
        with pytest.raises(TypeError, match="custom_vjp"):
            traced.lower(lowering_platforms=("tpu",))
    else:
        assert "tpu_custom_call" not in traced.lower(lowering_platforms=("tpu",)).as_text()
