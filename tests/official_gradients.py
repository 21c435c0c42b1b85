"""Compares a flow map's gradients with those in a golden call, under their official names."""

from typing import Any

from golden import Call, Case
from golden_modules import Network

from rae_jax.interop.dit_dh import export_dit_dh


def assert_gradients_are_the_references(case: Case, call: Call, gradients: Any, student: Network) -> None:
    """`gradients` of the mean loss are the call's within the noted part of the largest entry.

    A layout is linear, so it carries gradients.
    """
    official = export_dit_dh(gradients, student.architecture, student.carried)
    expected = call.gradients("mean(loss)")
    assert expected
    for name, gradient in expected.items():
        case.assert_gradient_close(official[name], gradient, rtol=case.noted("percent") / 100)
