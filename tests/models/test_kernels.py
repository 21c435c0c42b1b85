"""What the attention kernels share: which device has which rows and heads."""

import jax
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from rae_jax.models.kernels import rows_and_heads
from rae_jax.training import sharding

BATCH = sharding.BATCH_AXES


@pytest.mark.parametrize(
    "rows, heads, divided",
    [(4, 2, (BATCH, "tensor")), (3, 2, (None, "tensor")), (4, 1, (BATCH, None)), (3, 1, ((), ()))],
)
def test_rows_and_heads_that_the_mesh_does_not_divide_stay_whole(rows, heads, divided):
    assert rows_and_heads(rows, heads) == PartitionSpec((), ())  # without a mesh
    mesh = jax.sharding.AbstractMesh((2, 1, 2), sharding.MESH_AXES)
    with jax.sharding.use_abstract_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
        assert rows_and_heads(rows, heads) == PartitionSpec(*divided)
