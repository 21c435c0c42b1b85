"""Several processes go on from one checkpoint, though one of them cannot read the newest."""

import atexit
import os

import jax
import jax.numpy as jnp
import runs

from rae_jax.training import sharding
from rae_jax.training.checkpoint import Checkpoints, structure_of
from rae_jax.training.checkpoint_weights import find
from rae_jax.training.state import TrainState


def member(address, number, folder, output):
    """One of the two processes."""
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    jax.config.update("jax_platforms", "cpu")
    try:
        jax.distributed.initialize(address, 2, number)
        save_and_go_on(folder)
    finally:
        atexit._run_exitfuncs()


def save_and_go_on(folder):
    mesh = sharding.make_mesh({"data": 1, "fsdp": 2, "tensor": 1})
    split = sharding.batch_sharding(mesh)

    def state(step):
        rows = jax.make_array_from_callback((4,), split, lambda index: jnp.full((4,), float(step))[index])
        whole = jax.make_array_from_callback((), sharding.replicated(mesh), lambda index: jnp.asarray(step))
        return TrainState(step=whole, params={"w": rows}, ema_params={"w": rows}, opt_state=())

    def opened():
        about = {"stage": "toy", "components": {"toy": ""}, "ema_decays": [0.9], "best": None}
        return Checkpoints(folder, keep=3, keep_every=0, config={}, about=about)

    checkpoints = opened()
    for step in (1, 2, 3):
        checkpoints.save(state(step), step, {"position": step}, {})
    checkpoints.close()

    checkpoints, read = opened(), Checkpoints._read

    def broken(self, step, structure):
        if jax.process_index() == 1 and step == 3:
            raise OSError("Input/output error")
        return read(self, step, structure)

    Checkpoints._read = broken  # of this process, which ends with this
    layout = jax.tree.map(lambda x: x.sharding, state(0))
    restored, position = checkpoints.restore(structure_of(state(0), layout), lambda text: print(text, flush=True))
    print("restored", int(restored.step), position, [float(x.data[0]) for x in restored.params["w"].addressable_shards])
    print("on the host", find(folder / "2").read("toy")["w"].tolist(), flush=True)
    checkpoints.save(state(3), 3, {"position": 3}, {})
    checkpoints.close()


def test_all_processes_fall_back_together_when_one_cannot_read_the_newest_checkpoint(tmp_path):
    address, files = runs.free_address(), [tmp_path / f"{i}.txt" for i in range(2)]
    processes = [
        runs.FORKS.Process(target=member, args=(address, i, tmp_path / "checkpoints", file), daemon=True)
        for i, file in enumerate(files)
    ]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(100)
    finally:
        for process in processes:
            process.kill()
    outputs = [file.read_text() for file in files]
    assert [process.exitcode for process in processes] == [0, 0], "\n".join(outputs)
    for output in outputs:
        assert "restored 2 {'position': 2} [2.0]" in output, output
        assert "on the host [2.0, 2.0, 2.0, 2.0]" in output, output
    assert "3 cannot be read (by another process)" in outputs[0]
    assert "3 cannot be read (OSError: Input/output error)" in outputs[1]
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names >= {"1", "2", "3", "3.unreadable"}
