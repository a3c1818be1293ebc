"""A Triton kernel that does nothing but fused multiply-adds in float32, from registers."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

# A thread (of 128) has 8 chains, so that one multiply-add need not wait for another; a program
# adds its elements up at the end, so that nothing is left out.
BLOCK, ROUNDS, UNROLLED = 1024, 256, 64
FACTOR, ADDEND = 0.5, 1.0


def run_chains(out: Tensor) -> None:
    """Fill a tensor, an element a program, with the sum of its chains' ends."""
    _chains[(out.numel(),)](out, ROUNDS, UNROLLED, BLOCK, FACTOR, ADDEND, num_warps=4)


def count_flops(programs: int) -> int:
    """Count a multiply-add as two."""
    return 2 * programs * BLOCK * ROUNDS * UNROLLED


@triton.jit
def _chains(
    out: tl.tensor,
    rounds: tl.tensor,
    unrolled: tl.constexpr,
    block: tl.constexpr,
    factor: tl.tensor,
    addend: tl.tensor,
) -> None:
    program = tl.program_id(0)
    x = (program + tl.arange(0, block)).to(tl.float32)
    for _ in range(rounds):
        for _ in tl.static_range(unrolled):
            x = tl.fma(x, factor, addend)
    tl.store(out + program, tl.sum(x))
