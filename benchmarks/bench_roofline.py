"""Time the neighbourhood operators against what the machine allows, and against rivals.

    python benchmarks/bench_roofline.py [--quick] [--device cuda] [--dtype bfloat16] [--json FILE]

Each operator runs at the shapes of Swin-T's stages (224 pixels), forward and backward apart, beside
its rivals (`benchmarks/rivals.py`), in turn in one process. A result that is not the operator's is
an error; rivals of attention treat the border otherwise and are compared inside it.

The limit of a pass is the longer of two times:

* the bytes that must move at least, over the rate of a large copy. Operands are read once and the
  result is written once; a backward pass reads the operands and the result's gradient and writes
  the operands' gradients. What lies in a cache already moves faster than a copy of large tensors:
  small maps can pass this limit on a CPU, whose caches are warm.
* the operations, over the rate of a large matrix multiplication in the same dtype. Multiply-adds
  count as two, as torch's FLOP counter counts them (formulas in `supernet/kernels`); a backward
  pass of neighbourhood attention has its weights to compute again. Exponentials are not counted;
  taps outside the map are, 43 % of all for K = 7 on 7 x 7 pixels, though some sides skip them.

No formulation can pass that second rate; but the neighbourhood operators have no matrix products
to give to tensor cores, unless they multiply whole tiles with most products thrown away: about four
times the operations for 8 x 8 tiles and K = 7. They run on the units for fused multiply-adds, and
accumulate in float32 whatever the dtype. So a second limit, "fma", takes the rate of float32
multiply-adds in the place of matrix products. It is the honest one for every formulation of
ours; rivals on tensor cores (NATTEN, FlexAttention, SDPA) may pass it, and windows are matrix
products anyway. It is measured by a chain of multiply-adds in registers on a GPU; on a CPU it is
the rate of a matrix product in float32, which there runs on the same units: both limits are then
one in float32.

On a GPU times are of its kernels (CUDA events), from a cold second-level cache, with the launches
of the first half millisecond hidden: sides of hundreds of short kernels wait for the rest. On a CPU
they are processor time with one thread, else wall time. Medians of all rounds. Memory is the peak
of forward plus backward beyond the operands and the result's gradient, over operands and result:
1.0 is the result and the operands' gradients alone.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor

from benchmarks import rivals
from benchmarks.machine_limits import Limits, measure_limits
from benchmarks.operators import OPERATORS, Operator, Work, count_work
from benchmarks.rivals import Setting, Side, Unavailable
from benchmarks.timing import (
    Run,
    Timer,
    cpu_timer,
    forced,
    forcing,
    gpu_timer,
    leaves,
    median_seconds,
    positive,
)
from supernet.kernels.select import formulation
from supernet.measuring.latency import device_name

STAGES = ("56x96x3", "28x192x6", "14x384x12", "7x768x24")  # side, channels, heads
OURS = {"cpu": ("c", "torch"), "cuda": ("triton", "torch")}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Largest error over the largest value: sums of up to K*K products, rounded at every step in torch.
TOLERANCES = {torch.float32: 2e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# Batch and rounds by device and --quick.
SIZES = {
    ("cpu", False): (8, 5),
    ("cpu", True): (8, 2),
    ("cuda", False): (128, 20),
    ("cuda", True): (16, 5),
}
COMPILED_RIVALS = (rivals.flex_attention,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A pass of a side, measured; None where there is nothing to time, for the reason in ``note``.

    Shares are limits over ``seconds``; ``memory`` is a multiple (module docstring), of both passes.
    """

    operator: str
    shape: str
    side: str
    mode: str
    bytes: int
    flops: int
    limit_seconds: float
    fma_limit_seconds: float
    seconds: float | None = None
    share: float | None = None
    fma_share: float | None = None
    memory: float | None = None
    note: str | None = None
    failed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """Where and how operators are measured."""

    device: torch.device
    dtype: torch.dtype
    timer: Timer
    limits: Limits
    repeats: int
    has_compiled: bool


@dataclass(frozen=True, slots=True)
class Prepared:
    """A side that has run once: its passes; its results, comparable with ours first; its memory."""

    runs: dict[str, Run]
    results: tuple[Tensor, ...]
    memory: float | None


def main(words: Sequence[str] | None = None) -> None:
    """Print a table for each operator and shape."""
    arguments = parse(words)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device, dtype = torch.device(arguments.device), DTYPES[arguments.dtype]
    timer = gpu_timer(device) if device.type == "cuda" else cpu_timer()
    bench = Bench(
        device=device,
        dtype=dtype,
        timer=timer,
        limits=measure_limits(device, dtype, timer),
        repeats=arguments.repeats,
        has_compiled=not arguments.quick,
    )
    heading = describe(arguments, bench.limits)
    print(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in heading.items()))
    rows: list[Row] = []
    for name in arguments.operator:
        for channels, setting in arguments.shape:
            setting = replace(setting, kernel_size=arguments.kernel_size)
            found = measure(bench, name, arguments.batch, channels, setting)
            print_rows(found)
            rows += found
            if arguments.json:  # now: a fault of a GPU ends everything
                report = heading | {"rows": [asdict(row) for row in rows]}
                arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    failures = [f"{row.operator} {row.shape} {row.side}: {row.note}" for row in rows if row.failed]
    if failures:
        sys.exit("\n".join(("\nThese failed or are wrong:", *dict.fromkeys(failures))))


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; what depends on the device is filled in."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=device)
    parser.add_argument("--dtype", choices=DTYPES, help="float32; on a GPU bfloat16")
    parser.add_argument("--batch", type=positive, help="8; on a GPU 128; with --quick 8 and 16")
    parser.add_argument("--kernel-size", type=positive, default=7, help="also the side of windows")
    parser.add_argument("--repeats", type=positive, help="5; on a GPU 20; with --quick 2 and 5")
    parser.add_argument("--threads", type=positive, default=1, help="of a CPU")
    parser.add_argument("--operator", choices=OPERATORS, nargs="+", default=tuple(OPERATORS))
    parser.add_argument(
        "--shape",
        type=parse_shape,
        nargs="+",
        default=[parse_shape(stage) for stage in STAGES],
        help="side x channels x heads of a map; those of Swin-T's stages",
    )
    parser.add_argument("--quick", action="store_true", help="also leaves out compiled rivals")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows here as well")
    arguments = parser.parse_args(words)
    is_gpu = arguments.device == "cuda"
    arguments.dtype = arguments.dtype or ("bfloat16" if is_gpu else "float32")
    batch, repeats = SIZES[arguments.device, arguments.quick]
    arguments.batch = arguments.batch or batch
    arguments.repeats = arguments.repeats or repeats
    return arguments


def parse_shape(text: str) -> tuple[int, Setting]:
    """Read side x channels x heads: the channels, and a setting without a kernel size."""
    numbers = text.split("x")
    if len(numbers) != 3:
        raise argparse.ArgumentTypeError(f"must be side x channels x heads (56x96x3), got {text!r}")
    side, channels, heads = map(positive, numbers)
    if channels % heads:
        raise argparse.ArgumentTypeError(f"the heads must divide the channels, got {text!r}")
    return channels, Setting(side=side, heads=heads, kernel_size=0)


def describe(arguments: argparse.Namespace, limits: Limits) -> dict[str, object]:
    """Say what was measured where, when and with what."""
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "none"
    return {
        "device": device_name(torch.device(arguments.device)),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "triton": triton,
        "date": datetime.now(UTC).date().isoformat(),
        "threads": arguments.threads,
        "dtype": arguments.dtype,
        "batch": arguments.batch,
        "kernel_size": arguments.kernel_size,
        "repeats": arguments.repeats,
        "copy_gigabytes_a_second": round(limits.copy_bytes / 1e9, 2),
        "matmul_gigaflops": round(limits.matmul_flops / 1e9, 2),
        "fma_gigaflops": round(limits.fma_flops / 1e9, 2),
    }


def measure(bench: Bench, name: str, batch: int, channels: int, setting: Setting) -> list[Row]:
    """Time all sides of an operator at a shape, in turn."""
    operator = OPERATORS[name](batch, channels, setting)
    operands = leaves(*operator.operands, device=bench.device, dtype=bench.dtype)
    prepared: dict[str, Prepared] = {}
    rows: dict[str, dict[str, Any]] = {}  # what is known of both passes of a side
    reference: tuple[Tensor, ...] = ()
    for label, make in list_sides(bench, operator, operands, setting):
        try:
            side = make()
            found = prepare(side)
            check(found.results, reference, side.margin, TOLERANCES[bench.dtype])
        except Unavailable as error:
            rows[label] = {"note": str(error)}
        # What others' compilers and kernels raise has no common type; the script ends with it.
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            rows[label] = {"note": f"{type(error).__name__}: {reason}", "failed": True}
        else:
            reference = reference or found.results
            rows[label], prepared[label] = {"memory": found.memory}, found
    runs = {(label, mode): run for label in prepared for mode, run in prepared[label].runs.items()}
    seconds = median_seconds(runs, repeats=bench.repeats, timer=bench.timer)
    map_ = f"B{batch} {setting.side}x{setting.side}x{channels} h{setting.heads}"
    place = {"operator": name, "shape": f"{map_} K{setting.kernel_size}"}
    return [
        make_row(work, bench.limits, seconds.get((label, mode)), place | known, label, mode)
        for label, known in rows.items()
        for mode, work in count_work(operator, bench.dtype).items()
    ]


def list_sides(
    bench: Bench, operator: Operator, operands: tuple[Tensor, ...], setting: Setting
) -> Iterator[tuple[str, Callable[[], Side]]]:
    """Yield the sides' names and what makes them; ours come first."""

    def make_ours(name: str) -> Side:
        with forcing(name):
            try:
                formulation(operands[0])
            except ValueError as error:
                raise Unavailable(str(error)) from error
        return Side(function=operator.function, inputs=operands, formulation=name)

    for name in operator.formulations or OURS[bench.device.type]:
        yield name, functools.partial(make_ours, name)
    for rival in operator.rivals:
        if bench.has_compiled or rival not in COMPILED_RIVALS:
            yield rival.__name__, functools.partial(rival, operands, setting)


def prepare(side: Side) -> Prepared:
    """Run a side once and make its passes: the backward pass is that of one graph."""
    name = side.formulation or "auto"
    if not side.has_backward:
        inputs = tuple(x.detach() for x in side.inputs)
        y = side.function(*inputs)
        return Prepared({"forward": lambda: side.function(*inputs)}, (side.to_map(y),), None)
    with forcing(name):
        y = side.function(*side.inputs)
        # Of the same values on all sides, and so small that float16 holds sums over all pixels.
        grad = y.detach() * (y.numel() // y.shape[-1]) ** -0.5
        grads = torch.autograd.grad(y, side.inputs, grad)
        # Gradients of a rival are in its own layout.
        results = (side.to_map(y.detach()), *(grads if side.formulation else ()))
        del y
        memory = peak_multiple(side, grad)
        kept = side.function(*side.inputs)
    runs = {
        "forward": lambda: side.function(*side.inputs),
        "backward": lambda: torch.autograd.grad(kept, side.inputs, grad, retain_graph=True),
    }
    return Prepared({mode: forced(name, run) for mode, run in runs.items()}, results, memory)


def peak_multiple(side: Side, grad: Tensor) -> float | None:
    """Measure what a GPU's allocator hands out for both passes, over operands and result."""
    if not grad.is_cuda:
        return None
    before = torch.cuda.memory_allocated(grad.device)
    torch.cuda.reset_peak_memory_stats(grad.device)
    y = side.function(*side.inputs)
    torch.autograd.grad(y, side.inputs, grad)
    peak = torch.cuda.max_memory_allocated(grad.device) - before
    return peak / sum(x.nbytes for x in (*side.inputs, grad))


def check(
    results: Sequence[Tensor], reference: Sequence[Tensor], margin: int, tolerance: float
) -> None:
    """Compare results, and gradients where both have them, with those of the first side.

    Raises:
        ArithmeticError: If the largest error is more than ``tolerance`` times the largest value.
    """
    for found, wanted in zip(results, reference, strict=False):
        if margin:
            found, wanted = (x[:, margin:-margin, margin:-margin] for x in (found, wanted))
        if not wanted.numel():
            continue
        error = (found.double() - wanted.double()).abs().max() / wanted.double().abs().max()
        if not error <= tolerance:
            raise ArithmeticError(f"the result is wrong by {float(error):.1e} of its largest value")


def make_row(
    work: Work, limits: Limits, seconds: float | None, known: dict[str, Any], side: str, mode: str
) -> Row:
    """Set a pass's time beside its limits."""
    limit = work.limit_seconds(limits.copy_bytes, limits.matmul_flops)
    fma_limit = work.limit_seconds(limits.copy_bytes, limits.fma_flops)
    return Row(
        side=side,
        mode=mode,
        bytes=work.bytes,
        flops=work.flops,
        limit_seconds=limit,
        fma_limit_seconds=fma_limit,
        seconds=seconds,
        share=None if seconds is None else limit / seconds,
        fma_share=None if seconds is None else fma_limit / seconds,
        **known,
    )


def print_rows(rows: Sequence[Row]) -> None:
    """Print the work of an operator at a shape, its limits, and a line a side."""
    work = ", ".join(
        f"{row.mode} {row.bytes / 1e6:.2f} MB {row.flops / 1e9:.3f} GFLOP" for row in rows[:2]
    )
    print(f"\n{rows[0].operator}, {rows[0].shape}: {work}")
    heads = (f"{row.mode + ' ms':>14} {'share':>7} {'fma':>7}" for row in rows[:2])
    limits = (f"{1e3 * row.limit_seconds:14.3f}{'':16}" for row in rows[:2])
    fma_limits = (f"{1e3 * row.fma_limit_seconds:14.3f}{'':16}" for row in rows[:2])
    for label, cells in (("", heads), ("limit", limits), ("limit, fma", fma_limits)):
        print(f"{label:24}{''.join(cells)}".rstrip())
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        if first.seconds is None:
            print(f"{first.side:24}   {'failed' if first.failed else 'skipped'}: {first.note}")
            continue
        memory = "" if first.memory is None else f"   memory {first.memory:.2f}x"
        print(f"{first.side:24}{_cell(first)}{_cell(second)}{memory}", flush=True)


def _cell(row: Row) -> str:
    if row.seconds is None or row.share is None or row.fma_share is None:
        return f"   no {row.mode} pass here"
    return f"{1e3 * row.seconds:14.3f} {row.share:7.1%} {row.fma_share:7.1%}"


if __name__ == "__main__":
    main()
