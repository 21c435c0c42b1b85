import importlib
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
import runs
from products import kinds_of_products

from configs import digits
from rae_jax.costs import compile_report
from rae_jax.costs.compile_report import KernelCall, contradiction, lower_step, mesh_over, products, read_schedule
from rae_jax.costs.model_flops import matrix_flops
from rae_jax.training import sharding

SCHEDULE = """HloModule toy, is_scheduled=true

%fused (p: bf16[8,4]) -> bf16[32,4] {
  ROOT %gather.1 = bf16[32,4]{1,0:T(8,128)(2,1)} all-gather(%p), dimensions={0}
}

%condition (c: (s32[], f32[4])) -> pred[] {
  %limit = s32[] constant(5)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (c: (s32[], f32[4])) -> (s32[], f32[4]) {
  %work = f32[4]{0} fusion(%x), kind=kLoop, calls=%sum, backend_config={"estimated_cycles":"100"}
  %reduced = f32[1024]{0:T(128)} all-reduce(%y), to_apply=%sum
  %kernel = f32[4]{0} custom-call(%x), custom_call_target="tpu_custom_call"
  %told = f32[4] custom-call(), custom_call_target="tpu_custom_call", "cost_estimate":{"flops":"9","bytes_accessed":"6"}
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %first = f32[4]{0} fusion(%a), kind=kLoop, calls=%sum, backend_config={"estimated_cycles":"7"}
  %loop = (s32[], f32[4]{0}) while(%t), condition=%condition, body=%body
  %big = f32[64]{0} broadcast(%first), dimensions={}
  %scattered = f32[16]{0} reduce-scatter(%big), dimensions={0}, to_apply=%sum
  %started = (f32[4]{0}, f32[16]{0}) all-gather-start(%first), dimensions={0}
  %fused_gather = bf16[32,4]{1,0} fusion(%q), kind=kCustom, calls=%fused
}
"""


def test_loop_bodies_count_as_often_as_they_run_and_collectives_by_the_bytes_they_move():
    schedule = read_schedule(SCHEDULE)
    assert schedule.cycles == 7 + 5 * 100 and schedule.cycles_once == 107
    assert schedule.custom_calls == {"tpu_custom_call": 5} and schedule.custom_calls_once == {"tpu_custom_call": 1}
    assert schedule.kernels == [KernelCall("told", 9.0, 6.0, 5)]
    assert schedule.collectives == [
        ("all-reduce", False, 4096.0, 5),
        ("reduce-scatter", False, 256.0, 1),
        ("all-gather", True, 64.0, 1),
        ("all-gather", False, 256.0, 1),
    ]


def test_matrix_flops_count_loops_branches_and_gradients():
    a, b = jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((16, 16), jnp.float32)

    def five_times(a, b):
        return jax.lax.scan(lambda x, _: (x @ b, None), a, length=5)[0]

    once = 2 * 8 * 16 * 16
    assert matrix_flops(five_times, a, b) == 5 * once
    assert matrix_flops(jax.grad(lambda b, a: jnp.sum(five_times(a, b))), b, a) == 15 * once
    assert matrix_flops(lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b @ b, lambda: a @ b), a, b) == 2 * once


def test_an_estimate_that_misses_part_of_the_program_counts_for_nothing():
    assert contradiction(2.0, 2.1, 1.0, 0) is None and contradiction(2.0, None, 1.0, 0) is None
    assert "at peak" in contradiction(0.9, 2.0, 1.0, 0)
    assert "less than a third" in contradiction(2.0, 60.0, 1.0, 0)
    assert contradiction(60.0, 2.0, 1.0, 0) is None  # the larger one counts
    assert "3 calls of Pallas kernels do not say" in contradiction(2.0, 2.1, 1.0, 3)


def test_the_precision_of_every_product_is_that_which_the_traced_program_asks_for():
    images, kernel = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.bfloat16), jax.ShapeDtypeStruct((3, 3, 4, 4), jnp.bfloat16)

    def program(a, images, kernel):
        convolved = jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        exact = jnp.matmul(a, a, precision="highest")
        looped = jax.lax.scan(lambda x, _: (jnp.matmul(x, a, precision="high"), None), exact, length=3)[0]
        return looped @ exact, convolved

    arguments = (jax.ShapeDtypeStruct((4, 4), jnp.float32), images, kernel)
    found = products(jax.jit(program).lower(*arguments).as_text())
    assert found == {"float32, highest": 1, "float32, high": 1, "float32, default": 1, "bfloat16, default": 1}
    traced = kinds_of_products(jax.make_jaxpr(program)(*arguments))
    assert set(found) == {f"{dtype}, {precision.name.lower()}" for dtype, precision in traced}


@pytest.mark.parametrize(
    "fields, kinds",
    [
        ({}, {"float32, highest"}),
        # float32 at "default": the modulations and the end of a bfloat16 network, which a TPU rounds like the rest.
        (
            {"dtype": "bfloat16", "encoder.dtype": "float32"},
            {"bfloat16, default", "float32, default", "float32, highest"},
        ),
    ],
)
def test_the_precision_of_a_step_s_products_follows_the_dtypes_of_its_components(fields, kinds, monkeypatch):
    if fields:  # once is enough for the FLOPs, which take a trace of their own
        monkeypatch.setattr(compile_report, "model_flops", lambda *arguments, **keywords: 0.0)
    config = digits.get_config("tiny")
    config.update_from_flattened_dict(fields)
    lowered, _, _ = lower_step(config, "flow", sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}), latents=False)
    assert set(products(lowered.as_text())) == kinds


def test_a_topology_of_no_known_generation_is_one_line():
    status, output = runs.run_module("tools.compile_report", "--config=configs/digits.py:tiny", "--topology=v99:2x2x1")
    assert status == 1 and output.strip().splitlines()[-1].startswith("error: topology 'v99:2x2x1'")


@pytest.mark.slow
@pytest.mark.parametrize("config", ["dith_xl", "rae_dinov2b_vitxl", "rpiae_dinov2b_vitxl", "rpiae_xl", "rac_256"])
@pytest.mark.parametrize("topology", ["v5p:4x4x4", "v6e:8x8", "v5e:16x16"])
def test_every_flagship_config_lays_over_the_slices_that_people_use(config, topology):
    pytest.importorskip("libtpu")
    module = importlib.import_module(f"configs.{config}")
    mesh = mesh_over(module.get_config("coder_0.3x") if config == "rac_256" else module.get_config(), topology)
    assert mesh.size == {"v5p:4x4x4": 64, "v6e:8x8": 64, "v5e:16x16": 256}[topology]


@pytest.mark.slow
@pytest.mark.parametrize("topology, chips", [("v5p:2x2x1", 4), ("v6e:2x2", 4), ("v4:2x2x1", 4)])
def test_the_training_step_compiles_for_tpu_and_its_report_adds_up(tmp_path, topology, chips):
    pytest.importorskip("libtpu")
    command = [sys.executable, "-m", "tools.compile_report", "--config=configs/digits.py:tiny", "--stage=flow",
               f"--topology={topology}", f"--json={tmp_path / 'r'}"]  # fmt: skip
    optimised = {name: value for name, value in os.environ.items() if name != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    done = subprocess.run(command, cwd=runs.ROOT, env=optimised, text=True, capture_output=True, timeout=900)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "r").read_text())
    assert result["chips"] == chips and 0 < result["hbm_bytes_per_chip"] < result["hbm_limit_bytes"]
    slower = max(result["compiler_step_seconds"], result["optimal_seconds"] or 0)
    assert 1 / result["steps_per_second"] == pytest.approx(slower + result["collective_seconds"])
    assert list(result["products"]) == ["float32, highest"]
    assert 0 < result["mfu"] < 1 and result["compile_seconds"] > 0
    assert any(name.startswith("all-reduce") for name in result["collectives"])
    assert result["flops_per_chip"] * chips > 0.9 * result["model_flops"] or result["flops_counted_once"]
