"""Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): blocks computed twice, memory saved.

The second computation draws the same random numbers and leaves the statistics of batch norms alone,
so that a training has the same numbers with and without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from supernet.mixers import NarrowPart


def recompute(block: nn.Module | NarrowPart, *arguments: Any) -> Any:
    """Call a block so that it keeps its inputs alone, and is computed again for the gradients."""

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(block)

    return checkpoint(block, *arguments, use_reentrant=False, context_fn=contexts)


@contextmanager
def _statistics_kept(block: nn.Module | NarrowPart) -> Iterator[None]:
    """Let batch norms use the batch and learn nothing from it."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    before = [(norm.momentum, deepcopy(norm.num_batches_tracked)) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and count is not None:
                norm.num_batches_tracked.copy_(count)
