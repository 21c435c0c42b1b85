"""RAE's generator on digits: with and without the wide head, the time shift, and noise in the decoder's training."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from configs import digits as digits_config
from rae_jax.components.component import spec
from rae_jax.components.conditions import condition
from rae_jax.components.generators import time_shift, velocity_network
from rae_jax.components.latent_spaces import latent_space
from rae_jax.costs.model_flops import cost_of
from rae_jax.experiment.flags import read_config
from tools.findings.judged_digits import REAL_DIVERSITY, DigitJudge, Judged
from tools.findings.rae_width import bound
from tools.findings.runs import Run, from_digits, lasting, left_in, run, unmeasured
from tools.findings.seeds import shown, verdict

CONFIG, DIT = "configs/digits.py", "configs/digits.py:dit"
SEEDS = (0, 1, 2)
STEPS = 1600  # of the flow
WHOLE_STEPS = digits_config.get_config().flow.train.steps
CHANNELS = 64  # of the config's tokens
OTHER_CHANNELS = (32, 96)
TAUS = (0.0, 0.25, 0.5, 1.0)
UNSHIFTED = 256  # values of a latent, which as `flow.shift_base` leave the times as they are
UNMEASURED = unmeasured(digits_config.get_config())


@dataclasses.dataclass(frozen=True)
class Variant:
    """A generator.

    Attributes:
      config: that it is of.
      fields: what is changed in it.
      channels: of the tokens of the encoder whose latents it makes.
      steps: that it is trained for.
    """

    config: str = CONFIG
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    channels: int = CHANNELS
    steps: int = STEPS


def _wide(width: int, depth: int, head_width: int, head_depth: int) -> dict[str, Any]:
    sizes = {"width": width, "depth": depth, "head_width": head_width, "head_depth": head_depth}
    return {f"flow.model.{name}": value for name, value in sizes.items()}


_NARROW = {"flow.model.width": 48, "flow.model.depth": 10}
BASE = "DiT^DH, 96 x 3 and 96 x 1"
PLAIN, DEEP, BROAD = "DiT, 96 x 4", "DiT^DH, 96 x 2 and 96 x 2", "DiT^DH, 96 x 2 and 128 x 1"
NARROW, HEADED = "DiT, 48 x 10", "DiT^DH, 48 x 4 and 96 x 1"
NETWORKS = {
    BASE: Variant(),
    PLAIN: Variant(DIT),
    DEEP: Variant(fields=_wide(96, 2, 96, 2)),
    BROAD: Variant(fields=_wide(96, 2, 128, 1)),
    NARROW: Variant(DIT, _NARROW),
    HEADED: Variant(fields=_wide(48, 4, 96, 1)),
}
ENCODERS = {
    f"{name}, {channels} channels": dataclasses.replace(NETWORKS[name], channels=channels)
    for channels in OTHER_CHANNELS
    for name in (NARROW, HEADED)
}
SHIFTS = {f"shift {shift:g}": shift for shift in (0.25, 0.5, 2.0, 4.0)}
SHIFTED = {name: Variant(fields={"flow.shift_base": round(UNSHIFTED / shift**2)}) for name, shift in SHIFTS.items()}
WHOLE = {name: dataclasses.replace((NETWORKS | SHIFTED)[name], steps=WHOLE_STEPS) for name in (BASE, PLAIN, "shift 2")}
VARIANTS = NETWORKS | ENCODERS | SHIFTED | {f"{name}, whole": variant for name, variant in WHOLE.items()}


class Bench:
    """Trains generators on the latents of finished digits, and on those of narrower and wider encoders."""

    def __init__(self, workdir: Path, digits: Path):
        self._workdir, self._given = workdir, from_digits(digits, "encoder", "decoder", "stats")
        self._judge = DigitJudge(self._given["encoder.weights"])

    def numbers(self, name: str) -> Judged:
        """Of the samples of one of `VARIANTS`."""
        return self._judge.judged([self._run(name, seed).workdir / "samples.npz" for seed in SEEDS])

    def decoded(self, tau: float) -> tuple[np.ndarray, Judged]:
        """Of decoders trained with so much noise: their reconstructions' PSNR, and samples of `BASE` through them."""
        runs = []
        for seed in SEEDS:
            flow = left_in(self._run(BASE, seed).workdir, "flow")
            fields = UNMEASURED | self._given | flow | {"decoder.weights": "", "seed": seed}
            fields |= {"evaluation.reconstruction": True, "decoder.noise_tau": tau, "stages": "('decoder',)"}
            runs.append(run(self._workdir / f"tau_{tau:g}_{seed}", CONFIG, fields))
        psnr = np.array([this.results["psnr"] for this in runs])
        return psnr, self._judge.judged([this.workdir / "samples.npz" for this in runs])

    def _run(self, name: str, seed: int) -> Run:
        variant = VARIANTS[name]
        fields = UNMEASURED | self._latents(variant.channels) | lasting("flow", variant.steps) | dict(variant.fields)
        fields |= {"seed": seed, "stages": "('flow',)"}
        folder = name.replace(", ", "_").replace(" ", "_")
        return run(self._workdir / f"{folder}_{seed}", variant.config, fields)

    def _latents(self, channels: int) -> dict[str, Any]:
        """Fields with the autoencoder of so many channels, trained as in the config."""
        if channels == CHANNELS:
            return self._given
        stages = ("encoder", "decoder", "stats")
        fields = {"encoder.model.width": channels, "encoder.model.mlp_dim": 4 * channels}
        shift = {"flow.shift_base": UNSHIFTED * channels // CHANNELS}  # none still
        place = run(
            self._workdir / f"encoder_{channels}", CONFIG, UNMEASURED | fields | {"stages": f"{stages}"}
        ).workdir
        return fields | shift | left_in(place, *stages)


def reproduce(workdir: Path, digits: Path) -> str:
    """Trains two encoders, and 17 generators and four decoders from three seeds; returns the section.

    That takes an hour and a quarter on one core.
    """
    bench = Bench(workdir, digits)
    return section({name: bench.numbers(name) for name in VARIANTS}, {tau: bench.decoded(tau) for tau in TAUS})


def million_operations(variant: Variant) -> float:
    """Multiply-adds of a pass of its network, for one image."""
    config = read_config(variant.config)
    config.update_from_flattened_dict(dict(variant.fields))
    config.encoder.model.width = variant.channels
    network, told, latent = velocity_network(config), condition(config).example, spec(*latent_space(config).shape)
    return cost_of(network.init, network.apply, latent, spec(), told).multiply_adds / 1e6


def section(found: Mapping[str, Judged], decoded: Mapping[float, tuple[np.ndarray, Judged]]) -> str:
    """The Markdown of the finding; what it says of the numbers follows from them."""

    def beside(name: str, other: str, where: str = "") -> str:
        return f"- {name}, beside {other}{where}: {found[name].beside(found[other])}."

    config = digits_config.get_config()
    usual = config.decoder.noise_tau
    networks = [f"| {name} | {million_operations(v):.2f} | {found[name].cells()} |" for name, v in NETWORKS.items()]
    widths = {CHANNELS: (NARROW, HEADED)} | {
        channels: tuple(f"{name}, {channels} channels" for name in (NARROW, HEADED)) for channels in OTHER_CHANNELS
    }
    encoders = [
        f"| {channels} | {least} | {label} | {found[name].cells()} |"
        for channels, names in sorted(widths.items())
        for name, label, least in zip(names, (NARROW, HEADED), (f"{bound(channels, 48):.2f}", "—"), strict=True)
    ]
    shifts = {1.0: BASE} | {shift: name for name, shift in SHIFTS.items()}
    return "\n".join(
        [
            "## RAE's generator on digits: the wide head, the shift, the decoder's noise",
            "",
            f"`python -m tools.reproduce rae_generation`. On the latents of a finished run of `{CONFIG}`, 4 tokens of "
            f"{CHANNELS} channels, generators are trained for {STEPS:,} steps of the config's "
            f"{WHOLE_STEPS:,}, in (e) for all of them; mean and deviation of {len(SEEDS)} seeds, in (d) of the decoder "
            "too, on one encoder of each width; 1,000 digits each, 50 Euler steps. The Fréchet distance is to held-out "
            "digits in the mean tokens of that run's encoder; diversity is the deviation of a pixel within a class "
            f"(real digits: {REAL_DIVERSITY}). What is said below a table follows from it: no different is within two "
            "standard errors of the difference; where nothing differs, chance alone makes one comparison of nine look "
            "different.",
            "",
            "(a) DiT and DiT^DH. A size is width x depth, of the backbone and of the head; million multiply-adds of a "
            "pass beside it, of an image.",
            "",
            "| network | multiply-adds | label agreement | Fréchet distance | diversity |",
            "|---|---|---|---|---|",
            *networks,
            "",
            beside(PLAIN, BASE),
            beside(DEEP, BASE),
            beside(BROAD, BASE),
            "",
            f"(b) {NARROW} and {HEADED}, which cost the same to a twentieth, on encoders of three widths, each trained "
            "as in the config. The bound is the share of the noise that the DiT cannot give (RAE, "
            "Theorem 1).",
            "",
            "| token channels | bound | network | label agreement | Fréchet distance | diversity |",
            "|---|---|---|---|---|---|",
            *encoders,
            "",
            *(
                beside(wide, narrow, f" ({channels} channels)").replace(f", {channels} channels", "")
                for channels, (narrow, wide) in sorted(widths.items())
            ),
            "",
            "(c) The shift of the times, in training and sampling; that of the config is "
            f"{time_shift(config):g}, none, and RAE's formula with its base of 4,096 gives "
            f"{math.sqrt(UNSHIFTED / 4096):g}.",
            "",
            "| shift | label agreement | Fréchet distance | diversity |",
            "|---|---|---|---|",
            *(f"| {shift:g} | {found[name].cells()} |" for shift, name in sorted(shifts.items())),
            "",
            *(f"- {name[0].upper()}{name[1:]}, beside none: {found[name].beside(found[BASE])}." for name in SHIFTS),
            "",
            f"(d) Noise of the decoder's training, and the samples of {BASE} through it. The paper, with 0.8: gFID "
            "4.28, without 4.81; rFID 0.57, without 0.49.",
            "",
            "| tau | reconstruction PSNR, dB | label agreement | Fréchet distance | diversity |",
            "|---|---|---|---|---|",
            *(f"| {tau:g} | {shown(psnr, '.2f')} | {its.cells()} |" for tau, (psnr, its) in decoded.items()),
            "",
            *(
                f"- {tau:g}, beside {usual:g}: reconstruction {verdict(psnr, decoded[usual][0], 'higher')}, "
                f"{its.beside(decoded[usual][1])}."
                for tau, (psnr, its) in decoded.items()
                if tau != usual
            ),
            "",
            f"(e) After the config's whole {WHOLE_STEPS:,} steps.",
            "",
            "| network | label agreement | Fréchet distance | diversity |",
            "|---|---|---|---|",
            *(f"| {_whole_name(name)} | {found[f'{name}, whole'].cells()} |" for name in WHOLE),
            "",
            *(
                f"- {_whole_name(name)}, beside {BASE}: {found[f'{name}, whole'].beside(found[f'{BASE}, whole'])}."
                for name in WHOLE
                if name != BASE
            ),
        ]
    )


def _whole_name(name: str) -> str:
    return f"{BASE}, {name}" if name in SHIFTS else name
