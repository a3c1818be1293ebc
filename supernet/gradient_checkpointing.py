"""Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): blocks computed twice, memory saved.

The second computation draws the same random numbers and leaves the statistics of batch norms alone,
so that a training has the same numbers with and without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


@contextmanager
def checkpointed(network: nn.Module) -> Iterator[None]:
    """Let the blocks of ``network.stages`` keep their inputs alone, in calls inside the context.

    Raises:
        ValueError: If the network has no stages of blocks.
    """
    blocks = [block for stage in getattr(network, "stages", ()) for block in stage]
    if not blocks:
        raise ValueError(
            "gradient_checkpointing works on networks with stages of blocks, as ours are; "
            f"{type(network).__name__} has none. Turn it off in the recipe."
        )
    try:
        for block in blocks:
            block.forward = partial(_checkpointed_forward, block)
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


def _checkpointed_forward(block: nn.Module, *arguments: Any) -> Any:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(block)

    forward = type(block).forward.__get__(block)
    return checkpoint(forward, *arguments, use_reentrant=False, context_fn=contexts)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
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
