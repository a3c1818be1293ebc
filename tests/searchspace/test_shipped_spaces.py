"""The shipped spaces spread cost (that swin_t has the papers' networks: test_spec_file.py)."""

from __future__ import annotations

import random

import pytest

from configs import config_names
from searchspace.cost import count
from searchspace.spec_file import load_space

NUM_DRAWN, TWENTIETH = 400, 20
# They show one kind of choice alone.
OF_ONE_CHOICE = {"micro_width", "micro_depth"}


@pytest.mark.parametrize("name", sorted(set(config_names("spaces")) - OF_ONE_CHOICE))
def test_the_most_expensive_twentieth_costs_at_least_four_times_the_cheapest(name: str) -> None:
    """Otherwise a search for accuracy and MACs ends with networks that all cost the same."""
    space, rng = load_space(name), random.Random(0)
    macs = sorted(count(space.sample(rng)).macs for _ in range(NUM_DRAWN))
    assert macs[-TWENTIETH] >= 4 * macs[TWENTIETH - 1]


@pytest.mark.parametrize("name", ["digits", "micro", "micro_128"])
def test_single_mixers_have_the_first_options(name: str) -> None:
    """A baseline is what the papers build, not a narrow or shallow network."""
    space = load_space(name)
    singles = dict(space.single_mixer_architectures())
    assert len(singles) == 5
    for network in singles.values():
        sizes = [(stage.dim, stage.depth, stage.mlp_ratio) for stage in network.stages]
        assert sizes == [(s.dims[0], s.depths[0], s.mlp_ratios[0]) for s in space.stages]
