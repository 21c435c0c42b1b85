import json
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from jax.sharding import NamedSharding, PartitionSpec

from rae_jax.training import sharding


def boxed(shape, *names):
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)


def test_one_axis_takes_the_devices_that_are_left():
    assert sharding.mesh_shape({"data": -1, "fsdp": 2, "tensor": 2}, 8) == {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ({"data": 3, "fsdp": 1, "tensor": 1}, "does not lay over 8 devices"),
        (
            {"data": -1, "fsdp": 12, "tensor": 3},
            "--config.mesh.data=-1 --config.mesh.fsdp=4 --config.mesh.tensor=1 does",
        ),
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


STREAMS = """
import json, re
import jax, jax.numpy as jnp
from rae_jax.models.decoder import ViTDecoder
from rae_jax.models.dit_dh import DiTDH
from rae_jax.models.vit import VisionTransformer
from rae_jax.training import sharding

size = dict(width=64, num_heads=4)
image, tokens = jnp.zeros((64, 32, 32, 3)), jnp.zeros((64, 16, 64))
vit, head = dict(image_size=32, patch_size=8, mlp_dim=256), dict(head_width=64, head_depth=1, head_num_heads=4)
told = (tokens, jnp.zeros(64), jnp.zeros(64, jnp.int32))
models = {
    "encoder": (VisionTransformer(depth=2, **vit, **size), image),
    "scanned encoder": (VisionTransformer(depth=2, scan=True, **vit, **size), image),
    "decoder": (ViTDecoder(grid_size=4, patch_size=8, mlp_dim=256, depth=1, **size), tokens),
    "generator": (DiTDH(grid_size=4, in_channels=64, num_classes=10, depth=2, **head, **size), *told),
}
mesh, divided = sharding.make_mesh({"data": 2, "fsdp": 4, "tensor": 1}), {}
with sharding.use(mesh):
    for name, (model, *inputs) in models.items():
        boxed = jax.eval_shape(model.init, jax.random.key(0), *inputs)
        step = jax.jit(model.apply, in_shardings=(sharding.shardings_of(boxed, mesh), *[None] * len(inputs)))
        program = step.lower(sharding.unbox(boxed), *inputs).as_text()
        stream = r'sharding_constraint .*\\[\\{"data", "fsdp"\\}, \\{\\}, \\{\\}\\]> : tensor<64x\\d+x64xf32>'
        divided[name] = len(re.findall(stream, program))
print(json.dumps(divided))
"""


def test_every_block_has_its_residual_stream_divided_by_the_batch():
    done = subprocess.run(
        [sys.executable, "-c", STREAMS], cwd=runs.ROOT, env=runs.environment(8), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    # Of scanned blocks the program has one.
    expected = {"encoder": 2, "scanned encoder": 1, "decoder": 1, "generator": 3}
    assert json.loads(done.stdout.splitlines()[-1]) == expected


WORK = """
import json
import jax, jax.numpy as jnp
from rae_jax.models.decoder import ViTDecoder
from rae_jax.models.vit import VisionTransformer
from rae_jax.training import sharding

size = dict(width=64, num_heads=4)
models = {
    "encoder": (VisionTransformer(image_size=32, patch_size=8, mlp_dim=256, depth=1, **size), (32, 32, 3)),
    "scanned encoder": (
        VisionTransformer(image_size=32, patch_size=8, mlp_dim=256, depth=2, scan=True, **size), (32, 32, 3)
    ),
    "decoder": (ViTDecoder(grid_size=4, patch_size=8, mlp_dim=256, depth=1, **size), (16, 64)),
}
flops = {name: [] for name in models}
for name, (model, shape) in models.items():
    for fsdp in (1, 8):
        mesh = sharding.make_mesh({"data": -1, "fsdp": fsdp, "tensor": 1})
        with sharding.use(mesh):
            boxed = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))
            rows = sharding.batch_sharding(mesh)
            step = jax.jit(
                jax.grad(lambda params, x: jnp.sum(model.apply(params, x) ** 2)),
                in_shardings=(sharding.shardings_of(boxed, mesh), rows),
            )
            work = step.lower(sharding.unbox(boxed), jax.ShapeDtypeStruct((64, *shape), jnp.float32)).compile()
        flops[name].append(work.cost_analysis()["flops"])
print(json.dumps(flops))
"""


def test_dividing_the_weights_gives_no_device_the_rows_of_another():
    done = subprocess.run(
        [sys.executable, "-c", WORK], cwd=runs.ROOT, env=runs.environment(8), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for name, (whole_weights, divided_weights) in json.loads(done.stdout.splitlines()[-1]).items():
        assert divided_weights < 1.2 * whole_weights, name


def test_a_program_for_one_call_gives_what_an_optimised_one_gives_where_it_is_asked_to():
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    where = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

    def draw(key):
        return jax.random.normal(key, (16, 8)), jax.random.truncated_normal(key, -2, 2, (16, 8))

    drawn = sharding.jit_for_one_call(draw, mesh, where)(jax.random.key(0))
    for found, expected in zip(drawn, jax.jit(draw)(jax.random.key(0)), strict=True):
        assert found.sharding == where
        np.testing.assert_allclose(found, expected, rtol=1e-5)
