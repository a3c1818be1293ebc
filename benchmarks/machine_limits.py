"""What a machine does at most: bytes copied, and operations of two kinds, a second; measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.timing import Run, Timer
from supernet.kernels.select import has_triton

# Elements of the copy and side of the matrices; the copy is larger than any cache.
COPIED = {"cpu": 2**25, "cuda": 2**29}
MATRIX_SIDE = {"cpu": 1024, "cuda": 8192}
ATTEMPTS, PATIENCE_SECONDS = 12, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Rates that the machine reached, the best of some attempts.

    Attributes:
        copy_bytes: Bytes read and written a second by a copy.
        matmul_flops: Operations a second of a large matrix multiplication in the dtype asked for:
            the tensor cores of a GPU, for 16 bits.
        fma_flops: Operations a second of fused multiply-adds in float32, without tensor cores.
    """

    copy_bytes: float
    matmul_flops: float
    fma_flops: float


def measure_limits(device: torch.device, dtype: torch.dtype, timer: Timer) -> Limits:
    """Measure the rates on a device."""
    matmul = _matmul_rate(device, dtype, timer)
    if device.type == "cuda" and has_triton():
        fma = _fma_rate(device, timer)
    else:
        # In float32 a matrix product is made of these units' multiply-adds, from registers.
        fma = matmul if dtype == torch.float32 else _matmul_rate(device, torch.float32, timer)
    return Limits(copy_bytes=_copy_rate(device, timer), matmul_flops=matmul, fma_flops=fma)


def _copy_rate(device: torch.device, timer: Timer) -> float:
    source = torch.ones(COPIED[device.type], device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), timer)


def _matmul_rate(device: torch.device, dtype: torch.dtype, timer: Timer) -> float:
    side = MATRIX_SIDE[device.type]
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(left)
    return 2 * side**3 / _best(lambda: torch.mm(left, right, out=product), timer)


def _fma_rate(device: torch.device, timer: Timer) -> float:
    # Not every torch brings Triton.
    from benchmarks.fma_chain import count_flops, run_chains

    programs = 32 * torch.cuda.get_device_properties(device).multi_processor_count
    out = torch.empty(programs, device=device)
    return count_flops(programs) / _best(lambda: run_chains(out), timer)


def _best(run: Run, timer: Timer) -> float:
    """Return the shortest of several runs; of fewer where they are slow."""
    seconds = [timer(run)]
    while len(seconds) < ATTEMPTS and sum(seconds) < PATIENCE_SECONDS:
        seconds.append(timer(run))
    return min(seconds)
