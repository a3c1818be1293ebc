"""Which networks of a graft are judged to learn what its parts are worth."""

from __future__ import annotations

import math
import random

from searchspace.architecture import Architecture
from searchspace.graft_space import Replacement, offered_replacements, with_replacements
from searchspace.space import SearchSpace

# Pairs are a sample: a part of the singles, and not more than that many.
PAIR_SHARE, MOST_PAIRS = 0.25, 200


def single_networks(space: SearchSpace, teacher: Architecture) -> list[Architecture]:
    """List the teacher, and then the teacher with one thing replaced, for everything offered."""
    singles = [with_replacements(teacher, [one]) for one in offered_replacements(space, teacher)]
    return [teacher, *singles]


def num_pairs(num_singles: int) -> int:
    """Return how many pairs are judged beside so many single replacements."""
    return min(int(PAIR_SHARE * num_singles), MOST_PAIRS)


def pair_networks(
    space: SearchSpace, teacher: Architecture, *, number: int, rng: random.Random
) -> list[Architecture]:
    """Draw networks with two things replaced, at two places; each once."""
    offered = offered_replacements(space, teacher)
    found: dict[str, Architecture] = {}
    for _ in range(number * 4):
        if len(found) == number:
            break
        pair = rng.sample(offered, 2) if len(offered) > 1 else []
        if len({place_of(one) for one in pair}) == 2:
            network = with_replacements(teacher, pair)
            found.setdefault(network.key, network)
    return list(found.values())


def graft_networks(
    space: SearchSpace, teacher: Architecture, *, number: int, rng: random.Random
) -> list[Architecture]:
    """Draw assemblies from one replacement to all places, as evenly as their number allows."""
    offered = offered_replacements(space, teacher)
    places = sorted({place_of(one) for one in offered})
    found: dict[str, Architecture] = {}
    for index in range(number * 4):
        if len(found) == number:
            break
        share = (index % number + 1) / number
        chosen = rng.sample(places, math.ceil(share * len(places)))
        drawn = [rng.choice([one for one in offered if place_of(one) == place]) for place in chosen]
        network = with_replacements(teacher, drawn)
        if space.violation(network) is None:
            found.setdefault(network.key, network)
    return list(found.values())


def place_of(one: Replacement) -> tuple[int, int, bool]:
    """Say what is replaced: the mixer or the MLP of which block."""
    return one.stage, one.block, one.mixer is None
