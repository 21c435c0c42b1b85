"""float32 is float32 on a TPU too: how exactly the products of a step are asked for, by the dtype of its component.

`objectives/test_contract.py` asks it of every objective's step.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from products import DEFAULT, HIGH, HIGHEST, kinds_of_products, products

from configs import digits
from rae_jax.components.catalogue import component
from rae_jax.experiment.configuration import example_batch
from rae_jax.objectives.catalogue import OBJECTIVES
from rae_jax.training.sharding import unbox


def of_step(config, stage: str) -> set[tuple[str, jax.lax.Precision]]:
    objective = OBJECTIVES[config[stage].objective](config, stage)
    batch, key = example_batch(config, stage, objective), jax.random.key(0)

    state = unbox(jax.eval_shape(objective.init, key, batch))
    state = state.replace(frozen={name: part.structure() for name, part in objective.frozen.items()})
    return kinds_of_products(jax.make_jaxpr(objective.train_step)(state, batch))


def test_every_product_of_a_decoder_that_learns_against_a_discriminator_is_exact():
    config = digits.get_config("tiny")
    config.lpips.network = "alexnet"
    config.decoder.loss.lpips_weight, config.decoder.loss.gan_weight = 1.0, 0.75
    config.discriminator.model.update(image_size=32, width=16, depth=1, num_heads=2, mlp_dim=32, key_depths=(0,))
    assert of_step(config, "decoder") == {("float32", HIGHEST)}


def test_bfloat16_is_one_pass_and_the_encoder_beside_it_may_be_float32():
    config = digits.get_config("tiny")
    config.dtype, config.encoder.dtype = "bfloat16", "float32"
    found = of_step(config, "flow")
    assert ("bfloat16", DEFAULT) in found and ("float32", HIGHEST) in found and ("bfloat16", HIGHEST) not in found


def test_the_covariance_of_tokens_is_exact_in_whatever_precision_the_encoder_computes():
    config = digits.get_config("tiny")
    config.encoder.dtype = "bfloat16"
    of_encoder = of_step(config, "encoder")
    config.encoder.covariance_weight = 0.1
    assert ("float32", HIGHEST) not in of_encoder
    assert of_step(config, "encoder") == of_encoder | {("float32", HIGHEST)}
    config.encoder.dtype = "float32"
    assert of_step(config, "encoder") == {("float32", HIGHEST)}


def test_float32_in_three_passes_is_a_choice_by_name():
    config = digits.get_config("tiny")
    config.flow.dtype = "bfloat16_3x"
    network = component(config, "flow")
    params = network.structure()
    arguments = (jnp.zeros((1, 16, 16)), jnp.zeros(1), jnp.zeros(1, jnp.int32))
    program = jax.make_jaxpr(jax.grad(lambda p: jnp.sum(network.apply(p, *arguments))))(params)
    assert {precision for _, precision in products(program.jaxpr)} <= {HIGH, HIGHEST}
    assert HIGH in {precision for _, precision in products(program.jaxpr)}


@pytest.mark.parametrize("field", ["dtype", "flow.dtype"])
def test_another_dtype_is_refused_by_its_field(field):
    config = digits.get_config("tiny")
    config.update_from_flattened_dict({field: "float16"})
    with pytest.raises(ValueError, match=rf"^{field}='float16' is not one of \['float32', 'bfloat16_3x', 'bfloat16'\]"):
        component(config, "flow")


def test_the_errors_of_products_in_one_pass_in_three_and_in_float32_are_those_of_the_documents():
    """A TPU's passes are products of bfloat16 numbers summed in float32; three leave out that of both errors."""

    def bfloat16(x):
        return np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32)

    def product(x, y):
        """Summed term by term: the order, and with it the error, of NumPy's own is the processor's."""
        total = np.zeros((len(x), y.shape[1]), np.float32)
        for column, row in zip(x.T, y, strict=True):
            total += np.outer(column, row)
        return total

    random = np.random.default_rng(0)
    a, b = (random.normal(size=shape).astype(np.float32) for shape in ((64, 768), (768, 64)))
    exact = a.astype(np.float64) @ b
    (high_a, high_b), (low_a, low_b) = (
        (bfloat16(a), bfloat16(b)),
        (bfloat16(a - bfloat16(a)), bfloat16(b - bfloat16(b))),
    )
    measured = {
        '"bfloat16"': product(high_a, high_b),
        '"bfloat16_3x"': product(high_a, high_b) + (product(high_a, low_b) + product(low_a, high_b)),
        '"float32"': product(a, b),
    }
    table = (Path(__file__).parents[2] / "docs/performance.md").read_text()
    for name, found in measured.items():
        said = float(re.search(rf"\| `{name}` \|.*\| ([\d.e-]+) \|\n", table).group(1))
        error = np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2))
        assert error == pytest.approx(said, rel=0.05), name
