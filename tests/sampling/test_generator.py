"""Generation with guidance, against loops written out here."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import architectures, digits
from rae_jax.components.catalogue import component
from rae_jax.components.generators import time_shift
from rae_jax.components.latent_spaces import latent_space
from rae_jax.models.autoencoder import LatentStatistics
from rae_jax.sampling.generator import ODE_SAMPLERS, flow_map_generator, generator, guiding_component, sample_keys

SCALE, INTERVAL, LABELS = 2.5, (0.3, 0.9), np.array([3, 1, 4], np.int32)


def configured(**sampling):
    config = digits.get_config("tiny")
    config.sampling.update(dict(guidance="autoguidance", guidance_scale=SCALE, guidance_interval=INTERVAL) | sampling)
    return config


@pytest.fixture(scope="module")
def weights():
    """Random parameters of every component: fresh networks would all predict zero."""
    rng = np.random.default_rng(0)

    def drawn(name):
        shapes = component(configured(), name).structure()
        return jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), shapes)

    values = {name: drawn(name) for name in ("flow", "guide", "decoder")}
    shape = latent_space(configured()).shape
    return values | {"stats": {"mean": jnp.zeros(shape), "variance": jnp.ones(shape)}}


def images(config, weights, *, guide=None, network="flow"):
    keys = sample_keys(config.seed, jnp.arange(len(LABELS)))
    return jax.jit(generator(config, network, guide=guide))(weights[network], weights, keys, LABELS)


@functools.cache
def decoder():
    decode = latent_space(configured()).decode
    return jax.jit(lambda weights, z: decode(weights, LatentStatistics(**weights["stats"]).denormalise(z)))


def decoded(weights, z):
    return decoder()({name: weights[name] for name in ("stats", "decoder")}, np.asarray(z, np.float32))


def test_autoguidance_is_a_walk_along_the_guided_velocity(weights):
    config = configured()
    strong, weak = (jax.jit(component(config, name).module.apply) for name in ("flow", "guide"))
    noise = np.stack(
        [jax.random.normal(jax.random.split(key)[0], latent_space(config).shape)
         for key in sample_keys(config.seed, jnp.arange(len(LABELS)))]
    )  # fmt: skip
    shift = time_shift(config)
    times = np.linspace(1, 0, config.sampling.num_steps + 1)
    times = shift * times / (1 + (shift - 1) * times)
    assert any(t > INTERVAL[1] for t in times[:-1]) and any(INTERVAL[0] <= t <= INTERVAL[1] for t in times[:-1])
    z = noise
    for t, t_next in itertools.pairwise(times):
        now = np.full(len(LABELS), t, np.float32)
        v = np.asarray(strong({"params": weights["flow"]}, z, now, LABELS))
        if INTERVAL[0] <= t <= INTERVAL[1]:
            v_weak = np.asarray(weak({"params": weights["guide"]}, z, now, LABELS))
            v = v_weak + SCALE * (v - v_weak)
        z = z - (t - t_next).astype(np.float32) * v
    expected = decoded(weights, z)
    np.testing.assert_allclose(images(config, weights, guide="guide"), expected, atol=1e-4)


@pytest.mark.parametrize("method", ["euler", "heun", "euler_maruyama"])
def test_autoguidance_composes_with_each_sampler(method, weights):
    config = configured(method=method, guidance_interval=(0.0, 1.0))
    config.guide.model = config.flow.model  # the two tiny networks differ in the head's width only
    others = jax.tree.map(lambda x: x[..., ::-1], weights["flow"])
    keys, guided = sample_keys(config.seed, jnp.arange(len(LABELS))), jax.jit(generator(config, guide="guide"))
    plain = images(config, weights)
    assert np.abs(guided(weights["flow"], weights | {"guide": others}, keys, LABELS) - plain).max() > 1e-2
    with_itself = weights | {"guide": weights["flow"]}
    np.testing.assert_allclose(guided(weights["flow"], with_itself, keys, LABELS), plain, atol=1e-4)
    config.sampling.guidance_interval = (0.0, 0.0)  # no step of the sampler is there, or it has no length
    if method != "heun":
        np.testing.assert_allclose(images(config, weights | {"guide": others}, guide="guide"), plain, atol=1e-5)


def test_the_adaptive_sampler_has_the_configs_tolerances(weights, monkeypatch):
    asked = {}
    monkeypatch.setitem(ODE_SAMPLERS, "dopri5", lambda velocity, noise, times, **others: asked.update(others) or noise)
    images(configured(method="dopri5", rtol=0.25, atol=0.5), weights)
    assert asked == {"rtol": 0.25, "atol": 0.5}


def in_context(**sampling):
    """A config whose generator has an early output and predicts the data; sampled in a few steps."""
    config = configured(num_steps=3, **sampling)
    for section in (config.flow, config.guide):
        section.family, section.prediction, section.t_eps = "dit_in_context", "x", 0.05
        section.model = architectures.dit_in_context(
            width=16, depth=2, num_heads=2, head_width=16, head_depth=1, head_num_heads=2, base_depth=1
        )
    return config


@functools.cache
def in_context_networks():
    """Random parameters of every component, and both networks compiled, which do not depend on the guidance."""
    config, rng = in_context(), np.random.default_rng(1)
    drawn = {
        name: jax.tree.map(
            lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), component(config, name).structure()
        )
        for name in ("flow", "guide", "decoder")
    }
    shape = latent_space(config).shape
    drawn |= {"stats": {"mean": np.zeros(shape, np.float32), "variance": np.ones(shape, np.float32)}}
    return drawn, {name: jax.jit(component(config, name).outputs) for name in ("flow", "guide")}


@pytest.mark.parametrize("guidance", ["alone", "classifier_free", "autoguidance"])
def test_internal_guidance_goes_first_and_composes_with_the_others(guidance):
    own, own_interval, null_scale = 1.7, (0.4, 1.0), 1.3
    config = in_context(
        internal_guidance_scale=own, internal_guidance_interval=own_interval, internal_guidance_null_scale=null_scale
    )
    config.sampling.guidance = "classifier_free" if guidance == "alone" else guidance
    config.sampling.guidance_scale = 1.0 if guidance == "alone" else SCALE
    weights, outputs = in_context_networks()
    guide = "guide" if guidance == "autoguidance" else None

    def guided(network, z, t, labels, scale):
        full, base, _ = map(np.asarray, outputs[network](weights[network], z, np.full(len(z), t, np.float32), labels))
        return base + scale * (full - base) if own_interval[0] <= t <= own_interval[1] else full

    z = np.stack(
        [jax.random.normal(jax.random.split(key)[0], latent_space(config).shape)
         for key in sample_keys(config.seed, jnp.arange(len(LABELS)))]
    )  # fmt: skip
    times = np.linspace(1, 0, config.sampling.num_steps + 1)
    times = time_shift(config) * times / (1 + (time_shift(config) - 1) * times)
    assert any(t < own_interval[0] for t in times[:-1])
    for t, t_next in itertools.pairwise(times):
        v = guided("flow", z, t, LABELS, own)
        if guidance != "alone" and INTERVAL[0] <= t <= INTERVAL[1]:
            weak = (
                guided("flow", z, t, np.full_like(LABELS, 10), null_scale)
                if guidance == "classifier_free"
                else np.asarray(outputs["guide"](weights["guide"], z, np.full(len(z), t, np.float32), LABELS).full)
            )
            v = weak + SCALE * (v - weak)
        z = z - (t - t_next).astype(np.float32) * v
    expected = decoded(weights, z)
    np.testing.assert_allclose(images(config, weights, guide=guide), expected, atol=1e-4)


def test_internal_guidance_of_a_network_without_an_early_output_is_refused():
    config = configured(internal_guidance_scale=1.5)
    with pytest.raises(ValueError, match=r"internal_guidance_scale=1\.5, but flow\.model has no early output"):
        generator(config)
    config = in_context(internal_guidance_null_scale=1.5)
    config.flow.model.base_depth = 0
    with pytest.raises(ValueError, match="no early output"):
        generator(config)


def test_a_network_alone_is_not_autoguided_and_the_weak_one_samples_like_any_other(weights):
    config = configured()
    assert guiding_component(config) == "guide"
    alone = images(config, weights)
    weak = images(config, weights, network="guide")
    config.sampling.guidance_scale = 1.0
    assert guiding_component(config) is None
    np.testing.assert_array_equal(images(config, weights), alone)
    np.testing.assert_array_equal(images(config, weights, network="guide"), weak)
    assert np.abs(weak - alone).max() > 1e-2


def guided_flow_map():
    """A config whose flow map is told guidance, and random parameters."""
    config = configured(guidance="classifier_free")
    config.flow_map.guided = True
    rng = np.random.default_rng(2)
    shapes = component(config, "flow_map").structure()
    return config, jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), shapes)


def test_a_guided_flow_map_is_told_scale_and_interval_in_one_evaluation_a_jump(weights):
    config, params = guided_flow_map()
    keys = sample_keys(config.seed, jnp.arange(len(LABELS)))
    u, shape = jax.jit(component(config, "flow_map").module.apply), latent_space(config).shape
    z = np.stack([jax.random.normal(jax.random.split(key)[0], shape) for key in keys])
    told = np.tile(np.float32([SCALE, *INTERVAL]), (len(LABELS), 1))
    for t, r in ((1.0, 0.5), (0.5, 0.0)):
        now, end = (np.full(len(LABELS), x, np.float32) for x in (t, r))
        z = z - (t - r) * np.asarray(u({"params": params}, z, now, LABELS, end, told))
    expected = decoded(weights, z)
    generate = jax.jit(flow_map_generator(config, (1.0, 0.5, 0.0)))
    np.testing.assert_allclose(generate(params, weights, keys, LABELS), expected, atol=1e-4)


@pytest.mark.parametrize("scale", [0.5, 9.0])
def test_a_guided_flow_map_is_not_asked_for_a_scale_that_it_does_not_learn(scale):
    config, _ = guided_flow_map()
    config.sampling.guidance_scale = scale
    with pytest.raises(ValueError, match=rf"guidance_scale={scale}, but the flow map learns scales from 1 to .*8\.0"):
        flow_map_generator(config, (1.0, 0.0))
