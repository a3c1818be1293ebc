"""Networks of a single mixer: what a person would draw, and what a mix has to beat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from searchspace.architecture import Architecture
from searchspace.mixers import DepthwiseConv
from searchspace.space import SearchSpace

# Between the smallest (0) and the largest (1) choice of width, depth and MLP ratio of every stage.
SIZES = (0.0, 0.5, 1.0, 0.25, 0.75)
# Depth-wise convolution is drawn with each of these.
KERNELS = (3, 5, 7)


def is_single_mixer(architecture: Architecture) -> bool:
    """Tell whether all blocks of a network have the same kind of mixer; settings may differ."""
    return len({m.kind for stage in architecture.stages for m in stage.mixers}) == 1


def single_mixer_baselines(space: SearchSpace) -> tuple[Architecture, ...]:
    """Name networks of one mixer at several costs, each once.

    First each kind that all stages allow in the size that the papers build (the first options),
    then all kinds at the smallest size, at a middling one, and so on: any beginning of the list
    spans mixers first and costs next. A kind has the first settings that the space lists;
    depth-wise convolution comes with each of `KERNELS`.
    """
    singles = dict(space.single_mixer_spaces())
    sized = [space_of.first() for space_of in singles.values()]
    sized += single_mixer_networks(space, SIZES)
    return tuple({one.key: one for one in sized if space.violation(one) is None}.values())


def single_mixer_networks(space: SearchSpace, sizes: Sequence[float]) -> list[Architecture]:
    """Return each mixer that all stages allow, at one size after the other; some may break a rule.

    Args:
        sizes: See `SearchSpace.sized`.
    """
    singles = dict(space.single_mixer_spaces()).values()
    return [
        one for share in sizes for only in singles for one in _with_kernels(only, only.sized(share))
    ]


def _with_kernels(only: SearchSpace, one: Architecture) -> Iterator[Architecture]:
    """Give depth-wise convolutions each kernel, in a stage the largest it offers up to that."""
    mixers = [mixer for stage in one.stages for mixer in stage.mixers]
    if not all(isinstance(mixer, DepthwiseConv) for mixer in mixers):
        yield one
        return
    for kernel in KERNELS:
        stages = []
        for index, stage in enumerate(one.stages):
            offered = [m for m in only.mixers_of(index, 0) if isinstance(m, DepthwiseConv)]
            fitting = [m for m in offered if m.kernel_size <= kernel] or offered
            mixer = max(fitting, key=lambda m: m.kernel_size)
            stages.append(replace(stage, mixers=(mixer,) * stage.depth))
        yield one.replace(stages=tuple(stages))
