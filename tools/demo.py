"""A page in the browser that generates with what a run has trained, and answers questions about images.

    pip install gradio
    python -m tools.demo --workdir=runs/digits
    python -m tools.demo --workdir=runs/digits_text --port=8000

A class or a prompt, the number of steps (those of the velocity network, or one and two of a flow map), guidance and a
seed give eight images; the same ones give the same images. With a language model there is a second tab: an image and a
question. The page is for this machine alone unless --share is given.
"""

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs import base
from rae_jax.components.language import speaks
from rae_jax.experiment.answers import Answers
from rae_jax.experiment.configuration import resolved
from rae_jax.experiment.dataset import class_names
from rae_jax.experiment.generation import Generation
from rae_jax.experiment.weights import Weights
from rae_jax.experiment.workdir import CONFIG
from rae_jax.files import local_path
from rae_jax.interop.weights import tuples
from rae_jax.training import sharding
from rae_jax.training.progress import RunLog

SHOWN = 8  # images at once
GUIDANCE = (1.0, 8.0)  # ends of the slider


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=local_path, required=True, help="of the run")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--share", action="store_true", help="let Gradio give the page a public address")
    options = parser.parse_args(arguments)
    try:
        shown = page(Session(options.workdir))
    except ValueError as error:
        sys.exit(f"error: {error}")
    shown.launch(server_port=options.port, share=options.share, quiet=True)


class Session:
    """What one run can make, asked for in words.

    Attributes:
      config: of the run.
      names: its classes in the order of their labels; None where it has none, or is told prompts.
      steps: the numbers of steps that there are, the most first, and the way of each.

    Raises:
      ValueError: there is no run, or it has no weights to generate with.
    """

    def __init__(self, workdir: Path):
        self._workdir = workdir
        self.config = resolved(recalled(workdir), workdir)
        self.prompted = speaks(self.config)
        self.names = None if self.prompted else class_names(workdir)
        self._mesh = sharding.make_mesh(dict.fromkeys(("data", "fsdp", "tensor"), 1))
        self._log = RunLog(workdir, active=False)
        self._generation = functools.lru_cache(maxsize=4)(self._with_guidance)  # compiled programs among others
        with sharding.use(self._mesh):
            generation = self._generation(self.config.sampling.guidance_scale)
            generation.require_weights()
        number = lambda way: int(way.removeprefix("samples_").removesuffix("step"))  # noqa: E731
        self.steps = {self.config.sampling.num_steps if w == "samples" else number(w): w for w in generation.ways}

    def images(self, words: str, steps: int, guidance: float, seed: int) -> np.ndarray:
        """Eight images uint8 `[8, H, W, 3]` of what `words` ask for.

        Raises:
          ValueError: there is no such class, or the prompt is too long.
        """
        words = self._label(words)
        with sharding.use(self._mesh):
            generation = self._generation(float(guidance))
            return generation.images(self.steps[int(steps)], words, int(seed) * SHOWN + np.arange(SHOWN))

    def answer(self, image: np.ndarray, question: str) -> str:
        """What the language model says to a question about an image, uint8 `[H, W, 3]`.

        Raises:
          ValueError: the question is too long.
        """
        with sharding.use(self._mesh):
            return self._answers.of_image(image, question)

    def _label(self, words: str) -> str:
        """A class by its name or by its number; a prompt as it is."""
        if self.names and words.strip() in self.names:
            return str(self.names.index(words.strip()))
        return words

    @functools.cached_property
    def _answers(self) -> Answers:
        return Answers(self.config, self._weights(self.config))

    def _weights(self, config: ConfigDict) -> Weights:
        return Weights(config, {}, self._workdir, self._mesh, self._log.warn)

    def _with_guidance(self, guidance: float) -> Generation:
        config = self.config.copy_and_resolve_references()
        config.sampling.guidance, config.sampling.guidance_scale = "classifier_free", guidance
        config.sampling.batch_size = SHOWN
        return Generation(config, self._weights(config), self._mesh, self._workdir, self._log)


def recalled(workdir: Path) -> ConfigDict:
    """The config of the run in `workdir`, as it keeps it; fields that are newer have their defaults.

    Raises:
      ValueError: there is no run.
    """
    file = workdir / CONFIG
    if not file.is_file():
        raise ValueError(f"--workdir={workdir}: there is no run, for there is no {file}")
    return ConfigDict(_over(base.get_config().to_dict(), tuples(json.loads(file.read_text()))))


def _over(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    both = {name: value for name, value in defaults.items() if name not in values}
    nested = lambda name: isinstance(values[name], dict) and isinstance(defaults.get(name), dict)  # noqa: E731
    return both | {name: _over(defaults[name], values[name]) if nested(name) else values[name] for name in values}


def page(session: Session) -> Any:
    """The page, a `gradio.Blocks`.

    Raises:
      ValueError: Gradio is not installed.
    """
    try:
        import gradio
    except ImportError as error:
        raise ValueError("the page needs Gradio: pip install gradio") from error

    def generate(words: str, steps: int, guidance: float, seed: float) -> list[np.ndarray]:
        try:
            return list(session.images(words, steps, guidance, int(seed)))
        except ValueError as error:
            raise gradio.Error(str(error)) from None

    def answer(image: np.ndarray | None, question: str) -> str:
        if image is None:
            raise gradio.Error("choose an image first")
        try:
            return session.answer(image, question)
        except ValueError as error:
            raise gradio.Error(str(error)) from None

    with gradio.Blocks(title="rae_jax", analytics_enabled=False) as blocks:
        gradio.Markdown("# rae_jax")
        with gradio.Tab("Generate"):
            if session.names:
                words = gradio.Dropdown(list(session.names), value=session.names[0], label="Class")
            else:
                words = gradio.Textbox(label="Prompt" if session.prompted else "Class", elem_id="words")
            with gradio.Row():
                steps = gradio.Radio(list(session.steps), value=next(iter(session.steps)), label="Steps")
                guidance = gradio.Slider(*GUIDANCE, value=session.config.sampling.guidance_scale, label="Guidance")
                seed = gradio.Number(0, label="Seed", precision=0)
            button = gradio.Button("Generate", variant="primary", elem_id="generate")
            gallery = gradio.Gallery(label="Images", columns=4, elem_id="images", format="png")
            button.click(generate, [words, steps, guidance, seed], gallery)
        if session.prompted:
            with gradio.Tab("Ask"):
                image, question = gradio.Image(label="Image"), gradio.Textbox(label="Question")
                asking, said = gradio.Button("Ask", variant="primary"), gradio.Textbox(label="Answer")
                asking.click(answer, [image, question], said)
    return blocks


if __name__ == "__main__":
    main()
