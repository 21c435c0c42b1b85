"""What a config describes is what can be built from it."""

import pytest
from ml_collections import ConfigDict

from configs import architectures, base, digits, digits_edit, digits_rac, digits_rpiae, digits_text
from rae_jax.components.catalogue import component, described

CRITICS = {"lpips", "lpips_alexnet", "inception", "discriminator"}
FLOWS = {"flow", "guide", "mid_training", "flow_map"}
PROMPTED = {"language_model", "adapters", "text_dit", "mid_training", "flow_map"}


@pytest.mark.parametrize(
    "config, expected",
    [
        (base.get_config(), CRITICS),
        (digits.get_config(), CRITICS | FLOWS | {"encoder", "decoder"}),
        (digits_rpiae.get_config(), CRITICS | FLOWS | {"encoder", "decoder", "bridge_encoder", "bridge_decoder"}),
        (digits_rac.get_config(), CRITICS | FLOWS | {"encoder", "decoder", "teacher", "coder", "tuned_coder"}),
        (digits_text.get_config(), CRITICS | {"encoder", "decoder", *PROMPTED}),
    ],
    ids=["base", "digits", "digits_rpiae", "digits_rac", "digits_text"],
)
def test_every_component_that_a_config_describes_is_built_from_it_and_no_other(config, expected):
    assert set(described(config)) == expected
    assert all(component(config, name).module is not None for name in expected)


@pytest.mark.parametrize(
    ("experiment", "name", "function"),
    [
        (digits, "decoder", "vit_decoder"),
        (digits, "flow", "dit_dh"),
        (digits_text, "language_model", "language_model"),
        (digits_text, "text_dit", "text_dit"),
        (digits_edit, "mixture", "mixture_of_transformers"),
    ],
)
def test_a_component_without_an_architecture_says_what_returns_one(experiment, name, function):
    config = experiment.get_config("tiny")
    config[name].model = ConfigDict()
    with pytest.raises(ValueError, match=rf"{name}\.model is empty; it is to be what {function} of configs/architec"):
        component(config, name)
    assert callable(getattr(architectures, function))


def test_a_mixture_and_another_tokenizer_are_refused():
    config = digits_edit.get_config("tiny")
    config.mixture.model.vocabulary = 100
    with pytest.raises(ValueError, match=r"mixture\.tokenizer='scenes' has \d+ tokens, and mixture\.model\.vocabulary"):
        component(config, "mixture")
