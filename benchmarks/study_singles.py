"""The networks that a person would draw: one mixer everywhere, at sizes that span the cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from searchspace.architecture import Architecture
from searchspace.mixers import DepthwiseConv
from searchspace.space import SearchSpace

KERNELS = (3, 5, 7)


def single_networks(space: SearchSpace, num_sizes: int) -> tuple[Architecture, ...]:
    """Return each mixer that all stages offer, from the smallest stages to the largest.

    Depth-wise convolution comes with kernels of 3, 5 and 7, in each stage the largest that the
    space offers up to that.
    """
    found: dict[str, Architecture] = {}
    for _, only in space.single_mixer_spaces():
        for step in range(num_sizes):
            for one in _variants(only, only.sized(step / max(num_sizes - 1, 1))):
                if space.violation(one) is None:
                    found.setdefault(one.key, one)
    return tuple(found.values())


def _variants(space: SearchSpace, one: Architecture) -> Iterator[Architecture]:
    if not all(isinstance(m, DepthwiseConv) for stage in one.stages for m in stage.mixers):
        yield one
        return
    for kernel in KERNELS:
        stages = []
        for index, stage in enumerate(one.stages):
            offered = [m for m in space.mixers_of(index, 0) if isinstance(m, DepthwiseConv)]
            fitting = [m for m in offered if m.kernel_size <= kernel] or offered
            mixer = max(fitting, key=lambda m: m.kernel_size)
            stages.append(replace(stage, mixers=(mixer,) * stage.depth))
        yield replace(one, stages=tuple(stages))
