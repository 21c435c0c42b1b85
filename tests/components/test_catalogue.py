"""What a config describes is what can be built from it."""

import pytest

from configs import base, digits, digits_rac, digits_rpiae
from rae_jax.components.catalogue import component, described

CRITICS = {"lpips", "lpips_alexnet", "inception", "discriminator"}
FLOWS = {"flow", "guide", "mid_training", "flow_map"}


@pytest.mark.parametrize(
    "config, expected",
    [
        (base.get_config(), CRITICS),
        (digits.get_config(), CRITICS | FLOWS | {"encoder", "decoder"}),
        (digits_rpiae.get_config(), CRITICS | FLOWS | {"encoder", "decoder", "bridge_encoder", "bridge_decoder"}),
        (digits_rac.get_config(), CRITICS | FLOWS | {"encoder", "decoder", "teacher", "coder", "tuned_coder"}),
    ],
    ids=["base", "digits", "digits_rpiae", "digits_rac"],
)
def test_every_component_that_a_config_describes_is_built_from_it_and_no_other(config, expected):
    assert set(described(config)) == expected
    assert all(component(config, name).module is not None for name in expected)
