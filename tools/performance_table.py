"""The table of docs/performance.md: what the TPU compiler says of the flagship programs.

    python -m tools.performance_table --rows=dit_dh_xl,rae_stage1
    python -m tools.performance_table --rows=all

Runs `tools.compile_report` for each of the chosen rows that has no report in `--workdir` yet, several minutes each, and
writes the table of all reports there are, and docs/scaling.png. A program that does not fit says so in its row.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from rae_jax.files import local_path, whole_file
from tools.reproduce import with_section

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "performance.md"
PLOT = ROOT / "docs" / "scaling.png"
V5P = "v5p:4x4x4"
IMAGES_A_CHIP = 16


@dataclasses.dataclass(frozen=True)
class Row:
    """A program: what it is, the config that has it, the slice, and the other options of `tools.compile_report`."""

    what: str
    config: str
    topology: str = V5P
    options: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        return ["tools.compile_report", f"--config=configs/{self.config}", f"--topology={self.topology}", *self.options]


LATENTS = ("--latents",)
SCANNED = "--config.flow.model.scan=True"
BFLOAT16 = "--config.dtype=bfloat16"


def batch(size: int, **mesh: int) -> tuple[str, ...]:
    """Options for a scanned DiT^DH on latents in batches of `size`."""
    changed = {"flow.train.batch_size": size} | {f"mesh.{axis}": devices for axis, devices in mesh.items()}
    return (*LATENTS, SCANNED, *(f"--config.{field}={value}" for field, value in changed.items()))


ROWS = {
    "dit_dh_s": Row("DiT^DH-S", "dith_xl.py:S", options=LATENTS),
    "dit_dh_b": Row("DiT^DH-B", "dith_xl.py:B", options=LATENTS),
    "dit_dh_l": Row("DiT^DH-L", "dith_xl.py:L", options=LATENTS),
    "dit_dh_xl": Row("DiT^DH-XL", "dith_xl.py", options=LATENTS),
    "dit_dh_xl_images": Row("DiT^DH-XL with the encoder's pass", "dith_xl.py"),
    "dit_dh_xl_scanned": Row("DiT^DH-XL, scanned", "dith_xl.py", options=(*LATENTS, SCANNED)),
    "dit_dh_xl_512": Row("DiT^DH-XL, 512 pixels", "dith_xl.py:XL-512", options=LATENTS),
    "dit_dh_xl_v6e": Row("DiT^DH-XL, scanned", "dith_xl.py", "v6e:16x16", (*LATENTS, SCANNED)),
    "dit_dh_xl_v5e": Row("DiT^DH-XL, scanned", "dith_xl.py", "v5e:16x16", (*LATENTS, SCANNED)),
    "dit_dh_xl_v4": Row("DiT^DH-XL, scanned", "dith_xl.py", "v4:4x4x4", (*LATENTS, SCANNED)),
    "dit_dh_xl_4_chips": Row("DiT^DH-XL, scanned, batch 64", "dith_xl.py", "v5p:2x2x1", batch(64, fsdp=4)),
    "dit_dh_xl_256_chips": Row("DiT^DH-XL, scanned, batch 4096", "dith_xl.py", "v5p:4x8x8", batch(4096)),
    "dit_dh_xl_v6e_16_chips": Row("DiT^DH-XL, scanned, batch 256", "dith_xl.py", "v6e:4x4", batch(256)),
    "dit_dh_xl_v5e_16_chips": Row("DiT^DH-XL, scanned, batch 128", "dith_xl.py", "v5e:4x4", batch(128)),
    "lightning_dit": Row("LightningDiT-XL, RPiAE's latents", "rpiae_xl.py", options=(*LATENTS, "--stage=flow")),
    "mfd": Row("MFD, finite difference, bfloat16", "mf_rae_mfd_256.py", options=(*LATENTS, BFLOAT16)),
    "mfd_jvp": Row("MFD, `jax.jvp`, bfloat16", "mf_rae_mfd_256.py:jvp", options=(*LATENTS, BFLOAT16)),
    "cmt": Row(
        "CMT, 8 trajectories of 64 pairs, bfloat16", "mf_rae_cmt_256.py:paper", "v5p:2x2x2", (*LATENTS, BFLOAT16)
    ),
    "rae_stage1": Row("RAE stage 1, with discriminator, float32", "rae_dinov2b_vitxl.py", options=("--stage=decoder",)),
    "rae_stage1_bfloat16": Row("the same, bfloat16", "rae_dinov2b_vitxl.py", options=("--stage=decoder", BFLOAT16)),
    "rae_stage1_v6e": Row("RAE stage 1, bfloat16", "rae_dinov2b_vitxl.py", "v6e:8x8", ("--stage=decoder", BFLOAT16)),
    "rpiae_1": Row("RPiAE stage I", "rpiae_dinov2b_vitxl.py:paper", options=("--stage=pivot",)),
    "rpiae_2": Row("RPiAE stage II", "rpiae_dinov2b_vitxl.py:paper", options=("--stage=bridge",)),
    "rpiae_3": Row("RPiAE stage III", "rpiae_dinov2b_vitxl.py:paper", options=("--stage=specialisation",)),
    "coder": Row("RAC 0.3x", "rac_256.py:coder_0.3x"),
    "sit": Row("SiT-XL + REPA", "rac_256.py:sit_XL"),
    "raev2": Row("RAEv2's generator, k = 7", "raev2_dinov3l.py:k7", options=("--stage=flow", *LATENTS)),
    "raev2_v6e": Row("RAEv2's generator, k = 7", "raev2_dinov3l.py:k7", "v6e:16x16", ("--stage=flow", *LATENTS)),
    "text_to_image": Row("text to image, 1.5 B and 2.4 B, stage 1", "t2i_qwen1_5b_dit2_4b.py"),
    "text_to_image_2": Row("text to image, 1.5 B and 2.4 B, stage 2", "t2i_qwen1_5b_dit2_4b.py:stage2"),
    "text_to_image_v6e": Row("text to image, 1.5 B and 2.4 B, stage 1", "t2i_qwen1_5b_dit2_4b.py", "v6e:16x16"),
    "text_to_image_7b": Row("text to image, 7 B and 9.8 B, stage 1", "t2i_qwen7b_dit9_8b.py"),
    "text_to_image_cmt": Row(
        "text to image in one step: mid-training", "t2i_one_step.py:cmt", "v5p:2x2x2", ("--stage=mid_training",)
    ),
    "text_to_image_mfd": Row(
        "text to image in one step: distillation", "t2i_one_step.py:mfd", options=("--stage=flow_map",)
    ),
    "mixture": Row("mixture of transformers, text to image", "rpiae_t2i.py:chips64", options=("--stage=mixture",)),
    "mixture_edit": Row(
        "mixture of transformers, editing, 192 rows, nothing computed twice",
        "rpiae_edit.py",
        options=("--stage=mixture", "--config.mixture.train.batch_size=192", "--config.mixture.model.remat=none"),
    ),
    "mixture_cmt": Row(
        "editing in one step: mid-training", "edit_one_step.py:cmt", "v5p:2x2x2", ("--stage=mid_training",)
    ),
    "mixture_mfd": Row("editing in one step: distillation", "edit_one_step.py:mfd", options=("--stage=flow_map",)),
}
SCALING = ("dit_dh_xl_4_chips", "dit_dh_xl_scanned", "dit_dh_xl_256_chips")  # 16 images a chip, each
COLUMNS = (
    "program", "slice", "memory a chip, GiB", "scheduled / optimal, ms", "collectives, ms", "at peak, ms",
    "steps a second", "utilisation", "compile, s",
)  # fmt: skip


def report(row: Row, path: Path) -> None:
    """Leaves the row's report in `path`; of a program that does not compile, the compiler's last line."""
    print(f"{row.what}: python -m {' '.join(row.command)}", flush=True)
    partial = path.with_suffix(".partial")
    done = subprocess.run([sys.executable, "-m", *row.command, f"--json={partial}"], cwd=ROOT, text=True,
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip
    if done.returncode:
        partial.write_text(json.dumps({"failed": (done.stderr.strip().splitlines() or ["killed"])[-1]}))
    partial.rename(path)


def cells(row: Row, result: dict[str, Any]) -> list[str]:
    """The row's line of the table."""
    if "failed" in result:
        return [row.what, row.topology, result["failed"].replace("|", "/"), *[""] * (len(COLUMNS) - 3)]

    def milliseconds(seconds: float | None) -> str:
        return "none" if seconds is None else f"{1000 * seconds:.1f}"

    used, limit = (result[name] / 2**30 for name in ("hbm_bytes_per_chip", "hbm_limit_bytes"))
    rate = result["steps_per_second"]
    return [
        row.what,
        row.topology,
        f"{used:.1f} of {limit:.0f}",
        f"{milliseconds(result['compiler_step_seconds'])} / {milliseconds(result['optimal_seconds'])}",
        milliseconds(result["collective_seconds"]),
        milliseconds(result["seconds_at_peak"]),
        f"{rate:.2f}" if rate else result["contradiction"],
        f"{100 * result['mfu']:.1f} %" if rate else "",
        f"{result['compile_seconds']:.0f}",
    ]


def table(results: dict[str, dict[str, Any]]) -> str:
    """The table of the rows that have results, in the order of `ROWS`."""
    lines = [COLUMNS, ["---"] * len(COLUMNS)] + [
        cells(row, results[name]) for name, row in ROWS.items() if name in results
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw_scaling(results: list[dict[str, Any]], path: Path) -> None:
    """Writes the picture of images a second and chip, of the same program on slices of rising size."""
    chips = [result["chips"] for result in results]
    figure = Figure(figsize=(5.5, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, seconds in (
        ("with the collectives' bound", lambda r: 1 / r["steps_per_second"]),
        ("without", lambda r: 1 / r["steps_per_second"] - r["collective_seconds"]),
    ):
        axes.plot(chips, [IMAGES_A_CHIP / seconds(result) for result in results], "o-", label=name)
    axes.set(xlabel="chips (v5p)", ylabel="images a second and chip", xscale="log", ylim=(0, 250))
    axes.set_xticks(chips, [str(count) for count in chips], minor=False)
    axes.minorticks_off()
    axes.legend()
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=120)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.performance_table", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", required=True, help=f"names with commas between them, or all: {', '.join(ROWS)}")
    parser.add_argument(
        "--workdir", type=local_path, default=Path("runs/compile_reports"), help="where the reports are kept"
    )
    options = parser.parse_args(arguments)
    chosen = list(ROWS) if options.rows == "all" else options.rows.split(",")
    if unknown := [name for name in chosen if name not in ROWS]:
        sys.exit(f"error: --rows: there are no rows {unknown}, but {', '.join(ROWS)}")
    workdir = options.workdir.resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        if not (path := workdir / f"{name}.json").exists():
            report(ROWS[name], path)
    paths = {name: workdir / f"{name}.json" for name in ROWS}
    results = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
    if all((results.get(name) or {}).get("steps_per_second") for name in SCALING):
        draw_scaling([results[name] for name in SCALING], PLOT)
    document = with_section(DOCUMENT.read_text(), "performance_table", table(results))
    with whole_file(DOCUMENT) as file:
        file.write(document.encode())
    print(f"{len(results)} rows in {DOCUMENT}")


if __name__ == "__main__":
    main()
