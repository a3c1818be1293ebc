"""Which architectures a step trains: allowed ones, fairly shared, the same for the same seed."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from searchspace.cost import count
from searchspace.space import SearchSpace
from searchspace.spec_file import load_space
from supernet.shared_weights.strategies import (
    DISTILLING,
    STRATEGIES,
    check_strategy,
    fair,
    sandwich,
    uniform,
)
from tests.supernet.network.test_supernet import SPACE

MICRO = load_space("micro")


def extremes_of(space: SearchSpace) -> tuple:
    return tuple(space.extreme("macs", largest=flag) for flag in (True, False))


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_strategy_names_allowed_architectures_and_repeats_itself(name: str) -> None:
    extremes = extremes_of(MICRO)
    named = STRATEGIES[name](MICRO, random.Random("5/3"), extremes)
    assert named == STRATEGIES[name](MICRO, random.Random("5/3"), extremes)
    assert all(MICRO.violation(architecture) is None for architecture in named)


def test_a_single_path_is_one_architecture() -> None:
    assert len(uniform(MICRO, random.Random(0), extremes_of(MICRO))) == 1


def test_a_sandwich_has_the_extremes_around_random_architectures() -> None:
    named = sandwich(MICRO, random.Random(0), extremes_of(MICRO))
    macs = [count(architecture).macs for architecture in named]
    assert len(named) == 4
    assert macs[0] == max(macs)
    assert macs[1] == min(macs)
    assert set(DISTILLING) == {"sandwich"}


@pytest.mark.parametrize("space", [MICRO, SPACE], ids=["by stage", "by block"])
def test_a_fair_cycle_uses_every_kind_of_every_choice_once(space: SearchSpace) -> None:
    for seed in range(8):
        named = fair(space, random.Random(seed), extremes_of(space))
        for index, stage in enumerate(space.stages):
            (depth,) = {a.stages[index].depth for a in named}
            for block in range(depth):
                kinds = Counter(a.stages[index].mixers[block].kind for a in named)
                assert kinds == Counter(stage.choices_of(block).kinds.keys())


def test_fair_cycles_have_all_depths() -> None:
    cycles = [fair(SPACE, random.Random(seed), extremes_of(SPACE)) for seed in range(20)]
    depths = {tuple(stage.depth for stage in cycle[0].stages) for cycle in cycles}
    assert depths == {(1, 1), (1, 2), (2, 1), (2, 2)}


def test_a_choice_of_few_kinds_takes_turns_in_a_longer_cycle() -> None:
    first, *others = MICRO.stages
    choices = first.choices[0]
    few = replace(choices, kinds=dict(list(choices.kinds.items())[:2]))
    space = MICRO.replace(stages=(replace(first, choices=(few,)), *others))
    named = fair(space, random.Random(2), extremes_of(space))
    uses = Counter(a.stages[0].mixers[0].kind for a in named)
    assert len(named) == len(others[0].choices[0].kinds)
    assert max(uses.values()) - min(uses.values()) <= 1


def test_a_limit_that_leaves_no_fair_cycle_is_named() -> None:
    smallest = count(MICRO.extreme("macs", largest=False)).macs
    space = MICRO.replace(limits={"macs": smallest})
    with pytest.raises(ValueError, match="no fair cycle"):
        fair(space, random.Random(0), extremes_of(space))
    with pytest.raises(ValueError, match=r"no fair cycle.*0 of 20"):
        check_strategy("fair", space)
    for strategy in ("uniform", "sandwich"):
        check_strategy(strategy, space)
    check_strategy("fair", MICRO)
