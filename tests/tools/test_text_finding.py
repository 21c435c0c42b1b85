"""The finding about text to image: what it runs, and what it writes of the results, without running anything."""

from pathlib import Path

import numpy as np
import pytest

from configs import digits_text
from rae_jax.experiment.configuration import trace
from tools.findings import text
from tools.findings.runs import Run
from tools.findings.text import BASE, KL, PROMPTS, READING, STAGE, STEPS, UNGUIDED, UNSHIFTED, VARIANTS, Bench, Numbers

RESULTS = {"scene_overall": 0.5, "scene_overall_unseen": 0.25, "answers": 0.75}


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What each variant has measured, and the runs that all of them ask for, by their place: config and fields."""
    runs = {}

    def run(workdir: Path, config: str, fields: dict) -> Run:
        runs[workdir.name] = config, fields
        return Run(workdir, {"answers": 0.75} if "understanding" in config else RESULTS, "")

    monkeypatch.setattr(text, "run", run)
    bench = Bench(tmp_path)
    return {name: bench.numbers(name) for name in VARIANTS}, runs


def test_variants_share_an_autoencoder_of_each_kind_and_differ_in_what_they_say(asked):
    found, runs = asked
    assert len(runs) == 2 + 3 * len(VARIANTS)
    assert runs["autoencoder"][1]["stages"] == "('encoder', 'decoder', 'stats')"
    config, fields = runs["autoencoder_kl"]
    assert config.endswith(":kl") and fields["stages"] == "('teacher', 'stats')"
    encoder = runs["as_in_the_config_1"][1]["encoder.weights"]
    assert encoder.endswith("autoencoder/encoder/weights") and fields["encoder.weights"] == encoder
    for name, variant in VARIANTS.items():
        for seed in text.SEEDS:
            config, fields = runs[f"{name.replace(' ', '_')}_{seed}"]
            assert config.partition(":")[2] == variant.words and fields["seed"] == seed
            assert fields["encoder.weights"] == encoder and fields["sampling.num_samples"] == PROMPTS
            assert ("teacher.weights" in fields) == ("autoencoder_kl" in fields["stats.weights"]) == (name == KL)
            if name == UNGUIDED:
                trained = f"as_in_the_config_{seed}/{STAGE}/weights"
                assert fields["stages"] == "()" and fields["text_dit.weights"].endswith(f"{trained}/text_dit")
            else:
                steps = STEPS // 2 if name == READING else STEPS
                assert fields[f"{STAGE}.train.steps"] == fields[f"{STAGE}.image_optimizer.decay_end_step"] == steps
    assert found[BASE].unseen.tolist() == [0.25] * 3 and not len(found[READING].seen)


def test_every_run_is_a_change_of_its_config_that_can_run(asked):
    _, runs = asked
    for name in VARIANTS:
        path, fields = runs[f"{name.replace(' ', '_')}_0"]
        config = digits_text.get_config(path.partition(":")[2])
        config.update_from_flattened_dict({name: value for name, value in fields.items() if name != "stages"})
        trace(config, STAGE)
    assert digits_text.get_config("understanding").text_to_image.question_share == 2 * 0.5


def test_what_is_said_follows_from_the_numbers():
    def numbers(seen: float, unseen: float, answers: float) -> Numbers:
        return Numbers(*(np.array([x - 0.01, x, x + 0.01]) for x in (seen, unseen, answers)))

    found = {name: numbers(0.8, 0.6, 0.5) for name in VARIANTS}
    found[KL], found[UNSHIFTED] = numbers(0.4, 0.6, 0.5), numbers(0.9, 0.2, 0.5)
    found[READING] = Numbers(np.array([]), np.array([]), np.array([0.7, 0.71, 0.72]))
    written = text.section(found)
    same = "no different (within two standard errors)"
    assert f"| {BASE} | 800 | 80.0 ± 1.0 % | 60.0 ± 1.0 % | 50.0 ± 1.0 % |" in written
    assert f"| {READING} | 400 |  |  | 71.0 ± 1.0 % |" in written
    assert f"- In a KL-VAE's latents: seen prompts worse, others {same}." in written
    assert "- Without the time shift: seen prompts better, others worse." in written
    assert f"- Without guidance: seen prompts {same}, others {same}." in written
    assert written.endswith("beside one that does not: worse.")
