"""A page in the browser that generates and edits with what a run has trained, and answers questions about images.

    pip install gradio
    python -m tools.demo --workdir=runs/digits
    python -m tools.demo --workdir=runs/digits_text --port=8000
    python -m tools.demo --workdir=runs/digits_edit

A class or a prompt, the number of steps (those of the velocity network, or one and two of a flow map), guidance and a
seed give eight images; the same ones give the same images. With a language model there is a second tab: an image and a
question. With a mixture of transformers that edits it is another: an image and an instruction, guidance by the text and
by the image; the image stands beside its edits from several noises, those that --mode=edit makes if the seed is 0. The
page is for this machine alone unless --share is given.
"""

import argparse
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs import base
from rae_jax.components.component import Component, Params
from rae_jax.components.language import speaks
from rae_jax.experiment.answers import Answers
from rae_jax.experiment.configuration import resolved
from rae_jax.experiment.dataset import class_names
from rae_jax.experiment.editing import SEEDS, Editing
from rae_jax.experiment.generation import Generation
from rae_jax.experiment.weights import Weights
from rae_jax.experiment.workdir import CONFIG
from rae_jax.files import local_path
from rae_jax.interop.weights import tuples
from rae_jax.training import sharding
from rae_jax.training.progress import RunLog

SHOWN = 8  # images at once
GUIDANCE = (1.0, 8.0)  # ends of the slider
MOST_STEPS = 100  # of an edit, unless the config has more
KEPT = 4  # settings whose compiled programs are kept, the latest


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
    launch(shown, server_port=options.port, share=options.share)


class Session:
    """What one run can make, asked for in words.

    Attributes:
      config: of the run.
      names: its classes in the order of their labels; None where it has none, or is told prompts.
      prompted: whether it is told prompts.
      asks: whether it answers questions about images.
      edits: whether it edits images as it is told.
      steps: the numbers of steps that there are, the most first, and the way of each.

    Raises:
      ValueError: there is no run, or it has no weights to generate with.
    """

    def __init__(self, workdir: Path):
        self._workdir = workdir
        self.config = resolved(recalled(workdir), workdir)
        self.asks, self._mixes = speaks(self.config), bool(self.config.mixture.model)
        self.prompted = self.asks or self._mixes
        self.edits = self._mixes and self.config.mixture.task == "edit"
        self.names = None if self.prompted else class_names(workdir)
        self._mesh = sharding.make_mesh(dict.fromkeys(("data", "fsdp", "tensor"), 1))
        self._log = RunLog(workdir, active=False)
        self._weights = KeptWeights(self.config, {}, workdir, self._mesh, self._log.warn)
        self._generation = functools.lru_cache(KEPT)(self._with_guidance)  # compiled programs among others
        self._editing = functools.lru_cache(KEPT)(self._mixture)
        sampling, told = self.config.sampling, self.config.flow_map
        # One slider for all numbers of steps: no further than a guided flow map has learnt.
        self.guidance = (GUIDANCE[0], min(GUIDANCE[1], told.largest_guidance_scale) if told.guided else GUIDANCE[1])
        with sharding.use(self._mesh):
            one = (self.config.mixture.task, sampling.num_steps, 1.0, 1.0)
            source = self._editing(*one) if self._mixes else self._generation(sampling.guidance_scale)
            source.require_weights()
        number = lambda way: int(way.rpartition("_")[2].removesuffix("step"))  # noqa: E731
        self.steps = {sampling.num_steps if w in ("", "samples") else number(w): w for w in source.ways}

    def images(self, words: str, steps: int, guidance: float, seed: int) -> np.ndarray:
        """Eight images uint8 `[8, H, W, 3]` of what `words` ask for.

        Raises:
          ValueError: there is no such class, or the prompt is too long, or a mixture's empty.
        """
        indices = int(seed) * SHOWN + np.arange(SHOWN)
        with sharding.use(self._mesh):
            if self._mixes:
                way = self._way(int(steps))
                return self._editing("caption", int(steps), float(guidance), 1.0).painted(way, words, indices)
            return self._generation(float(guidance)).images(self.steps[int(steps)], self._label(words), indices)

    def edit(
        self, image: str, instruction: str, steps: int, guidance: float, image_guidance: float, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The image in a file, uint8 `[S, S, 3]`, as the run's images are, and its edits `[SEEDS, S, S, 3]` as told.

        Raises:
          ValueError: the image cannot be read, or the instruction is empty or too long.
        """
        with sharding.use(self._mesh):
            way = self._way(int(steps))
            editing = self._editing("edit", int(steps), float(guidance), float(image_guidance))
            return editing.edited(way, image, instruction, int(seed) * SEEDS + np.arange(SEEDS))

    def _way(self, steps: int) -> str:
        """The way of so many steps: a flow map's own, or of any number if the mixture can be sampled.

        Raises:
          ValueError: it cannot.
        """
        if steps not in self.steps and "" not in self.steps.values():
            raise ValueError(f"there are no samples in {steps} steps, but in {', '.join(map(str, self.steps))}")
        return self.steps.get(steps, "")

    def answer(self, image: str, question: str) -> str:
        """What the language model says to a question about the image in a file.

        Raises:
          ValueError: the image cannot be read, or the question is too long.
        """
        with sharding.use(self._mesh):
            return self._answers.of_file(image, question)

    def _label(self, words: str) -> str:
        """A class by its name or by its number; a prompt as it is."""
        if self.names and words.strip() in self.names:
            return str(self.names.index(words.strip()))
        return words

    @functools.cached_property
    def _answers(self) -> Answers:
        return Answers(self.config, self._weights)

    def _with_guidance(self, guidance: float) -> Generation:
        config = self.config.copy_and_resolve_references()
        config.sampling.guidance, config.sampling.guidance_scale = "classifier_free", guidance
        config.sampling.batch_size = SHOWN
        return Generation(config, self._weights, self._mesh, self._workdir, self._log)

    def _mixture(self, task: str, steps: int, guidance: float, image_guidance: float) -> Editing:
        config = self.config.copy_and_resolve_references()
        config.mixture.task, config.sampling.num_steps = task, steps
        config.sampling.guidance_scale, config.sampling.image_guidance_scale = guidance, image_guidance
        return Editing(config, self._weights, self._mesh, self._workdir, self._log)


class KeptWeights(Weights):
    """Weights that stay on the devices once they are loaded, for the next request."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._loaded: dict[tuple[str, str | None], Params] = {}

    def load(self, component: Component, before: str | None = None) -> Params:
        if (component.name, before) not in self._loaded:
            self._loaded[component.name, before] = super().load(component, before)
        return self._loaded[component.name, before]


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

    def answering(make: Callable[..., Any]) -> Callable[..., Any]:
        """`make`, of what the fields hold, with its errors shown on the page."""

        def made(*given: Any) -> Any:
            if None in given:
                raise gradio.Error("an image or a number is missing; fill in every field")
            try:
                return make(*given)
            except ValueError as error:
                raise gradio.Error(str(error)) from None

        return made

    def generate(words: str, steps: int, guidance: float, seed: int) -> list[np.ndarray]:
        return list(session.images(words, steps, guidance, seed))

    def edit(*told: Any) -> list[tuple[np.ndarray, str]]:
        before, after = session.edit(*told)
        return [(before, "before"), *((image, "after") for image in after)]

    def upload(name: str) -> gradio.Image:  # the file as it is, to be read as the command line reads it
        return gradio.Image(label="Image", type="filepath", image_mode=None, elem_id=name)

    sampling = session.config.sampling
    with gradio.Blocks(title="rae_jax", analytics_enabled=False) as blocks:
        gradio.Markdown("# rae_jax")
        with gradio.Tab("Generate"):
            if session.names:
                words = gradio.Dropdown(list(session.names), value=session.names[0], label="Class")
            else:
                words = gradio.Textbox(label="Prompt" if session.prompted else "Class", elem_id="words")
            with gradio.Row():
                steps = gradio.Radio(list(session.steps), value=next(iter(session.steps)), label="Steps")
                guidance = gradio.Slider(*session.guidance, value=sampling.guidance_scale, label="Guidance")
                seed = gradio.Number(0, label="Seed", precision=0)
            button = gradio.Button("Generate", variant="primary", elem_id="generate")
            gallery = gradio.Gallery(label="Images", columns=4, elem_id="images", format="png")
            button.click(answering(generate), [words, steps, guidance, seed], gallery)
        if session.edits:
            with gradio.Tab("Edit"):
                with gradio.Row():
                    source = upload("source")
                    with gradio.Column():
                        instruction = gradio.Textbox(label="Instruction", elem_id="instruction")
                        if list(session.steps.values()) != [""]:  # a flow map has its own numbers, and no others
                            steps = gradio.Radio(list(session.steps), value=next(iter(session.steps)), label="Steps")
                        else:
                            most = max(MOST_STEPS, sampling.num_steps)
                            steps = gradio.Slider(1, most, value=sampling.num_steps, step=1, label="Steps")
                        by_text = gradio.Slider(*GUIDANCE, value=sampling.guidance_scale, label="Guidance by the text")
                        by_image = gradio.Slider(
                            *GUIDANCE,
                            value=sampling.image_guidance_scale,
                            label="Guidance by the image, beside that by the text",
                        )
                        seed = gradio.Number(0, label="Seed", precision=0)
                button = gradio.Button("Edit", variant="primary", elem_id="edit")
                gallery = gradio.Gallery(label="Before and after", columns=SEEDS + 1, elem_id="edits", format="png")
                button.click(answering(edit), [source, instruction, steps, by_text, by_image, seed], gallery)
        if session.asks:
            with gradio.Tab("Ask"):
                image, question = upload("shown"), gradio.Textbox(label="Question")
                asking, said = gradio.Button("Ask", variant="primary"), gradio.Textbox(label="Answer")
                asking.click(answering(session.answer), [image, question], said)
    return blocks


def launch(page: Any, **options: Any) -> None:
    """Serves a page; what Gradio itself finds wrong, with an image say, is shown on it too."""
    page.launch(quiet=True, show_error=True, **options)


if __name__ == "__main__":
    main()
