"""RAE's stage 1 against its equations written out, and its schedule; both on a tiny decoder and discriminator."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from random_params import random_state, random_values
from whole_autoencoder import autoencoder

from configs import digits
from rae_jax.components.catalogue import component
from rae_jax.components.critics import with_heads
from rae_jax.components.latent_spaces import latent_space
from rae_jax.models import diffaug
from rae_jax.models.autoencoder import noise_augmentation
from rae_jax.models.lpips import NETWORKS
from rae_jax.objectives import adversarial, reconstruction
from rae_jax.objectives.image_loss import ImageLoss
from rae_jax.objectives.objective import stage_key
from rae_jax.training import sharding
from rae_jax.training.checkpoint import Checkpoints
from rae_jax.training.checkpoint_weights import About, find

# A network for LPIPS that compiles in no time; the published ones are in tests/models/test_lpips.py.
NETWORKS["two convolutions"] = (("conv", 4, 3, 1, 1), ("tap",), ("pool", 2, 2), ("conv", 8, 3, 1, 1), ("tap",))
BATCH = 4
LPIPS_FROM, DISCRIMINATOR_FROM, GAN_FROM = 1, 2, 3


def tiny(**changes):
    """The digits' decoder with every term, the terms starting one after the other."""
    config = digits.get_config("tiny")
    config.lpips.network = "two convolutions"
    config.discriminator.model.update(
        image_size=32, patch_size=8, width=16, depth=1, num_heads=2, mlp_dim=32, key_depths=()
    )
    config.discriminator.kernel_size = 3
    config.decoder.loss.update(
        lpips_weight=1.0, lpips_from_step=LPIPS_FROM, gan_weight=0.75, gan_from_step=GAN_FROM,
        discriminator_from_step=DISCRIMINATOR_FROM,
    )  # fmt: skip
    config.decoder.loss.discriminator_optimizer.update(warmup_steps=10, warmup_from_zero=True)
    config.update_from_flattened_dict(changes)
    return config


def a_batch():
    rng = np.random.default_rng(0)
    return {"image": rng.integers(0, 256, (BATCH, 32, 32, 3), dtype=np.uint8)}


@functools.cache
def prepared(*changes):
    config = tiny(**dict(changes))
    objective = reconstruction.make(config, "decoder")
    state = random_state(objective)
    if state.discriminator:
        drawn = random_values({name: state.discriminator[name] for name in ("heads", "spectral")})
        state = state.replace(discriminator=state.discriminator | drawn)
    return config, objective, state, jax.jit(objective.train_step)


def at_step(state, step):
    return state.replace(step=np.int32(step))


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


LAST_LAYER = ()
PIXELS = (("decoder.loss.adaptive_weight", "pixels"), ("decoder.loss.discriminator_fakes", "noisy"),
          ("decoder.loss.lpips_range", (0.0, 1.0)))  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [pytest.param(LAST_LAYER, id="released"), pytest.param(PIXELS, id="paper", marks=pytest.mark.slow)],
)
def test_a_step_is_the_gradient_of_the_weighted_sum_and_then_the_discriminator_learns_from_what_was_decoded(changes):
    config, _, state, step = prepared(*changes)
    state, batch = at_step(state, GAN_FROM), a_batch()
    images, loss = batch["image"] / np.float32(255), config.decoder.loss
    decoder_key, discriminator_key = jax.random.split(jax.random.fold_in(stage_key(config.seed, "decoder"), GAN_FROM))
    noise_key, augment_key = jax.random.split(decoder_key)
    whole, lpips = autoencoder(config), component(config, "lpips").module
    discriminator, frozen, before = with_heads(config), state.frozen, state.discriminator
    low, high = loss.lpips_range

    def decode(params, tokens):
        return whole.apply({"params": {"decoder": params}}, tokens, method="decode")

    def reconstruction_loss(decoded):
        distance = lpips.apply({"params": frozen["lpips"]}, *(x * (high - low) + low for x in (images, decoded)))
        return jnp.mean(jnp.abs(decoded - images)) + jnp.mean(distance)

    def judge(heads, spectral, key, images, **options):
        variables = {"params": {"dino": frozen["discriminator"], "heads": heads}, "spectral": spectral}
        return discriminator.apply(variables, diffaug.augment(key, images), **options)

    def gan_loss(decoded):
        return -jnp.mean(judge(before["heads"], before["spectral"], augment_key, 2 * decoded - 1))

    @jax.jit
    def expected(params):
        tokens = whole.apply({"params": {"encoder": frozen["encoder"]}}, images, method="tokens")
        noisy = noise_augmentation(noise_key, tokens, config.decoder.noise_tau)
        (reconstructed, of_reconstruction), (gan, of_gan) = (
            jax.value_and_grad(lambda p, f=f: f(decode(p, noisy)))(params) for f in (reconstruction_loss, gan_loss)
        )
        if changes == LAST_LAYER:
            norms = [jnp.linalg.norm(g["pixels"]["kernel"]) for g in (of_reconstruction, of_gan)]
        else:
            norms = [jnp.linalg.norm(jax.grad(f)(decode(params, noisy))) for f in (reconstruction_loss, gan_loss)]
        weight = norms[0] / (norms[1] + 1e-6)
        gradient = jax.tree.map(lambda a, b: a + 0.75 * weight * b, of_reconstruction, of_gan)
        total = reconstructed + 0.75 * weight * gan
        return weight, optax.tree.norm(gradient), total, decode(params, noisy), tokens

    weight, norm, total, decoded, tokens = expected(state.params)
    new, metrics = step(state, batch)
    assert metrics["adaptive_weight"] == pytest.approx(float(weight), rel=1e-4)
    assert metrics["gradient_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert metrics["loss"] == pytest.approx(float(total), rel=1e-4)

    fakes = jax.jit(decode)(new.params, tokens) if changes == LAST_LAYER else decoded
    fakes = np.round(np.clip(fakes, 0, 1) * np.float32(255)) / np.float32(127.5) - 1
    fake_key, real_key = jax.random.split(discriminator_key)

    def discriminator_loss(heads):
        options = {"update": True, "mutable": ["spectral"]}
        fake, once = judge(heads, before["spectral"], fake_key, fakes, **options)
        real, twice = judge(heads, once["spectral"], real_key, 2 * images - 1, **options)
        return adversarial.hinge_discriminator_loss(real, fake), (twice["spectral"], jnp.mean(real > fake))

    (value, (spectral, accuracy)), gradient = jax.jit(jax.value_and_grad(discriminator_loss, has_aux=True))(
        before["heads"]
    )
    assert metrics["discriminator_loss"] == pytest.approx(float(value), rel=1e-4)
    assert metrics["discriminator_accuracy"] == pytest.approx(float(accuracy), abs=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), new.discriminator["spectral"], spectral)
    # Adam's first moment after one update from zero is (1 - beta1) times the clipped gradient.
    clip = min(1.0, config.decoder.loss.discriminator_optimizer.clip_norm / float(optax.tree.norm(gradient)))
    beta1 = config.decoder.loss.discriminator_optimizer.beta1
    (moment,) = [s.mu for s in jax.tree.leaves(new.discriminator["opt_state"], is_leaf=_is_adam) if _is_adam(s)]
    jax.tree.map(
        lambda m, g: np.testing.assert_allclose(m, (1 - beta1) * clip * g, rtol=2e-3, atol=1e-7), moment, gradient
    )


def _is_adam(x):
    return isinstance(x, optax.ScaleByAdamState)


def test_discriminators_apart_each_learn_from_their_own_part_of_the_batch_as_one_alone_would():
    config, _, state, _ = prepared()
    alone = ImageLoss(config, config.decoder.loss)
    config = tiny(**{"discriminator.apart": 2})
    apart = ImageLoss(config, config.decoder.loss)
    start = jax.jit(alone.init_discriminator)
    first, second = (jax.device_get(start(jax.random.key(seed))) for seed in (3, 4))
    both = jax.tree.map(lambda *x: np.stack(x), first, second)
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(apart.init_discriminator, jax.random.key(3)))
    assert shapes == jax.tree.map(np.shape, both)
    images, fakes = np.random.default_rng(0).random((2, BATCH, 32, 32, 3)).astype(np.float32)
    key, half = jax.random.key(9), BATCH // 2

    @jax.jit
    def together(state):
        after, metrics = apart.train_discriminator(state, images, lambda: fakes, key)
        return after, metrics["discriminator_loss"], apart._gan_loss(fakes, state, key)

    @jax.jit
    def one(state, images, fakes, key):
        after, metrics = alone.train_discriminator(state, images, lambda: fakes, key)
        return after, metrics["discriminator_loss"], alone._gan_loss(fakes, state, key)

    state = at_step(state, GAN_FROM)
    after, *values = jax.device_get(together(state.replace(discriminator=both)))
    expected = [
        jax.device_get(one(state.replace(discriminator=its), images[rows], fakes[rows], part_key))
        for its, rows, part_key in zip(
            (first, second), (slice(half), slice(half, None)), jax.random.split(key, 2), strict=True
        )
    ]
    for value, *ours in zip(values, *(each[1:] for each in expected), strict=True):
        np.testing.assert_allclose(value, np.mean(ours), rtol=1e-4)
    # What is learnt is in the optimizer's averages of the gradients; the update itself divides by their size.
    for name, tolerance in {"opt_state": 1e-5, "spectral": 1e-5, "heads": 5e-5}.items():
        for part, (its, *_) in enumerate(expected):
            ours = jax.tree.map(lambda x, part=part: x[part], after[name])
            jax.tree.map(
                lambda a, b, tolerance=tolerance: np.testing.assert_allclose(a, b, rtol=1e-3, atol=tolerance),
                ours,
                its[name],
            )
    assert max(float(np.abs(x).max()) for x in jax.tree.leaves(after["opt_state"]) if x.dtype == np.float32) > 1e-3
    assert not same(after["heads"], both["heads"])
    with pytest.raises(ValueError, match=r"3 images do not divide into discriminator\.apart=2 equal parts"):
        apart._gan_loss(fakes[:3], state.replace(discriminator=both), key)


def test_each_term_is_nothing_before_its_first_step():
    _, _, state, step = prepared()
    seen = {}
    for number in range(GAN_FROM + 1):
        new, seen[number] = step(at_step(state, number), a_batch())
        for part in ("heads", "spectral", "opt_state"):
            moved = not same(new.discriminator[part], state.discriminator[part])
            assert moved == (number >= DISCRIMINATOR_FROM)
    for name, first in (
        ("lpips", LPIPS_FROM),
        ("discriminator_loss", DISCRIMINATOR_FROM),
        ("gan_loss", GAN_FROM),
        ("adaptive_weight", GAN_FROM),
    ):
        assert [float(seen[number][name]) != 0 for number in seen] == [number >= first for number in seen], name
    assert seen[0]["loss"] == pytest.approx(float(seen[0]["l1"]), rel=1e-6)


def test_the_average_follows_the_decoder_and_the_heads_follow_their_own_schedule():
    config, _, state, step = prepared()
    new, metrics = step(at_step(state, DISCRIMINATOR_FROM + 4), a_batch())
    decay = config.decoder.train.ema_decay
    expected = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, state.params, new.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.ema_params, expected)
    rate = config.decoder.loss.discriminator_optimizer.learning_rate
    assert metrics["discriminator_learning_rate"] == pytest.approx(rate * 5 / 10)


@pytest.mark.slow
def test_balancing_by_the_last_layer_costs_no_second_backward_pass():
    def operations(changes):
        _, _, state, step = prepared(*changes)
        return step.lower(state, a_batch()).compile().cost_analysis()["flops"]

    decoder = prepared()[0].decoder.model
    by_layer = operations(LAST_LAYER)
    by_pixels = operations((("decoder.loss.adaptive_weight", "pixels"),))
    kernel_gradient = 2 * BATCH * 16 * decoder.width * 3 * decoder.patch_size**2  # 16 tokens, multiply and add
    assert 0 < by_layer - by_pixels < 1.1 * 2 * kernel_gradient


def test_coordinates_are_stretched_in_each_block_of_a_training_step_and_in_nothing_else():
    config = tiny(**{"decoder.noise_tau": 0.0, "decoder.coordinate_stretch": 2.0})
    config.decoder.loss.update(lpips_weight=0.0, gan_weight=0.0)
    config.encoder.model.positions, config.encoder.model.depth = "rotary", 2
    objective = reconstruction.make(config, "decoder")
    rng, batch = np.random.default_rng(0), a_batch()
    params, encoder = (
        jax.tree.map(lambda x: 0.7 * rng.normal(size=x.shape).astype(np.float32), component(config, name).structure())
        for name in ("decoder", "encoder")
    )
    state = random_state(objective).starting_at(params).replace(frozen={"encoder": encoder})
    metrics, shown = jax.jit(lambda *given: (objective.train_step(*given)[1], objective.pictures(*given)))(state, batch)

    model_key, _ = jax.random.split(jax.random.fold_in(stage_key(config.seed, "decoder"), 0))
    even = jax.random.uniform(jax.random.fold_in(model_key, 1), (2,), minval=-1.0)
    whole, images = autoencoder(config), batch["image"] / np.float32(255)

    def loss(variables, **scaling):
        tokens = whole.apply(variables, images, **scaling, method="tokens")
        return jnp.abs(whole.apply(variables, tokens, method="decode") - images).mean()

    stretched, plain = jax.jit(lambda variables, even: (loss(variables, coordinate_scales=2.0**even), loss(variables)))(
        {"params": {"encoder": encoder, "decoder": params}}, even
    )
    assert float(metrics["loss"]) == pytest.approx(float(stretched), rel=1e-5)
    assert float(plain) != pytest.approx(float(metrics["loss"]), rel=1e-4)
    assert float(np.abs(shown["reconstruction"] - images).mean()) == pytest.approx(float(plain), rel=1e-5)
    for changes in ({"decoder.coordinate_stretch": 0.5}, {"decoder.coordinate_stretch": 2.0}):
        with pytest.raises(ValueError, match=r"decoder\.coordinate_stretch=.*positions='rotary'"):
            reconstruction.make(tiny(**changes), "decoder")


def test_without_weights_there_is_neither_lpips_nor_discriminator():
    objective = reconstruction.make(digits.get_config("tiny"), "decoder")
    state = jax.eval_shape(objective.init, jax.random.key(0), a_batch())
    assert state.discriminator is None and objective.frozen.keys() == {"encoder"}


def test_larger_decoder_patches_make_larger_images_of_the_same_tokens():
    config = tiny(**{"data.image_size": 64, "decoder.model.patch_size": 16})
    assert latent_space(config).shape == latent_space(tiny()).shape
    objective = reconstruction.make(config, "decoder")
    batch = {"image": jax.ShapeDtypeStruct((BATCH, 64, 64, 3), jnp.uint8)}

    def run(key, batch):
        frozen = {name: sharding.unbox(part.init(key)) for name, part in objective.frozen.items()}
        state = sharding.unbox(objective.init(key, batch)).replace(frozen=frozen)
        return objective.train_step(state, batch), objective.pictures(state, batch)

    (_, metrics), drawn = jax.eval_shape(run, jax.random.key(0), batch)
    assert drawn["reconstruction"].shape == (BATCH, 64, 64, 3) and metrics["loss"].shape == ()


@pytest.mark.slow
def test_accumulated_parts_update_the_decoder_as_the_whole_batch_does_without_noise():
    changes = (("decoder.noise_tau", 0.0), ("decoder.loss.gan_weight", 0.0), ("decoder.loss.lpips_from_step", 0))
    _, _, state, whole = prepared(*changes)
    _, _, _, parts = prepared(*changes, ("decoder.train.gradient_accumulation", 2))
    (_, a), (_, b) = whole(state, a_batch()), parts(state, a_batch())
    for name in ("loss", "lpips", "gradient_norm"):
        assert a[name] == pytest.approx(float(b[name]), rel=1e-4)


def test_a_checkpoint_brings_back_the_discriminator(tmp_path):
    _, _, state, step = prepared()
    new, _ = step(at_step(state, GAN_FROM), a_batch())
    about = About(stage="decoder", components={"decoder": ""}, ema_decays=[0.9], best=None)
    saved = Checkpoints(tmp_path, keep=1, keep_every=0, config={}, about=about)
    saved.save(new, 4, {"position": 0}, {})
    saved.close()
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    structure = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state)
    opened = Checkpoints(tmp_path, keep=1, keep_every=0, config={}, about=about)
    restored, _ = opened.restore(structure.replace(frozen=None), lambda text: None)
    opened.close()
    assert same(restored.discriminator, new.discriminator)
    assert same(find(tmp_path).read("decoder"), new.ema_params)
    again, _ = step(jax.device_get(restored).replace(frozen=state.frozen), a_batch())  # bound to no device: one program
    expected, _ = step(new, a_batch())
    assert same(again, expected)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("decoder.loss.adaptive_weight", "last", r"adaptive_weight='last'.*last_layer"),
        ("decoder.loss.discriminator_fakes", "fresh", r"discriminator_fakes='fresh'.*clean"),
        ("discriminator.loss", "wasserstein", r"discriminator.loss='wasserstein'.*hinge"),
        ("decoder.loss.gan_from_step", 1, r"gan_from_step=1 is before .*discriminator_from_step=2"),
    ],
)
def test_a_loss_that_means_nothing_is_refused(field, value, text):
    config = tiny(**{field: value})
    with pytest.raises(ValueError, match=text):
        ImageLoss(config, config.decoder.loss)


def test_parts_of_a_batch_are_refused_where_the_discriminator_needs_the_whole():
    changes = {"decoder.loss.discriminator_fakes": "noisy", "decoder.train.gradient_accumulation": 2}
    with pytest.raises(ValueError, match="gradient_accumulation=2"):
        reconstruction.make(tiny(**changes), "decoder")
