"""How exact the time derivative of a flow map is, by central differences and by `jax.jvp`, in three precisions."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rae_jax.components.generators import flow_map as flow_map_network
from rae_jax.components.generators import time_shift, velocity_network
from rae_jax.data.sources import open_source
from rae_jax.flow.path import interpolate
from rae_jax.flow.times import sample_times
from rae_jax.objectives.meanflow import exact_derivative, finite_difference
from rae_jax.objectives.velocity import encoding_parts, latent_encoder
from tools.findings.runs import from_digits
from tools.findings.tf32 import with_rounded_factors

FLOAT32, TF32, BFLOAT16 = "float32", "TF32 (emulated)", "bfloat16"
PRECISIONS = (FLOAT32, TF32, BFLOAT16)
POINTS = 256
TRUNCATED = (3e-3, 3e-2)  # where the error of a difference in float32 is its truncation
ROUNDED = (1e-5, 1e-4)  # and where it is rounding


@dataclasses.dataclass(frozen=True)
class Errors:
    """Relative errors `|du/dt - exact| / |exact|`, the median over points; the exact one is by `jax.jvp` in float32.

    Attributes:
      dts: `[T]`, rising.
      difference: by precision, of the central difference at each dt, `[T]`.
      jvp: by precision, of `jax.jvp`; 0 in float32.
    """

    dts: np.ndarray
    difference: dict[str, np.ndarray]
    jvp: dict[str, float]

    def at(self, precision: str, dt: float) -> float:
        """Of the difference at a dt that is among `dts`."""
        (here,) = np.flatnonzero(self.dts == dt)
        return float(self.difference[precision][here])

    def power(self, interval: tuple[float, float]) -> float:
        """The power of dt with which the error grows between two of them, in float32."""
        inside = (self.dts > interval[0] * 0.999) & (self.dts < interval[1] * 1.001)
        logs = np.log(self.dts[inside]), np.log(self.difference[FLOAT32][inside])
        return float(np.polyfit(*logs, 1)[0])


def derivative_errors(config: ConfigDict, digits: Path, dts: np.ndarray) -> Errors:
    """Of the flow map of the finished run `digits`, at points of its distillation; products in each precision."""
    networks = {}
    for dtype in (FLOAT32, BFLOAT16):
        changed = config.copy_and_resolve_references()
        changed.flow_map.dtype = dtype
        networks[dtype] = flow_map_network(changed).clone(fused_attention=False)  # whose kernel has no derivative
    params = networks[FLOAT32].load(from_digits(digits, "flow_map")["flow_map.weights"])
    points = _points(config, digits)

    def of(dtype: str) -> Callable[..., jax.Array]:
        return lambda params, z, r, t, labels: networks[dtype].apply(params, z, t, labels, r)

    flow_maps = {FLOAT32: of(FLOAT32), TF32: with_rounded_factors(of(FLOAT32)), BFLOAT16: of(BFLOAT16)}
    compiled = {precision: _derivatives(flow_map, points) for precision, flow_map in flow_maps.items()}
    exact = compiled[FLOAT32][1](params)

    def error(dudt: jax.Array) -> float:
        of_points = jnp.linalg.norm((dudt - exact).reshape(POINTS, -1), axis=1)
        return float(jnp.median(of_points / jnp.linalg.norm(exact.reshape(POINTS, -1), axis=1)))

    return Errors(
        dts,
        {precision: np.array([error(by(params, dt)) for dt in dts]) for precision, (by, _) in compiled.items()},
        {precision: error(jvp(params)) for precision, (_, jvp) in compiled.items()},
    )


def _points(config: ConfigDict, digits: Path) -> tuple[jax.Array, ...]:
    """`z_t`, the teacher's velocity there, r, t and labels, of training digits at uniform times."""
    teacher, parts = velocity_network(config), encoding_parts(config)
    weights = from_digits(digits, "flow", *parts)
    loaded = {name: part.load(weights[f"{name}.weights"]) for name, part in (parts | {"flow": teacher}).items()}
    source = open_source(config.data.source, "train")
    rows = [source[i] for i in range(POINTS)]
    images, labels = (jnp.stack([row[name] for row in rows]) for name in ("image", "label"))
    noise_key, time_key = jax.random.split(jax.random.key(0))
    r, t = jnp.sort(sample_times(time_key, 2 * POINTS, shift=time_shift(config)).reshape(2, POINTS), axis=0)
    z = latent_encoder(config)(loaded, {"image": images})
    z_t = interpolate(z, jax.random.normal(noise_key, z.shape), t)
    return z_t, teacher.apply(loaded["flow"], z_t, t, labels), r, t, labels


def _derivatives(flow_map: Callable[..., jax.Array], points: tuple[Any, ...]) -> tuple[Any, Any]:
    """Compiled: `(params, dt) -> du/dt` by a difference, and `params -> du/dt` by `jax.jvp`."""
    return (
        jax.jit(lambda params, dt: finite_difference(flow_map, params, *points, dt)[1]),
        jax.jit(lambda params: exact_derivative(flow_map, params, *points)[1]),
    )
