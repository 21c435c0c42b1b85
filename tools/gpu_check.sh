#!/usr/bin/env bash
# A training step of DiT^DH-XL on latents, batch 64, bfloat16, on one GPU: ours and PyTorch's, as the table of
# docs/performance.md. Needs 60 GB of the GPU's memory; how long it takes has not been measured.
#
#   tools/gpu_check.sh [DIRECTORY]      the measured numbers are left there, a file a row; runs/gpu by default
set -uo pipefail
cd "$(dirname "$0")/.." || exit
results=${1:-runs/gpu}
mkdir -p "$results"
results=$(realpath "$results")
export XLA_PYTHON_CLIENT_MEM_FRACTION=0.95

ours() {  # NAME OPTIONS...
    python -m tools.benchmark --config=configs/dith_xl.py:80 --batch=64 --latents --config.mesh.fsdp=1 \
        --json="$results/$1.json" "${@:2}" > "$results/$1.log" 2>&1 || echo "$1 failed: $results/$1.log" >&2
}

theirs() {  # NAME OPTIONS...
    python -m tools.torch_benchmark --batch=64 --json="$results/$1.json" "${@:2}" > "$results/$1.log" 2>&1 ||
        echo "$1 failed: $results/$1.log" >&2
}

rm -f "$results"/*.json
ours ours
ours ours_scanned --config.flow.model.scan=True
theirs torch
theirs torch_compile --compile

python - "$results" <<'EOF'
import json, pathlib, sys

import jax

rows = {
    "ours": f"ours, unrolled, jax {jax.__version__}",
    "ours_scanned": "ours, scanned",
    "torch": "PyTorch, autocast",
    "torch_compile": "PyTorch, autocast, `torch.compile`",
}
files = {name: pathlib.Path(sys.argv[1], f"{name}.json") for name in rows}
found = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
if not found:
    sys.exit("error: nothing was measured; the files *.log beside the results say why")
torch = [f"torch {x['torch']}" for x in found.values() if "torch" in x]
print(next(iter(found.values()))["devices"], *torch[:1])
print("| | step, median (fastest) | peak memory | compile |\n|---|---|---|---|")
for name, x in found.items():
    print(
        f"| {rows[name]} | {x['step_seconds']:.3f} s ({x['fastest_step_seconds']:.3f}) "
        f"| {x['peak_bytes'] / 1e9:.1f} GB | {x['compile_seconds']:.0f} s |"
    )
EOF
