"""Networks of a single mixer: what a person would draw, and what a mix has to beat."""

from __future__ import annotations

from searchspace.architecture import Architecture
from searchspace.space import SearchSpace

# Between the smallest (0) and the largest (1) choice of width, depth and MLP ratio of every stage.
SIZES = (0.0, 0.5, 1.0, 0.25, 0.75)


def is_single_mixer(architecture: Architecture) -> bool:
    """Tell whether all blocks of a network have the same kind of mixer."""
    return len({m.kind for stage in architecture.stages for m in stage.mixers}) == 1


def single_mixer_baselines(space: SearchSpace) -> tuple[Architecture, ...]:
    """Name networks of one mixer at several costs, each once.

    First each kind that all stages allow in the size that the papers build (the first options),
    then all kinds at the smallest size, at a middling one, and so on: any beginning of the list
    spans mixers first and costs next. A kind has the first settings that the space lists.
    """
    found: dict[str, Architecture] = {}
    singles = dict(space.single_mixer_spaces())
    sized = [space_of.first() for space_of in singles.values()]
    sized += [space_of.sized(share) for share in SIZES for space_of in singles.values()]
    for architecture in sized:
        if space.violation(architecture) is None:
            found.setdefault(architecture.key, architecture)
    return tuple(found.values())
