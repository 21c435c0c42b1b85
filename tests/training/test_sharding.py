import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from rae_jax.training import sharding


def boxed(shape, *names):
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)


def test_one_axis_takes_the_devices_that_are_left():
    assert sharding.mesh_shape({"data": -1, "fsdp": 2, "tensor": 2}, 8) == {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ({"data": 3, "fsdp": 1, "tensor": 1}, "does not lay over 8 devices"),
        ({"data": 4, "fsdp": 1, "tensor": 1}, "does not lay over 8 devices"),
        ({"data": -1, "fsdp": -1, "tensor": 1}, "at most one axis"),
        ({"data": 0, "fsdp": 1, "tensor": -1}, "does not lay over"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(sizes, text):
    with pytest.raises(ValueError, match=text):
        sharding.mesh_shape(sizes, 8)


def test_parameters_are_divided_as_the_rules_say():
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1})
    tree = {"kernel": boxed((8, 4), "embed", "mlp"), "count": jax.ShapeDtypeStruct((), jnp.int32)}
    placed = sharding.shardings_of(tree, mesh)
    assert placed["kernel"].spec == PartitionSpec("fsdp", "tensor")
    assert placed["count"].spec == PartitionSpec()


def test_an_unknown_axis_name_is_an_error_that_names_the_parameter():
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1})
    with pytest.raises(ValueError, match=r"\['layer'\]\['kernel'\].*'embedd'"):
        sharding.shardings_of({"layer": {"kernel": boxed((8, 4), "embedd", "mlp")}}, mesh)
