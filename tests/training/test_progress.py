"""What a run shows and sends to whoever watches it."""

import io
import sys
import types

import numpy as np
import pytest
from rich.console import Console

from rae_jax.training.progress import RunLog, StepDisplay, open_wandb

CONFIG = {"stages": ["encoder", "flow"]}
VALUES = {"loss": 0.5, "learning_rate": 2e-4, "images_per_second": 8.0, "data_wait_share": 0.0, "seconds_left": 90.0}


class FakeRun:
    def __init__(self):
        self.logged, self.step_metrics, self.finished = [], {}, False

    def define_metric(self, name, step_metric):
        self.step_metrics[name] = step_metric

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished = True


@pytest.fixture
def fake_wandb(monkeypatch):
    """A module in the place of wandb that remembers how runs were started."""
    module = types.ModuleType("wandb")
    module.started = []
    module.errors = types.SimpleNamespace(Error=RuntimeError)
    module.Image = lambda pixels: ("image", pixels.shape)

    def init(**arguments):
        if arguments["project"] == "refused":
            raise RuntimeError("no key")
        module.started.append(arguments)
        return FakeRun()

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_weights_and_biases_gets_the_scalars_and_pictures_of_each_stage_by_its_own_step(fake_wandb, tmp_path):
    run = open_wandb("digits", tmp_path, CONFIG)
    assert run.step_metrics == {"encoder/*": "encoder/step", "flow/*": "flow/step"}
    log = RunLog(tmp_path, active=True, wandb=run)
    log.metrics("flow", 3, {"loss": 0.5})
    log.image("flow", tmp_path / "step_4.png", np.zeros((4, 6, 3), np.uint8), 4)
    log.close()
    assert run.logged == [
        {"flow/loss": 0.5, "flow/step": 3},
        {"flow/pictures": ("image", (4, 6, 3)), "flow/step": 4},
    ]
    assert run.finished


def test_a_run_that_is_started_again_goes_on_in_the_same_place(fake_wandb, tmp_path):
    for _ in range(2):
        open_wandb("digits", tmp_path / "run", CONFIG)
    open_wandb("digits", tmp_path / "other", CONFIG)
    first, again, other = (started["id"] for started in fake_wandb.started)
    assert first == again != other
    assert all(s["project"] == "digits" and s["resume"] == "allow" and s["config"] == CONFIG
               for s in fake_wandb.started)  # fmt: skip


def test_what_weights_and_biases_refuses_and_its_absence_are_errors_that_name_the_flag(
    fake_wandb, tmp_path, monkeypatch
):
    with pytest.raises(ValueError, match="--wandb=refused: no key"):
        open_wandb("refused", tmp_path, CONFIG)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="--wandb needs Weights & Biases: pip install wandb"):
        open_wandb("digits", tmp_path, CONFIG)


@pytest.mark.slow
def test_the_real_package_takes_it_without_a_network(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    log = RunLog(tmp_path, active=True, wandb=open_wandb("digits", tmp_path, CONFIG))
    log.metrics("flow", 1, {"loss": 0.5})
    log.image("flow", tmp_path / "step_1.png", np.zeros((4, 6, 3), np.uint8), 1)
    log.close()
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_pictures_are_in_the_tensorboard_files(tmp_path):
    log = RunLog(tmp_path, active=True)
    log.image("flow", tmp_path / "step_1.png", np.zeros((4, 6, 3), np.uint8), 1)
    log.close()
    written = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b"flow/pictures" in written and b"\x89PNG" in written


@pytest.mark.parametrize("terminal", [True, False])
def test_the_display_has_loss_rate_speed_and_time_left_and_on_a_terminal_the_last_picture(terminal):
    shown, picture = io.StringIO(), [""]
    console = Console(file=shown, force_terminal=terminal, width=200, soft_wrap=True)
    with StepDisplay(console, "flow", 100, 0, lambda: picture[0]) as display:
        display.report(10, VALUES)
        picture[0] = "runs/x/step_10.png"
        display.advance(11)
    text = shown.getvalue()
    assert "loss 0.5000  rate 0.0002  8 images/s" in text
    if terminal:
        assert "11/100" in text and "left" in text and "runs/x/step_10.png" in text
    else:
        assert "flow step 10/100" in text and "1.5 min left" in text
