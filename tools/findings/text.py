"""Text to image on scenes: a KL-VAE's latents, understanding without painting, guidance, the time shift."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from configs import digits_text
from tools.findings.runs import Run, lasting, left_in, run
from tools.findings.seeds import shown, verdict

CONFIG = "configs/digits_text.py"
SEEDS = (0, 1, 2)
STAGE = "text_to_image"
STEPS = 800  # of the last stage, of the config's 5,300
PROMPTS = 300  # as many of each category, seen combinations and others


@dataclasses.dataclass(frozen=True)
class Variant:
    """What is trained and asked.

    Attributes:
      words: of the config, after the colon.
      trained_as: the variant that it is a sample of, if it trains nothing itself.
      steps: of the last stage.
    """

    words: str = ""
    trained_as: str = ""
    steps: int = STEPS


BASE, KL, READING = "as in the config", "in a KL-VAE's latents", "questions alone"
UNGUIDED, UNSHIFTED = "without guidance", "without the time shift"
VARIANTS = {
    BASE: Variant(),
    KL: Variant("kl"),
    UNGUIDED: Variant("unguided", trained_as=BASE),
    UNSHIFTED: Variant("unshifted"),
    # Of a step's conversations half are questions, without painting all: as many questions in half the steps.
    READING: Variant("understanding", steps=STEPS // 2),
}


@dataclasses.dataclass(frozen=True)
class Numbers:
    """One number a seed; what a variant does not do is empty.

    Attributes:
      seen, unseen: the share of the prompts painted, of combinations of digit and colour that training shows or not.
      answers: the share of the questions answered exactly.
    """

    seen: np.ndarray
    unseen: np.ndarray
    answers: np.ndarray


class Bench:
    """Trains the last stage of every variant on one autoencoder of each kind."""

    def __init__(self, workdir: Path):
        self._workdir = workdir

    def numbers(self, name: str) -> Numbers:
        """Of one of `VARIANTS`."""
        results = [self._run(name, seed).results for seed in SEEDS]
        each = ("scene_overall", "scene_overall_unseen", "answers")
        return Numbers(*(np.array([r[key] for r in results if key in r], float) for key in each))

    def _run(self, name: str, seed: int) -> Run:
        variant = VARIANTS[name]
        fields = {"sampling.num_samples": PROMPTS, "seed": seed} | self._autoencoder(variant.words)
        if variant.trained_as:
            trained = self._run(variant.trained_as, seed).workdir / STAGE / "weights"
            parts = ("language_model", "adapters", "text_dit")
            fields |= {f"{part}.weights": str((trained / part).resolve()) for part in parts} | {"stages": "()"}
        else:
            schedule = lasting(STAGE, variant.steps)
            of_dit = {name.replace("train.optimizer", "image_optimizer"): value for name, value in schedule.items()}
            fields |= of_dit | schedule | {"stages": f"('{STAGE}',)"}
        return run(self._workdir / f"{name.replace(' ', '_')}_{seed}", _config(variant.words), fields)

    def _autoencoder(self, words: str) -> dict[str, Any]:
        """Fields with the encoder that reads images, and what turns them into latents and back; trained once."""
        kl = words == "kl"
        stages = ("teacher", "stats") if kl else ("encoder", "decoder", "stats")
        given = {"encoder.weights": self._autoencoder("")["encoder.weights"]} if kl else {}
        fields = given | {"stages": f"{stages}", "evaluation.scenes": False}
        place = run(self._workdir / f"autoencoder{kl * '_kl'}", _config(words if kl else ""), fields).workdir
        return given | left_in(place, *stages)


def _config(words: str) -> str:
    return f"{CONFIG}:{words}" if words else CONFIG


def reproduce(workdir: Path, digits: Path) -> str:
    """Trains four models from three seeds, an hour and a half on one core; returns the section.

    It needs no run of digits.
    """
    del digits
    bench = Bench(workdir)
    return section({name: bench.numbers(name) for name in VARIANTS})


def section(found: Mapping[str, Numbers]) -> str:
    """The Markdown of the finding; what it says of the numbers follows from them."""
    rows = [
        f"| {name} | {VARIANTS[name].steps:,} | {_share(n.seen)} | {_share(n.unseen)} | {_share(n.answers)} |"
        for name, n in found.items()
    ]

    def beside(name: str) -> str:
        one, two = found[name], found[BASE]
        each = {"seen prompts": (one.seen, two.seen), "others": (one.unseen, two.unseen)}
        said = ", ".join(f"{what} {verdict(*values, 'higher')}" for what, values in each.items())
        return f"- {name[0].upper()}{name[1:]}: {said}."

    questions = verdict(found[BASE].answers, found[READING].answers, "higher")
    return "\n".join(
        [
            "## Text to image on scenes: latents, understanding, guidance, shift",
            "",
            f"`python -m tools.reproduce text`. `{CONFIG}` with its last stage cut to {STEPS:,} steps of "
            f"{digits_text.get_config().text_to_image.train.batch_size} conversations; mean and deviation of "
            f"{len(SEEDS)} seeds, on one autoencoder of each kind. {PROMPTS} prompts are painted, half of them with a "
            "combination of digit and colour that training never shows, and judged as GenEval counts (the mean over "
            "categories); 600 questions about held-out scenes are answered, exactly or not. A scene has as many tokens "
            "in either kind of latents, so that a step costs the same. Without painting half of the steps have as many "
            "questions. The wide head and decoding at a higher resolution were not tried here.",
            "",
            "| | steps | prompts painted, seen | not seen | questions answered |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"Beside what is {BASE} (no different: within two standard errors of the difference of {len(SEEDS)} "
            "seeds):",
            "",
            *(beside(name) for name in (KL, UNGUIDED, UNSHIFTED)),
            f"- Questions answered by a model that paints, too, beside one that does not: {questions}.",
        ]
    )


def _share(values: np.ndarray) -> str:
    return shown(100 * values, ".1f", " %") if len(values) else ""
