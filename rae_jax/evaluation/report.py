"""`report.html`: all that a working directory has to show, in one file that opens without a server or a network.

It is made from the files of the working directory alone, so it can also be made of a run that has long ended.
"""

import base64
import html
import importlib.metadata
import json
import math
import os
import platform
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from rae_jax.files import read_json_lines, whole_file

FILE = "report.html"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
MAX_POINTS = 400  # of a curve
MAX_PICTURES = 4  # of a stage, the newest
WIDTH, HEIGHT, LEFT, BOTTOM = 360, 190, 52, 22  # of a curve, in its own units
LOGARITHMIC_FROM = 100  # ratio of the largest to the smallest value
FIRST = ("loss", "gradient_norm", "learning_rate", "images_per_second")  # curves in this order, then by name
NOT_DRAWN = ("compile_seconds", "seconds_left")

Points = list[tuple[int, float]]


def write_report(workdir: Path) -> Path:
    """Writes `workdir/report.html` from what the directory holds now."""
    config = read_json(workdir / "config.json")
    environment = read_json(workdir / "environment.json")
    summary = read_json(workdir / "summary.json")
    curves, newest_step = read_curves(workdir / "metrics.jsonl")
    named = [stage for stage in config.get("stages", ()) if isinstance(stage, str)]
    stages = [*named, *(stage for stage in curves if stage not in named)]
    finished = {stage: read_json(workdir / stage / "finished.json") for stage in stages}
    done = bool(stages) and all(finished.values())
    sections = [_stage(workdir, s, curves.get(s, {}), newest_step.get(s), config, finished[s]) for s in stages]
    pictures = "".join(picture(path) for path in sorted(workdir.glob("*.png")))
    page = _PAGE.format(
        title=html.escape(workdir.resolve().name),
        refresh="" if done else '<meta http-equiv="refresh" content="60">',
        state=f"{sum(map(bool, finished.values()))} of {len(stages)} stages finished",
        mark="done" if done else "running",
        updated=time.strftime("%Y-%m-%d %H:%M:%S"),
        numbers=numbers(summary.get("results", {})),
        results=f"<section><h2>Results</h2>{pictures}</section>" if pictures else "",
        stages="".join(sections),
        environment=_table(environment),
        config=_tree(config),
        style=STYLE,
        script=_SCRIPT,
    )
    with whole_file(workdir / FILE) as file:
        file.write(page.encode())
    return workdir / FILE


def environment() -> dict[str, str]:
    """Where a run is: devices, versions, machine, command."""
    kinds: dict[str, int] = {}
    for device in jax.devices():
        kinds[device.device_kind] = kinds.get(device.device_kind, 0) + 1
    return {
        "devices": ", ".join(f"{count} x {kind}" for kind, count in kinds.items()),
        "processes": str(jax.process_count()),
        "machine": f"{socket.gethostname()}, {platform.platform()}, {os.cpu_count()} CPU cores",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "command": " ".join(sys.argv),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def write_environment(workdir: Path) -> None:
    """Keeps `environment()` as `environment.json`, for the report."""
    with whole_file(workdir / "environment.json") as file:
        file.write((json.dumps(environment(), indent=2) + "\n").encode())


def read_curves(path: Path) -> tuple[dict[str, dict[str, Points]], dict[str, int]]:
    """`{stage: {metric: [(step, value), ...]}}` with finite values only, and the newest step of each stage."""
    curves: dict[str, dict[str, Points]] = {}
    newest: dict[str, int] = {}
    for _, record in read_json_lines(path, cut_short=True) if path.exists() else ():
        stage, step = record.pop("stage"), record.pop("step")
        newest[stage] = step
        for name, value in record.items():
            if math.isfinite(value):
                curves.setdefault(stage, {}).setdefault(name, []).append((step, value))
    return curves, newest


def thinned(points: Sequence[tuple[int, float]], most: int = MAX_POINTS) -> Points:
    """At most about `most` of the points: evenly spaced groups give their extremes, so no spike is lost."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(2 * len(points) / most)
    kept = []
    for start in range(0, len(points), size):
        group = points[start : start + size]
        kept += sorted({min(group, key=lambda p: p[1]), max(group, key=lambda p: p[1])})
    return kept


def curve(name: str, points: Sequence[tuple[int, float]]) -> str:
    """One metric over the steps, as an SVG figure; logarithmic where the values span decades."""
    shown = html.escape(name.removeprefix("evaluation/").replace("_", " "))
    held_out = ' <span class="note">held-out images</span>' if name.startswith("evaluation/") else ""
    points = thinned(points)
    values = [value for _, value in points]
    if len(points) == 1:
        return f'<figure class="curve"><figcaption>{shown}{held_out}<b>{_short(values[0])}</b></figcaption></figure>'
    logarithmic = min(values) > 0 and max(values) / min(values) > LOGARITHMIC_FROM
    scale = math.log10 if logarithmic else float
    low, high = scale(min(values)), scale(max(values))
    if high == low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1)

    def place(step: int, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - 8) * (step - first) / (last - first)
        return round(x, 1), round(8 + (HEIGHT - BOTTOM - 8) * (high - scale(value)) / (high - low), 1)

    placed = [place(*point) for point in points]
    line = "M" + " L".join(f"{x} {y}" for x, y in placed)
    rows = []
    for share in (0.0, 0.5, 1.0):
        at = low + share * (high - low)
        y = round(8 + (HEIGHT - BOTTOM - 8) * (1 - share), 1)
        text = _short(10**at if logarithmic else at)
        rows.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 8}" y1="{y}" y2="{y}"/>')
        rows.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3}" text-anchor="end">{text}</text>')
    for step, anchor, x in ((first, "start", LEFT), (last, "end", WIDTH - 8)):
        rows.append(f'<text class="tick" x="{x}" y="{HEIGHT - 6}" text-anchor="{anchor}">{step:,}</text>')
    data = json.dumps([[x, y, step, f"{value:.5g}"] for (x, y), (step, value) in zip(placed, points, strict=True)])
    note = ' <span class="note">logarithmic</span>' if logarithmic else ""
    return (
        f'<figure class="curve"><figcaption>{shown}{held_out}{note}<b>{_short(values[-1])}</b></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{shown}" data-points="{html.escape(data)}">'
        f'{"".join(rows)}<path d="{line}"/>{_last_dot(placed)}</svg></figure>'
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def _last_dot(placed: Sequence[tuple[float, float]]) -> str:
    x, y = placed[-1]
    return f'<circle cx="{x}" cy="{y}" r="3"/>'


def _stage(
    workdir: Path,
    stage: str,
    curves: dict[str, Points],
    step: int | None,
    config: dict[str, Any],
    finished: dict[str, Any],
) -> str:
    section = config.get(stage, {})
    total = finished.get("steps") or section.get("train", {}).get("steps") or None
    if finished:
        state, share = f"finished, {finished['steps']:,} steps in {duration(finished['seconds'])}", 1.0
    elif step is None:
        state, share = "not begun", 0.0
    else:
        state, share = f"step {step:,}" + (f" of {total:,}" if total else ""), step / total if total else 0.0
    left = curves.get("seconds_left")
    if not finished and left:
        state += f", {duration(left[-1][1])} left"
    drawn = sorted(set(curves) - set(NOT_DRAWN), key=lambda n: (FIRST.index(n) if n in FIRST else len(FIRST), n))
    pictures = _pictures(workdir / stage)[-MAX_PICTURES:]
    shown = "".join(picture(path) for path in reversed(pictures[-1:]))
    if pictures[:-1]:
        earlier = "".join(picture(path) for path in reversed(pictures[:-1]))
        shown += f"<details><summary>earlier pictures</summary>{earlier}</details>"
    return (
        f'<section><h2>{html.escape(stage)} <span class="note">{html.escape(str(section.get("objective", "")))}</span>'
        f'</h2><p class="progress"><span style="width:{100 * min(share, 1.0):.1f}%"></span></p><p>{state}</p>'
        f'<div class="curves">{"".join(curve(name, curves[name]) for name in drawn)}</div>{shown}</section>'
    )


def _pictures(stage: Path) -> list[Path]:
    return sorted(stage.glob("step_*.png"), key=_step_of)


def newest_picture(stage: Path) -> Path | None:
    """The last picture that a stage has made of itself, in its directory."""
    found = _pictures(stage)
    return found[-1] if found else None


def _step_of(path: Path) -> int:
    digits = path.stem.removeprefix("step_")
    return int(digits) if digits.isdigit() else -1


def picture(path: Path) -> str:
    """A picture as an HTML figure that holds it, with its name below."""
    encoded = base64.b64encode(path.read_bytes()).decode()
    name = html.escape(path.stem.replace("_", " "))
    return f'<figure><img alt="{name}" src="data:image/png;base64,{encoded}"><figcaption>{name}</figcaption></figure>'


def numbers(results: dict[str, float]) -> str:
    """Results as HTML, a card each."""
    if not results:
        return ""
    cards = (
        f"<div><b>{value:.4g}</b>{html.escape(name.replace('_', ' '))}</div>"
        for name, value in results.items()
        if isinstance(value, int | float)
    )
    return f'<div class="numbers">{"".join(cards)}</div>'


def _table(values: dict[str, Any]) -> str:
    rows = (f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>" for k, v in values.items())
    return f"<table>{''.join(rows)}</table>"


def _tree(values: dict[str, Any]) -> str:
    leaves = {name: value for name, value in values.items() if not isinstance(value, dict)}
    branches = (
        f"<details><summary>{html.escape(name)}</summary>{_tree(value)}</details>"
        for name, value in values.items()
        if isinstance(value, dict)
    )
    return (_table(leaves) if leaves else "") + "".join(branches)


def duration(seconds: float) -> str:
    """Such as "3 min 20 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def read_json(path: Path) -> dict[str, Any]:
    """What a file of a run says; empty if it is not there, or not whole."""
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return {}


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
{refresh}<title>{title}</title><style>{style}</style></head><body>
<header><h1>{title}</h1>
<p><span class="mark {mark}"></span>{state} <span class="note">as of {updated}</span></p></header>
<main>{numbers}
{stages}
{results}
<section><h2>Environment</h2>{environment}</section>
<section><h2>Configuration</h2>{config}</section>
</main><div id="tip" hidden></div><script>{script}</script></body></html>
"""

STYLE = """
:root{color-scheme:light dark;--paper:#fbfaf8;--card:#fff;--ink:#26292d;--soft:#7b8087;--line:#e6e3de;--accent:#2a6f97;
--good:#3a8f5c}
@media(prefers-color-scheme:dark){:root{--paper:#16181b;--card:#1e2125;--ink:#e4e6e8;--soft:#8d939b;--line:#30353b;
--accent:#6db3dc;--good:#6cc492}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
header,main{max-width:1200px;margin:0 auto;padding:0 24px}
header{padding-top:32px}h1{margin:0;font-size:28px;letter-spacing:-.01em}h2{margin:0 0 8px;font-size:19px}
p{margin:4px 0 12px}.note{color:var(--soft);font-weight:400;font-size:13px}
.mark{display:inline-block;width:9px;height:9px;border-radius:50%;margin-right:7px;background:var(--good)}
.mark.running{background:var(--accent);animation:beat 2s infinite}@keyframes beat{50%{opacity:.3}}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:20px 22px;margin:18px 0}
.progress{height:5px;border-radius:3px;background:var(--line);overflow:hidden;margin:0 0 8px}
.progress span{display:block;height:100%;background:var(--accent)}
.numbers{display:grid;grid-template-columns:repeat(auto-fill,minmax(170px,1fr));gap:12px;margin:18px 0}
.numbers div{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 16px;
color:var(--soft);font-size:13px}
.numbers b{display:block;color:var(--ink);font-size:23px;font-weight:600;font-variant-numeric:tabular-nums}
.curves{display:grid;grid-template-columns:repeat(auto-fill,minmax(320px,1fr));gap:14px 22px;margin-bottom:10px}
figure{margin:12px 0}.curve{margin:0}figcaption{color:var(--soft);font-size:13px}
.curve figcaption{color:var(--ink)}.curve b{float:right;font-variant-numeric:tabular-nums;font-weight:600}
svg{width:100%;height:auto;display:block;overflow:visible}
svg path{fill:none;stroke:var(--accent);stroke-width:1.6;stroke-linejoin:round}svg circle{fill:var(--accent)}
.grid{stroke:var(--line)}.tick{fill:var(--soft);font-size:10.5px;font-variant-numeric:tabular-nums}
img{max-width:100%;height:auto;border-radius:6px;border:1px solid var(--line);image-rendering:auto}
table{border-collapse:collapse;font-size:13px;margin:2px 0 8px;width:100%}
th{width:230px;text-align:left;font-weight:400;color:var(--soft);vertical-align:top}
th,td{padding:3px 8px 3px 0;border-bottom:1px solid var(--line);overflow-wrap:anywhere}
details{margin:4px 0 4px 4px;padding-left:10px;border-left:2px solid var(--line)}summary{cursor:pointer}
#tip{position:fixed;pointer-events:none;background:var(--ink);color:var(--paper);font-size:12px;padding:3px 8px;
border-radius:5px;font-variant-numeric:tabular-nums}
"""

_SCRIPT = """
const tip=document.getElementById('tip');
for(const svg of document.querySelectorAll('svg[data-points]')){
  const points=JSON.parse(svg.dataset.points),dot=svg.querySelector('circle');
  const [restX,restY]=[dot.getAttribute('cx'),dot.getAttribute('cy')];
  svg.addEventListener('mousemove',event=>{
    const box=svg.getBoundingClientRect(),x=(event.clientX-box.left)*svg.viewBox.baseVal.width/box.width;
    const near=points.reduce((a,b)=>Math.abs(b[0]-x)<Math.abs(a[0]-x)?b:a);
    dot.setAttribute('cx',near[0]);dot.setAttribute('cy',near[1]);
    tip.textContent='step '+near[2].toLocaleString()+': '+near[3];
    tip.style.left=event.clientX+14+'px';tip.style.top=event.clientY-30+'px';tip.hidden=false;
  });
  svg.addEventListener('mouseleave',()=>{tip.hidden=true;dot.setAttribute('cx',restX);dot.setAttribute('cy',restY);});
}
"""
