"""The networks that a person would draw: one mixer everywhere, at sizes that span the cost."""

from __future__ import annotations

from searchspace.architecture import Architecture
from searchspace.single_mixer import single_mixer_networks
from searchspace.space import SearchSpace


def single_networks(space: SearchSpace, num_sizes: int) -> tuple[Architecture, ...]:
    """Return each mixer that all stages offer, from the smallest stages to the largest, once.

    Depth-wise convolution comes with kernels of 3, 5 and 7, in each stage the largest that the
    space offers up to that.
    """
    sizes = [step / max(num_sizes - 1, 1) for step in range(num_sizes)]
    networks = single_mixer_networks(space, sizes)
    return tuple({one.key: one for one in networks if space.violation(one) is None}.values())
