"""Generators: the networks that predict velocities and mean velocities in latent space."""

import dataclasses
import math
from typing import Any

import jax
from flax import linen as nn
from ml_collections import ConfigDict

from rae_jax.components.component import Component, Params, architecture, extended, flow_map_inputs, of_module, spec
from rae_jax.components.conditions import condition
from rae_jax.components.encoders import tokens_shape
from rae_jax.components.language import speaks, tells_features, text_dit
from rae_jax.components.latent_spaces import latent_space
from rae_jax.components.mixtures import instructed
from rae_jax.flow.prediction import check_prediction, velocity_of
from rae_jax.flow.times import dimension_shift
from rae_jax.models.alignment import AlignmentProjector
from rae_jax.models.dit_dh import DiTDH
from rae_jax.models.dit_in_context import DiTInContext, Outputs
from rae_jax.models.lightning_dit import LightningDiT

FAMILIES = {"dit_dh": DiTDH, "lightning_dit": LightningDiT, "dit_in_context": DiTInContext}
# The kinds of official files: of velocity networks, and of flow maps.
KINDS = {
    "dit_dh": ("dit_dh", "mf_dit_dh"),
    "lightning_dit": ("lightning_dit", ""),
    "dit_in_context": ("dit_in_context", ""),
}


@dataclasses.dataclass(frozen=True)
class VelocityNetwork(Component):
    """A network of velocities, or of mean velocities, whatever its module predicts.

    Attributes:
      prediction, t_eps: what the module predicts, and the time at which its velocity is held: `flow/prediction.py`.
    """

    prediction: str = "velocity"
    t_eps: float = 0.0

    @property
    def has_base(self) -> bool:
        """Whether there is an early output, which can guide the other."""
        return bool(getattr(self.module, "base_depth", 0))

    @property
    def aligns(self) -> bool:
        """Whether the module projects tokens for REPA by itself."""
        return bool(getattr(self.module, "alignment_features", 0))

    def outputs(self, params: Params, z: jax.Array, t: jax.Array, condition: Any, *others: jax.Array | None) -> Outputs:
        """The velocities of all outputs, and the projected tokens; `others` are what a flow map takes besides."""
        out = super().apply(params, z, t, condition, *others)
        out = out if isinstance(out, Outputs) else Outputs(out, None, None)
        base = None if out.base is None else self.velocity(out.base, z, t)
        return Outputs(self.velocity(out.full, z, t), base, out.aligned)

    def apply(self, params: Params, z: jax.Array, t: jax.Array, condition: Any, *others: jax.Array | None) -> jax.Array:
        """The velocity `[B, N, C]`."""
        return self.outputs(params, z, t, condition, *others).full

    def velocity(self, predicted: jax.Array, z: jax.Array, t: jax.Array) -> jax.Array:
        """The velocity that a prediction of the module means."""
        return velocity_of(self.prediction, predicted, z, t, self.t_eps)


def velocity_network(config: ConfigDict, name: str = "flow") -> VelocityNetwork:
    """The network `(z, t, condition) -> velocity` of the section `name`: "flow", or "guide", AutoGuidance's weak one.

    Raises:
      ValueError: an unknown family, or no architecture.
    """
    return _network(config, name, config[name], flow_map=False)


def flow_map_teacher(config: ConfigDict) -> Component:
    """The velocity network that flow maps learn from: "flow", "text_dit" where it is told prompts, or "mixture"."""
    if config.mixture.model:
        return instructed(config)
    return text_dit(config) if speaks(config) else velocity_network(config)


def flow_map(config: ConfigDict, name: str = "flow_map") -> Component:
    """The network `(z, t, condition, r, *guidance) -> mean velocity`: that of `flow_map_teacher` with the second time.

    With `config.flow_map.guided` guidance is one more input, `[B, 3]`, a scale and its interval.

    Raises:
      ValueError: the velocity network is told the features of a text; or guidance is learnt otherwise.
    """
    if config.mixture.model:
        if config.flow_map.guided:
            raise ValueError(
                "flow_map.guided=True, but the flow map of a mixture of transformers is told no guidance: it learns "
                "velocities that flow_map.teacher guides; set it to False"
            )
        return instructed(config, name, flow_map=True)
    if config.flow_map.teacher.guidance_scale != 1:
        raise ValueError(
            f"flow_map.teacher.guidance_scale={config.flow_map.teacher.guidance_scale} is of a mixture of "
            "transformers; a flow map that is told classes or prompts learns guidance with flow_map.guided=True"
        )
    if speaks(config):
        return text_dit(config, name, flow_map=True)
    if tells_features(config):
        raise ValueError("flow.model.context_width is above 0: flow maps are told classes or prompts, not features")
    return _network(config, name, config.flow, flow_map=True)


def _network(config: ConfigDict, name: str, section: ConfigDict, *, flow_map: bool) -> VelocityNetwork:
    described = "flow" if flow_map else name
    check_prediction(section.prediction, section.t_eps, described)
    if section.family not in FAMILIES:
        raise ValueError(f"{described}.family={section.family!r} is not one of {list(FAMILIES)}")
    fields = architecture(section, described, section.family)
    (num_tokens, channels), told = latent_space(config).shape, condition(config)
    guided = flow_map and config.flow_map.guided

    def make(dtype: object) -> nn.Module:
        return FAMILIES[section.family](
            grid_size=math.isqrt(num_tokens),
            in_channels=channels,
            num_classes=told.num_classes,
            flow_map=flow_map,
            guided=guided,
            dtype=dtype,
            **fields,
        )

    example = told.example
    if words := fields.get("context_width", 0):
        example = {"features": spec(fields["condition_tokens"], words), "mask": example["mask"]}
    inputs = [spec(num_tokens, channels), spec(), example, *(flow_map_inputs(config) if flow_map else ())]
    kind = "" if guided else KINDS[section.family][flow_map]
    part = of_module(config, name, make, *inputs, kind=kind, described_by=f"config.{described}.model")
    return extended(part, VelocityNetwork, prediction=section.prediction, t_eps=section.t_eps)


def alignment_projector(config: ConfigDict) -> Component:
    """What takes a generator's tokens to those of the encoder (REPA); trained beside it and dropped."""
    tokens, features = tokens_shape(config)
    hidden = config.flow.alignment_width
    return of_module(
        config,
        "flow",
        lambda dtype: AlignmentProjector(features, hidden, dtype=dtype),
        spec(tokens, config.flow.model.width),
        kind="",
        described_by="config.flow.alignment_width",
    )


def time_shift(config: ConfigDict) -> float:
    """The dimension-dependent shift of the time grid (RAE, Section 4)."""
    return dimension_shift(math.prod(latent_space(config).shape), config.flow.shift_base)
