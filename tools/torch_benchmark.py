"""How long a training step of the official DiT^DH takes in PyTorch on this machine, to lay beside `tools.benchmark`.

    python -m tools.torch_benchmark --size=XL --batch=64 --dtype=bfloat16 --compile

The network is the official one as `tests/official_dit.py` states it, on random latents of DINOv2-B at 256 pixels; the
step is the release's: velocity loss, under autocast in bfloat16, clipping, AdamW and the moving average.
`tools/gpu_check.sh` measures both.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import torch

from rae_jax.files import local_path
from rae_jax.interop.dit_dh import export_dit_dh
from rae_jax.models.dit_dh import SIZES, DiTDH
from tools.benchmark import leave, resident_bytes, timed

WARM_UP = 3
FLAGS = {"patch_size": 1, "qk_norm": False, "swiglu": True, "rms_norm": True, "absolute_positions": True}
SHAPE = {"grid_size": 16, "in_channels": 768, "num_classes": 1000, "mlp_ratio": 4.0, "flow_map": False}
EMA_DECAY = 0.9995


def network(size: str, device: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Random weights under their official names, and the numbers of heads and blocks."""
    architecture = SHAPE | FLAGS | SIZES[size]
    model, shape = DiTDH(**architecture), (1, SHAPE["grid_size"] ** 2, SHAPE["in_channels"])
    arguments = np.zeros(shape, np.float32), np.zeros(1, np.float32), np.zeros(1, np.int32)
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *arguments)["params"])
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: 0.02 * rng.standard_normal(x.shape, np.float32), shapes)
    tensors = {name: torch.tensor(x, device=device) for name, x in export_dit_dh(params, architecture).items()}
    return tensors, {
        "num_heads": (architecture["num_heads"], architecture["head_num_heads"]),
        "depth": (architecture["depth"], architecture["head_depth"]),
    }


def benchmark(size: str, batch: int, dtype: str, *, compiled: bool, steps: int) -> dict[str, Any]:
    """Times `steps` training steps after `WARM_UP` others, as `tools.benchmark.benchmark` does, with its names."""
    import official_dit  # of tests/, which `main` puts on the path

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    weights, architecture = network(size, device)
    fixed = ("pos_embed", "t_embedder.W")
    trained = [w.requires_grad_() for name, w in weights.items() if "rope" not in name and name not in fixed]
    averages = [w.detach().clone() for w in trained]
    optimizer = torch.optim.AdamW(trained, lr=2e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=device == "cuda")
    x = torch.randn(batch, SHAPE["in_channels"], SHAPE["grid_size"], SHAPE["grid_size"], device=device)
    labels = torch.randint(SHAPE["num_classes"], (batch,), device=device)

    def loss_of(weights: dict[str, torch.Tensor], x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        t, noise = torch.rand(len(x), device=device), torch.randn_like(x)
        share = t[:, None, None, None]
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            velocity = official_dit.dit_dh(weights, (1 - share) * x + share * noise, t, labels, **architecture)
        return torch.mean((velocity.float() - (noise - x)) ** 2)

    compute = torch.compile(loss_of) if compiled else loss_of

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = compute(weights, x, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, trained, 1 - EMA_DECAY)
        return loss.detach()

    seconds = timed(step, torch.Tensor.item, WARM_UP + steps)
    first, seconds = seconds[:WARM_UP], seconds[WARM_UP:]
    return {
        "devices": f"1 x {torch.cuda.get_device_name() if device == 'cuda' else 'cpu'}",
        "torch": torch.__version__,
        "params": sum(w.numel() for w in trained),
        "batch_size": batch,
        "step_seconds": statistics.median(seconds),
        "fastest_step_seconds": min(seconds),
        "compile_seconds": sum(first) if compiled else 0.0,
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else resident_bytes(),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.torch_benchmark", description=__doc__.split("\n\n")[0])
    parser.add_argument("--size", choices=SIZES, default="XL", help="the backbone")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    parser.add_argument("--steps", type=int, default=10, help="how many steps are timed")
    parser.add_argument("--json", type=local_path, help="also writes the result to this file")
    options = parser.parse_args(arguments)
    jax.config.update("jax_platforms", "cpu")  # which only gives the weights their names
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
    result = benchmark(options.size, options.batch, options.dtype, compiled=options.compile, steps=options.steps)
    leave(result, options.json)


if __name__ == "__main__":
    main()
