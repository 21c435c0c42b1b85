"""What the TPU compiler says of an experiment's training step, without a TPU.

Lowers the config's own step on abstract arrays, laid over the topology as `config.mesh` says, compiles it with the
compiler inside libtpu, and reports memory, time, and collectives. Nothing is executed and no weights are made: every
time is the compiler's estimate, and none was measured on a chip.
"""

import collections
import dataclasses
import importlib.util
import math
import os
import re
import time
from typing import Any

import jax
from jax.experimental import topologies
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from rae_jax.components.catalogue import component
from rae_jax.components.conditions import condition
from rae_jax.costs.model_flops import matrix_flops, model_flops
from rae_jax.experiment.configuration import example_batch
from rae_jax.objectives.catalogue import OBJECTIVES
from rae_jax.sampling.batches import sampling_program
from rae_jax.sampling.generator import generator, parts_beside
from rae_jax.training import sharding
from rae_jax.training.checkpoint import structure_of
from rae_jax.training.loop import lower_step as lower

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one device of a TPU generation has, from the vendor's specification sheets.

    Attributes:
      memory: bytes of HBM.
      peak: bfloat16 operations a second.
      bandwidth: bytes a second between HBM and the chip.
      links: bytes a second over all its interconnect links, one way.
      clock: cycles a second of a TensorCore.
    """

    memory: int
    peak: float
    bandwidth: float
    links: float
    clock: float


CHIPS = {
    "v4": Chip(32 * GIB, 275e12, 1.228e12, 300e9, 1.05e9),
    "v5e": Chip(16 * GIB, 197e12, 0.819e12, 200e9, 1.5e9),
    "v5p": Chip(95 * GIB, 459e12, 2.765e12, 600e9, 1.75e9),
    "v6e": Chip(32 * GIB, 918e12, 1.640e12, 448e9, 1.75e9),
}

COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all", "collective-broadcast",
)  # fmt: skip
BITS = {"pred": 8, "s4": 4, "u4": 4, "c64": 64} | {f"{kind}{n}": n for kind in "suf" for n in (8, 16, 32, 64)}
BITS |= {"bf16": 16, "f8e4m3fn": 8, "f8e5m2": 8}
DTYPES = {"f32": "float32", "bf16": "bfloat16"}  # in StableHLO
PLUMBING = {"AllocateBuffer", "Sharding", "AssumeGatherIndicesInBound", "ResizeBuffer"}  # custom calls without work
PALLAS = "tpu_custom_call"
# The compiler's cost analysis charges each of these custom calls one second too little.
CHARGED_MINUS_ONE = ("ConcatBitcast", "ZeroCrop", "PrepareAsyncCallStart", "PrepareAsyncCallDone")


@dataclasses.dataclass(frozen=True)
class KernelCall:
    """A call of a Pallas kernel, and the work on one device that the kernel's author says is in it.

    Attributes:
      name: of the kernel.
      flops, bytes_accessed: of one call.
      times: how often it runs in a step.
    """

    name: str
    flops: float
    bytes_accessed: float
    times: int


@dataclasses.dataclass
class Schedule:
    """What the compiled program does on one device, from its scheduled text.

    Attributes:
      cycles: the compiler's estimate, loop bodies times their trip counts. Collectives and custom calls have none.
      cycles_once: the same with every loop body counted once, as the compiler's own cost analysis does.
      kernels: Pallas kernels whose cost is told; the compiler's cost analysis has it, its schedule has not.
      custom_calls, custom_calls_once: the others, by target, which nothing is known of.
      collectives: (kind, overlapped with computation, bytes a device) of each, as often as it runs.
    """

    cycles: float = 0.0
    cycles_once: float = 0.0
    kernels: list[KernelCall] = dataclasses.field(default_factory=list)
    custom_calls: dict[str, int] = dataclasses.field(default_factory=dict)
    custom_calls_once: dict[str, int] = dataclasses.field(default_factory=dict)
    collectives: list[tuple[str, bool, float, int]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`%name = type operation(operands), attributes`."""

    name: str
    type: str
    operation: str
    rest: str

    def refers(self, attribute: str) -> str | None:
        """The computation that an attribute (`calls`, `body`, ...) names."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.rest)
        return found and found.group(1)


def array_bytes(text: str) -> list[float]:
    """The size of each array in the text of an HLO type."""
    found = re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", text)
    return [math.prod(int(n) for n in dims.split(",") if n) * BITS[kind] / 8 for kind, dims in found if kind in BITS]


def read_schedule(text: str) -> Schedule:
    """Reads the scheduled HLO of a compiled program."""
    computations: dict[str, list[Instruction]] = {}
    types: dict[str, str] = {}
    entry, body = "", []
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$", line):
            body = computations.setdefault(header.group(2), [])
            entry = header.group(2) if header.group(1) else entry
        elif found := re.match(r"\s+(?:ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)(\(.*)$", line):
            body.append(Instruction(*found.groups()))
            types[found.group(1)] = found.group(2)

    def trips(loop: Instruction) -> int:
        if known := re.search(r"known_trip_count\D*(\d+)", loop.rest):
            return int(known.group(1))
        pending, bounds = [loop.refers("condition")], [1]
        while pending:
            for instruction in computations.get(pending.pop(), []):
                if instruction.operation == "constant":
                    bounds += map(int, re.findall(r"^\((\d+)\)", instruction.rest))
                elif called := instruction.refers("calls"):
                    pending.append(called)
        return max(bounds)

    def operand_bytes(instruction: Instruction) -> float:
        names = re.findall(r"%([\w.\-]+)", instruction.rest.split(")")[0])
        return sum(sum(array_bytes(types.get(name, ""))) for name in names)

    def collective_bytes(instruction: Instruction) -> float:
        sizes = array_bytes(instruction.type)
        if instruction.operation == "reduce-scatter":
            return operand_bytes(instruction)
        # A started collective's type also lists what it reads.
        started = instruction.operation.endswith("-start") and not instruction.operation.startswith("all-reduce")
        return max(sizes) if started else sum(sizes)

    def inside(computation: str | None) -> list[tuple[str, float]]:
        """Kind and bytes of the collectives within a fused computation."""
        found = []
        for instruction in computations.get(computation or "", []):
            kind = instruction.operation.removesuffix("-start")
            if kind in COLLECTIVES:
                found.append((kind, max(array_bytes(instruction.type), default=0.0)))
            found += inside(instruction.refers("calls"))
        return found

    schedule = Schedule()

    def walk(computation: str, times: int) -> None:
        for instruction in computations[computation]:
            operation, rest = instruction.operation, instruction.rest
            if estimate := re.search(r'"estimated_cycles":"(\d+)"', rest):
                schedule.cycles += times * int(estimate.group(1))
                schedule.cycles_once += int(estimate.group(1))
            kind = operation.removesuffix("-start")
            if operation == "while":
                walk(instruction.refers("body"), times * trips(instruction))
            elif operation == "conditional":
                branches = re.search(r"branch_computations=\{([^}]*)\}", rest)
                names = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", rest)
                for name in names or re.findall(r"[\w.\-]+", branches.group(1) if branches else ""):
                    walk(name, times)
            elif operation == "call":
                walk(instruction.refers("to_apply"), times)
            elif operation == "custom-call":
                target = re.search(r'custom_call_target="([^"]*)"', rest).group(1)
                if cost := re.search(r'"cost_estimate":\{([^}]*)\}', rest):
                    told = {key: float(value) for key, value in re.findall(r'"(\w+)":"(\d+)"', cost.group(1))}
                    name = instruction.name.split(".")[0]
                    schedule.kernels.append(
                        KernelCall(name, told.get("flops", 0.0), told.get("bytes_accessed", 0.0), times)
                    )
                elif target not in PLUMBING:
                    for calls, number in ((schedule.custom_calls, times), (schedule.custom_calls_once, 1)):
                        calls[target] = calls.get(target, 0) + number
            elif kind in COLLECTIVES:
                overlapped = operation.endswith("-start")
                schedule.collectives.append((kind, overlapped, collective_bytes(instruction), times))
            elif operation in ("fusion", "async-start"):
                called = instruction.refers("calls")
                if found := inside(called):
                    name = f"{called} {instruction.name}".replace("_", "-")
                    overlapped = operation != "fusion" or "async-collective" in name
                    if "all-reduce-scatter" in called:
                        found = [("reduce-scatter", operand_bytes(instruction))]
                    kind, size = found[0][0], sum(size for _, size in found)
                    schedule.collectives.append((kind, overlapped, size, times))

    walk(entry, 1)
    return schedule


def products(lowered: str) -> dict[str, int]:
    """How many matrix products and convolutions a lowered program asks for, by "dtype, precision" (StableHLO's text).

    The dtype is that of the operands; a TPU multiplies "default" in one bfloat16 pass, "high" in three, "highest"
    exactly. A loop's body counts once, as does that of a function; what is inside Pallas kernels does not count.
    """
    found = re.findall(
        r"stablehlo\.(?:dot_general|convolution)\b.*?\bprecision(?:_config)? = "
        r"\[(?:#stablehlo<precision )?(\w+)[^\n]*? : \(tensor<(?:\d+x)*(\w+)>",
        lowered,
    )
    return dict(collections.Counter(f"{DTYPES.get(dtype, dtype)}, {precision.lower()}" for precision, dtype in found))


def mesh_over(config: ConfigDict, topology: str) -> jax.sharding.Mesh:
    """The config's mesh over the devices of a TPU topology that need not be there.

    Raises:
      ValueError: libtpu is missing, or does not know the topology.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # nobody to ask what machine this is
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no device is opened, so several compile side by side
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    generation = topology.split(":")[0]
    if generation not in CHIPS:
        raise ValueError(f"topology {topology!r} is of no known generation {list(CHIPS)}; v5p:4x4x4 is one of v5p")
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError('the TPU compiler is missing; install it with `pip install "jax[tpu]"`')
    try:
        # A v4 chip's two TensorCores are one device, as jax has them by default.
        chip = {"chip_config_name": "megacore"} if generation == "v4" else {}
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology, **chip).devices
    except Exception as error:  # the runtime's own error types
        raise ValueError(f"the TPU compiler knows no topology {topology!r}: {str(error).splitlines()[0]}") from error
    return sharding.make_mesh(config.mesh.to_dict(), devices)


def laid_out(boxed: Any, mesh: jax.sharding.Mesh) -> Any:
    """Abstract, boxed parameters as plain shapes with the shardings that their names give."""
    return structure_of(sharding.unbox(boxed), sharding.shardings_of(boxed, mesh))


def abstract_state(objective: Any, key: jax.Array, batch: Any, mesh: jax.sharding.Mesh) -> Any:
    """The state of an objective, its frozen parts included, as shapes with shardings."""
    state = laid_out(jax.eval_shape(objective.init, key, batch), mesh)
    return state.replace(
        frozen={name: laid_out(jax.eval_shape(part.init, key), mesh) for name, part in objective.frozen.items()}
    )


def lower_step(
    config: ConfigDict, stage: str, mesh: jax.sharding.Mesh, *, latents: bool
) -> tuple[jax.stages.Lowered, float, int]:
    """The lowered training step of `stage`, its matrix FLOPs, and the number of parameters that it trains."""
    objective = OBJECTIVES[config[stage].objective](config, stage)
    batch = example_batch(config, stage, objective, latents=latents)
    key, flops = jax.random.key(0), model_flops(config, stage, latents=latents)
    with sharding.use(mesh):  # from here on arrays belong to devices that are not there: shapes only
        state = abstract_state(objective, key, batch, mesh)
        lowered = lower(objective.train_step, state, batch, mesh)
    return lowered, flops, sum(math.prod(p.shape) for p in jax.tree.leaves(state.params))


def lower_sampler(config: ConfigDict, mesh: jax.sharding.Mesh) -> tuple[jax.stages.Lowered, float, int]:
    """The same for one batch of the sampler that `config.sampling` describes."""
    key, rows = jax.random.key(0), sharding.batch_sharding(mesh)
    names, count = tuple(parts_beside(config)), config.sampling.batch_size
    indices = jax.ShapeDtypeStruct((count,), jax.numpy.int32, sharding=rows)
    asked = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype, sharding=rows), condition(config).example
    )
    program = sampling_program(generator(config), config.seed)
    with sharding.use(mesh):
        weights = {name: laid_out(jax.eval_shape(component(config, name).init, key), mesh) for name in ("flow", *names)}
        arguments = (weights["flow"], {name: weights[name] for name in names}, indices, asked)
        lowered, flops = program.lower(*arguments), matrix_flops(program, *arguments)
    return lowered, flops, sum(math.prod(p.shape) for p in jax.tree.leaves(weights["flow"]))


def report(
    config: ConfigDict, topology: str, *, stage: str = "", program: str = "train_step", latents: bool = False
) -> dict[str, Any]:
    """Compiles a program of `config` for `topology` and says what the compiler says of it.

    Args:
      topology: `v5p:4x4x4` and the like.
      stage: whose training step; the last of the config's stages by default.
      program: "train_step" or "sampler".
      latents: batches are of latents computed before, so that the step does without the encoder.

    Returns:
      Plain values. All seconds but `compile_seconds` are estimates. `steps_per_second` and `mfu` come from the larger
      of the compiler's two estimates plus `collective_seconds`, and are None where an estimate is contradicted. The
      scheduled estimate is of everything but Pallas kernels; `compiler_step_seconds` has `kernel_seconds` added to it,
      the longer of each kernel's FLOPs at peak and its bytes at the memory's bandwidth.

    Raises:
      ValueError: no such topology, or the config does not lay over it.
    """
    mesh = mesh_over(config, topology)
    if program == "sampler":
        lowered, flops, num_params = lower_sampler(config, mesh)
    else:
        lowered, flops, num_params = lower_step(config, stage or config.stages[-1], mesh, latents=latents)
    began = time.monotonic()
    compiled = lowered.compile()
    seconds = time.monotonic() - began
    chip, chips = CHIPS[topology.split(":")[0]], mesh.size
    memory, costs = compiled.memory_analysis(), compiled.cost_analysis()
    parts = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,  # beyond the donated state
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    schedule = read_schedule(compiled.as_text())
    times_loops = schedule.cycles / max(schedule.cycles_once, 1)
    kernels = {}
    for kernel in schedule.kernels:
        entry = kernels.setdefault(kernel.name, {"count": 0, "seconds": 0.0})
        entry["count"] += kernel.times
        entry["seconds"] += kernel.times * max(kernel.flops / chip.peak, kernel.bytes_accessed / chip.bandwidth)
    kernel_seconds = sum(entry["seconds"] for entry in kernels.values())
    scheduled = schedule.cycles / chip.clock + kernel_seconds
    optimal = costs["optimal_seconds"]
    if optimal < 0:
        optimal += sum(schedule.custom_calls_once.get(name, 0) for name in CHARGED_MINUS_ONE)
    optimal = optimal * times_loops if 0 < optimal < 10 * schedule.cycles_once / chip.clock else None
    collectives, wire = {}, 0.0
    for kind, overlapped, size, times in schedule.collectives:
        entry = collectives.setdefault(
            f"{kind}, {'overlapped' if overlapped else 'synchronous'}", {"count": 0, "bytes": 0.0}
        )
        entry["count"] += times
        entry["bytes"] += times * size
        if not overlapped:
            trips = 2 if kind == "all-reduce" else 1
            wire += trips * times * size * (chips - 1) / chips / chip.links
    at_peak = flops / (chips * chip.peak)
    worse = max(scheduled, optimal or 0.0)
    doubt = contradiction(scheduled, optimal, at_peak, schedule.custom_calls.get(PALLAS, 0))
    steps_per_second = None if doubt else 1 / (worse + wire)
    return {
        "topology": topology,
        "program": program,
        "latents": latents,
        "products": products(lowered.as_text()),
        "chips": chips,
        "params": num_params,
        "model_flops": flops,
        "flops_per_chip": costs["flops"],
        "flops_counted_once": bool(times_loops > 1),
        "bytes_accessed_per_chip": costs["bytes accessed"],
        "hbm_bytes_per_chip": sum(parts.values()),
        "hbm_bytes": parts,
        "hbm_limit_bytes": chip.memory,
        "compiler_step_seconds": scheduled,
        "kernel_seconds": kernel_seconds,
        "kernels": kernels,
        "optimal_seconds": optimal,
        "collective_seconds": wire,
        "seconds_at_peak": at_peak,
        "contradiction": doubt,
        "steps_per_second": steps_per_second,
        "mfu": steps_per_second and at_peak * steps_per_second,
        "collectives": collectives,
        "custom_calls_without_estimate": schedule.custom_calls,
        "compile_seconds": seconds,
    }


def contradiction(scheduled: float, optimal: float | None, at_peak: float, untold_kernels: int) -> str | None:
    """Why the scheduled estimate cannot be the time of the whole program, or None if nothing speaks against it."""
    if untold_kernels:
        return f"{untold_kernels} calls of Pallas kernels do not say what they cost; give them a `pl.CostEstimate`"
    if scheduled < at_peak:
        return f"the scheduled {scheduled:.4g} s are fewer than the {at_peak:.4g} s that its products take at peak"
    if optimal is not None and scheduled < optimal / 3:
        return f"the scheduled {scheduled:.4g} s are less than a third of the optimal {optimal:.4g} s"
    return None


def show(result: dict[str, Any]) -> None:
    """The report on the terminal."""

    def milliseconds(value: float | None) -> str:
        return "none" if value is None else f"{value * 1e3:.2f} ms"

    def count(value: float) -> str:
        return f"{value:.4g}"

    memory = ", ".join(f"{name} {size / GIB:.2f}" for name, size in result["hbm_bytes"].items())
    fits = result["hbm_bytes_per_chip"] < result["hbm_limit_bytes"]
    rows = {
        "devices": str(result["chips"]),
        "parameters": f"{result['params']:,}",
        "model FLOPs a step": count(result["model_flops"]),
        "compiled FLOPs a device": count(result["flops_per_chip"])
        + (" (loop bodies counted once)" if result["flops_counted_once"] else ""),
        "bytes accessed a device": count(result["bytes_accessed_per_chip"]),
        "memory a device": f"{result['hbm_bytes_per_chip'] / GIB:.2f} of {result['hbm_limit_bytes'] / GIB:.0f} GiB, "
        f"{'fits' if fits else 'DOES NOT FIT'} ({memory})",
        "step, scheduled estimate": milliseconds(result["compiler_step_seconds"])
        + (f" ({milliseconds(result['kernel_seconds'])} of Pallas kernels)" if result["kernels"] else ""),
        "step, optimal_seconds estimate": milliseconds(result["optimal_seconds"]),
        "synchronous collectives, lower bound": milliseconds(result["collective_seconds"]),
        "products at peak": milliseconds(result["seconds_at_peak"]),
        "products' precision": "; ".join(f"{number} {kind}" for kind, number in sorted(result["products"].items())),
    }
    if result["contradiction"]:
        rows["no utilisation is given"] = result["contradiction"]
    else:
        rows["steps a second, estimate"] = f"{result['steps_per_second']:.2f}"
        rows["model FLOPs utilisation, estimate"] = f"{result['mfu']:.1%}"
    for name, entry in result["kernels"].items():
        rows[name] = f"{entry['count']} times, {milliseconds(entry['seconds'])}"
    for name, entry in result["collectives"].items():
        rows[name] = f"{entry['count']} times, {entry['bytes'] / 1e6:,.1f} MB"
    if result["custom_calls_without_estimate"]:
        calls = result["custom_calls_without_estimate"].items()
        rows["custom calls without estimate"] = ", ".join(f"{name} x {number}" for name, number in calls)
    rows["compile time"] = f"{result['compile_seconds']:.1f} s"
    table = Table(title=f"{result['program']} on {result['topology']}", title_justify="left", show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    Console(soft_wrap=True).print(table)
