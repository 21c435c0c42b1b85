"""One computation whatever it runs on: devices, meshes, processes."""

import pytest
import runs

STAGES = ("encoder", "decoder", "flow")
FLOW_MAPS = ("mid_training", "flow_map")
MESHES = {
    "fsdp=8": (8, "--config.mesh.data=1", "--config.mesh.fsdp=8"),
    "data=2 x fsdp=2 x tensor=2": (8, "--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"),
}


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("parallel") / "one"
    status, output = runs.run(workdir)
    assert status == 0, output
    return workdir


def assert_same_losses(workdir, reference):
    for stage in STAGES:
        losses, expected = runs.metrics(workdir, stage), runs.metrics(reference, stage)
        assert sorted(losses) == list(range(1, 21))
        for step, loss in losses.items():
            assert abs(loss - expected[step]) <= 1e-4 * abs(expected[step]), (stage, step, loss, expected[step])


def assert_same_flow_maps(workdir, reference):
    for stage in FLOW_MAPS:
        name = "loss" if stage == "mid_training" else "mean_squared_error"  # MeanFlow's weighting keeps its loss near 1
        losses, expected = runs.metrics(workdir, stage, name), runs.metrics(reference, stage, name)
        assert sorted(losses) == list(range(1, 21))
        for step, loss in losses.items():
            # The difference of two velocities near 1, thousandths at this size, has their rounding to 1e-7, and what
            # Adam makes of the rounding of gradients as small: 1.1e-6 was measured at one step, with fsdp and tensor.
            assert abs(loss**0.5 - expected[step] ** 0.5) <= 2e-6, (stage, step, loss, expected[step])


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_losses_over_20_steps_do_not_depend_on_the_mesh(mesh, one_device, tmp_path):
    devices, *options = MESHES[mesh]
    whole = mesh == "data=2 x fsdp=2 x tensor=2"
    if not whole:
        options.append(runs.WITHOUT_FLOW_MAP)
    status, output = runs.run(tmp_path / "run", *options, devices=devices)
    assert status == 0, output
    assert_same_losses(tmp_path / "run", one_device)
    if whole:
        assert_same_flow_maps(tmp_path / "run", one_device)


@pytest.mark.slow
def test_losses_over_20_steps_do_not_depend_on_the_number_of_processes(one_device, tmp_path):
    count = 4
    common = ("--distributed", f"--coordinator_address={runs.free_address()}", f"--num_processes={count}")
    common = (*common, "--config.mesh.data=8", runs.WITHOUT_FLOW_MAP)
    processes = [runs.start(tmp_path / "run", *common, f"--process_id={i}", devices=8 // count) for i in range(count)]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * count, "\n".join(outputs)
    assert_same_losses(tmp_path / "run", one_device)
