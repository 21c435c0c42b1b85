"""`--dry_run`: what it says of memory, and that it leaves nothing behind."""

import jax
import pytest
import runs

from configs import digits
from rae_jax.costs.dry_run import state_bytes
from rae_jax.experiment.configuration import example_batch
from rae_jax.objectives.catalogue import OBJECTIVES
from rae_jax.training import sharding


@pytest.mark.parametrize("stage", ["decoder", "flow"])
def test_the_state_has_as_many_bytes_as_one_that_is_made(stage):
    config = digits.get_config("tiny")
    sizes = state_bytes(config, stage, sharding.make_mesh(config.mesh.to_dict()))
    objective, key = OBJECTIVES[config[stage].objective](config, stage), jax.random.key(0)
    state = sharding.unbox(jax.jit(lambda key: objective.init(key, example_batch(config, stage, objective)))(key))
    frozen = {name: jax.jit(part.init)(key) for name, part in objective.frozen.items()}

    def measured(tree):
        return sum(x.nbytes for x in jax.tree.leaves(sharding.unbox(tree)))

    assert sizes == {
        "parameters": measured(state.params),
        "average": measured(state.ema_params),
        "optimizer": measured(state.opt_state),
        "discriminator": 0,
        "frozen": measured(frozen),
    }


def test_it_shows_config_models_and_stages_over_the_devices_and_writes_nothing(tmp_path):
    options = ("--config.flow.train.steps=1234", "--config.encoder.train.epochs=2")  # of 1,438 digits, in batches of 16
    status, output = runs.run(tmp_path / "run", "--dry_run", *options, devices=2)
    assert status == 0, output
    assert '"steps": 1234' in output and "MiB of state on each of 2 devices (data=2 x fsdp=1 x tensor=1)" in output
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if line.startswith("│")]
    assert ["image of latents", "5,808"] in [row[:2] for row in rows]
    assert ["encoder", "178", "16"] in [row[:3] for row in rows]
    of_flow = [row for row in rows if row[0] == "flow"]  # as a model, as a step, as memory
    assert [row[1:3] for row in of_flow][1] == ["1,234", "16"]
    assert float(of_flow[2][1]) == pytest.approx(sum(map(float, of_flow[2][2:])), abs=0.03)
    assert {"encoder", "decoder", "stats", "mid_training", "flow_map"} <= {row[0] for row in rows[-6:]}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_with_a_topology_the_compiler_reports_too(tmp_path):
    pytest.importorskip("libtpu")
    status, output = runs.run(tmp_path / "run", "--dry_run", "--topology=v5p:2x2x1", "--config.mesh.fsdp=4")
    assert status == 0, output
    assert "on each of 4 devices (data=1 x fsdp=4 x tensor=1)" in output
    assert "train_step on v5p:2x2x1" in output and "memory a device" in output
    assert list(tmp_path.iterdir()) == []


def test_a_topology_without_a_dry_run_is_an_error(tmp_path):
    status, output = runs.run(tmp_path / "run", "--topology=v5p:2x2x1")
    assert status != 0 and "--topology goes with --dry_run" in output
