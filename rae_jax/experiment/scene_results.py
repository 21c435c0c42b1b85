"""What a run has learnt of scenes of digits: its samples judged as GenEval counts, its answers by exact match.

scenes.json    the grid, the cell's size and the colours
samples.jsonl  a line for each image of samples.npz: prompt, category, seen, scene; likewise samples_1step.jsonl...
answers.jsonl  a line for each question about a held-out scene: question, answer, expected

Edits of scenes are judged instead by what was followed and kept (`evaluation/edits.py`).
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from rae_jax.data.prompts import scene_prompts
from rae_jax.data.scene_words import CATEGORIES, question
from rae_jax.data.scenes import SceneSource, described, description, randomness, render, seen
from rae_jax.evaluation.answers import exact
from rae_jax.evaluation.edits import baselines, edit_scores, read_edits
from rae_jax.evaluation.scene_judge import SceneJudge, exactly, painted, train_scene_judge
from rae_jax.experiment.answers import Answers
from rae_jax.experiment.weights import Weights
from rae_jax.files import whole_file, write_json_lines
from rae_jax.sampling.generator import few_step_names
from rae_jax.sampling.samples import open_npz

QUESTIONS = 600
REAL = 500  # held-out scenes by which the judge is judged


def of_samples(workdir: Path, judge: SceneJudge, name: str = "samples") -> dict[str, float]:
    """The share of the samples that show what was asked for, by category and overall, seen and unseen.

    Writes `scenes.json` and a file like `samples.jsonl`. Samples of other prompts than the scenes' own are not judged.

    Args:
      name: of the file of samples; what follows "samples" in it ends the names of the results, too.
    """
    asked, way = scene_prompts(), name.removeprefix("samples")
    with open_npz(workdir / f"{name}.npz") as file:
        images, prompts = file["arr_0"], [str(text) for text in file["prompts"]]
    known = {each.text: each for each in asked}
    rows = [(image, known[text]) for image, text in zip(images, prompts, strict=True) if text in known]
    if not rows:
        return {}
    lines = [
        {"prompt": p.text, "category": p.category, "seen": seen(p.items), "scene": described(p.items)} for _, p in rows
    ]
    write_json_lines(workdir / f"{name}.jsonl", lines)
    with whole_file(workdir / "scenes.json") as file:
        file.write((json.dumps(description(), indent=1) + "\n").encode())
    looked = judge.look(np.stack([image for image, _ in rows]))
    results: dict[str, float] = {}
    for end, of_seen in (("", True), ("_unseen", False)):
        scores = []
        for category in CATEGORIES:
            right = [
                painted(category, line["scene"], there)
                for line, there in zip(lines, looked, strict=True)
                if line["category"] == category and line["seen"] == of_seen
            ]
            if right:
                scores.append(float(np.mean(right)))
                results[f"scene_{category}{end}{way}"] = scores[-1]
        if scores:
            results[f"scene_overall{end}{way}"] = float(np.mean(scores))
    whole = [exactly(line["scene"], there) for line, there in zip(lines, looked, strict=True)]
    return results | {f"scene_exact{way}": float(np.mean(whole))}


def of_answers(workdir: Path, answer: Callable[[np.ndarray, Sequence[str]], list[str]]) -> dict[str, float]:
    """The share of questions about held-out scenes that are answered exactly; writes `answers.jsonl`."""
    source, random = SceneSource("test"), randomness("scene questions")
    scenes = [source.scene(i) for i in range(QUESTIONS)]
    asked = [question(items, random) for items in scenes]
    images = np.stack([render(items, "test") for items in scenes])
    said = answer(images, [text for text, _ in asked])
    lines = [
        {"question": text, "answer": words, "expected": expected, "seen": seen(items)}
        for (text, expected), words, items in zip(asked, said, scenes, strict=True)
    ]
    write_json_lines(workdir / "answers.jsonl", lines)
    return {"answers": float(np.mean([exact(line["answer"], [line["expected"]]) for line in lines]))}


def of_edits(workdir: Path, ends: Sequence[str]) -> dict[str, float]:
    """What the files of edits whose names have these endings are worth; the first beside two ways that edit nothing."""
    files = {end: workdir / f"edits{end}.npz" for end in ends}
    files, results = {end: path for end, path in files.items() if path.exists()}, {}
    judge = train_scene_judge() if files else None
    for number, (end, path) in enumerate(files.items()):
        sources, edited, rows = read_edits(path)
        if not number:
            results |= baselines(sources, edited, rows, judge)
        results |= {f"edit_{name}{end}": value for name, value in edit_scores(sources, edited, rows, judge).items()}
    return results


def of_judge(judge: SceneJudge) -> dict[str, float]:
    """The share of real held-out scenes in which the judge sees everything as it is."""
    source = SceneSource("test")
    scenes = [source.scene(i) for i in range(REAL)]
    looked = judge.look(np.stack([render(items, "test") for items in scenes]))
    right = [exactly(described(items), there) for items, there in zip(scenes, looked, strict=True)]
    cells = [
        there.get((item.row, item.column)) == (item.digit, item.colour)
        for items, there in zip(scenes, looked, strict=True)
        for item in items
    ]
    return {"scene_judge_scenes": float(np.mean(right)), "scene_judge_accuracy": float(np.mean(cells))}


def scene_results(config: ConfigDict, weights: Weights, workdir: Path) -> dict[str, float]:
    """All of it, as far as there are samples and a language model that answers; or of edits, what they are worth."""
    ends = ("", *few_step_names(config))
    if config.mixture.model and config.mixture.task == "edit":
        return of_edits(workdir, ends)
    results = {}
    names = [f"samples{end}" for end in ends]
    if made := [name for name in names if (workdir / f"{name}.npz").exists()]:
        judge = train_scene_judge()
        for name in made:
            results |= of_samples(workdir, judge, name)
        results |= of_judge(judge)
    # Of several processes, none has all that it takes to answer alone.
    if weights.available("language_model") and jax.process_count() == 1:
        results |= of_answers(workdir, Answers(config, weights))
    return results
