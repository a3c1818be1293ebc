"""The choice within a limit is the best of all: compared with every network, one by one."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from search.grafting import (
    PAIRS,
    SUM,
    GraftScores,
    choosable,
    choose,
    graft_networks,
    graft_scores,
    limits_between,
    pair_networks,
    single_networks,
)
from search.record import Measured
from searchspace.architecture import Architecture, Stage
from searchspace.cost import count
from searchspace.graft_space import (
    Replacement,
    graft_space,
    offered_replacements,
    replacements,
    with_replacements,
)
from searchspace.mixers import DepthwiseConv, NoMixer, WindowAttention
from searchspace.space import SearchSpace
from tests.tiny_trials import trial

WINDOW = WindowAttention(window_size=4, num_heads=2)
TEACHER = Architecture(
    img_size=16,
    patch_size=2,
    num_classes=3,
    stages=(Stage(dim=8, mixers=(WINDOW,) * 2, mlp_ratio=2), Stage(dim=16, mixers=(WINDOW,))),
)
SPACE = graft_space(TEACHER)


def macs(architecture: Architecture) -> float:
    return count(architecture).macs


def drawn_scores(seed: int, *, offered: int = 3) -> GraftScores:
    """A few replacements of every place, with random scores."""
    rng = random.Random(seed)
    places: dict[tuple[int, int, bool], list[Replacement]] = {}
    for one in offered_replacements(SPACE, TEACHER):
        places.setdefault((one.stage, one.block, one.mixer is None), []).append(one)
    kept = [one for them in places.values() for one in rng.sample(them, min(offered, len(them)))]
    return GraftScores(TEACHER, {one: rng.random() for one in kept}, {})


def all_networks(scores: GraftScores) -> list[Architecture]:
    places: dict[tuple[int, int, bool], list[Replacement | None]] = {}
    for one in scores.singles:
        places.setdefault((one.stage, one.block, one.mixer is None), [None]).append(one)
    products = itertools.product(*places.values())
    return [with_replacements(TEACHER, [one for one in row if one]) for row in products]


@pytest.mark.parametrize("seed", range(4))
def test_nothing_within_the_limit_has_a_smaller_sum(seed: int) -> None:
    scores = drawn_scores(seed)
    everything = all_networks(scores)
    rows = [(macs(network), scores.total(network), network.key) for network in everything]
    found = choosable(SPACE, scores, macs)
    assert found.least == min(row[0] for row in rows)
    for limit in (found.base, *limits_between(found, 6)):
        best = min(total for cost, total, _ in rows if cost <= limit)
        chosen = choose(found, limit)
        assert chosen is not None
        assert macs(chosen) <= limit
        assert scores.total(chosen) == pytest.approx(best, abs=1e-9)
    assert choose(found, found.least - 1) is None


def test_a_limit_holds_to_the_last_multiply_accumulate() -> None:
    """Of many millions HiGHS takes one for nothing."""
    one = Replacement(stage=0, block=0, mixer=NoMixer())
    two = Replacement(stage=0, block=1, mixer=NoMixer())
    scores = GraftScores(TEACHER, {one: 0.1, two: 0.2}, {})

    def cost(architecture: Architecture) -> float:
        return 1e9 - 1e8 * len(replacements(TEACHER, architecture))

    found = choosable(SPACE, scores, cost)
    assert choose(found, 9e8) == with_replacements(TEACHER, [one])
    assert choose(found, 9e8 - 1) == with_replacements(TEACHER, [one, two])
    assert choose(found, 8e8 - 1) is None


def test_limits_begin_with_the_most_that_is_wanted() -> None:
    found = choosable(SPACE, drawn_scores(0), macs)
    most = (found.base + found.least) / 2
    limits = limits_between(found, 4, most=most)
    assert limits == sorted(limits, reverse=True)
    assert (limits[0], limits[-1], len(limits)) == (most, found.least, 4)
    assert limits_between(found, 4, most=2 * found.base) == limits_between(found, 4)


def test_what_is_known_is_not_chosen_again() -> None:
    """One after the other, all networks within a limit come, the best first, each once."""
    scores = drawn_scores(1, offered=1)
    found = choosable(SPACE, scores, macs)
    limit = limits_between(found, 2)[0]
    rows = [(scores.total(network), network) for network in all_networks(scores)]
    expected = sorted(total for total, network in rows if macs(network) <= limit)
    chosen: list[Architecture] = []
    while (network := choose(found, limit, without=chosen)) is not None:
        chosen.append(network)
    assert len({network.key for network in chosen}) == len(chosen) == len(expected)
    assert [scores.total(network) for network in chosen] == pytest.approx(expected)


def test_scores_are_read_from_what_was_judged() -> None:
    one = Replacement(stage=0, block=0, mixer=NoMixer())
    two = Replacement(stage=1, block=0, mixer=DepthwiseConv(kernel_size=3))
    three = Replacement(stage=0, block=1, mlp_ratio=1.0)
    known = {(one,): 0.2, (two,): 0.5, (three,): 0.1, (one, two): 1.0, (two, three): 0.5, (): 0.0}
    trials = [
        replace(
            trial(index, correct=1, fidelity="supernet"),
            architecture=with_replacements(TEACHER, them),
            measured=Measured(kl=kl),
        )
        for index, (them, kl) in enumerate(known.items(), start=1)
    ]
    scores = graft_scores(trials, TEACHER)
    assert scores.singles == {one: 0.2, two: 0.5, three: 0.1}
    assert dict(scores.pairs) == pytest.approx(
        {frozenset((one, two)): 0.3, frozenset((two, three)): -0.1}
    )
    everything = with_replacements(TEACHER, [one, two, three])
    # The third couple was not measured: it counts as the mean of the two that were.
    expected = {SUM: -0.8, PAIRS: -(0.8 + 0.3 - 0.1 + 0.1)}
    assert scores.estimates(everything) == pytest.approx(expected)
    unknown = Replacement(stage=0, block=1, mixer=NoMixer())
    assert scores.estimates(with_replacements(TEACHER, [unknown])) == {}


def test_networks_to_judge_are_what_they_are_said_to_be() -> None:
    rng = random.Random(0)
    singles = single_networks(SPACE, TEACHER)
    assert singles[0] == TEACHER
    assert [len(replacements(TEACHER, one)) for one in singles[1:]] == [1] * (len(singles) - 1)
    assert len({one.key for one in singles}) == len(singles)
    pairs = pair_networks(SPACE, TEACHER, number=20, rng=rng)
    assert {len(replacements(TEACHER, one)) for one in pairs} == {2}
    assert len({one.key for one in pairs}) == len(pairs) == 20
    assemblies = graft_networks(SPACE, TEACHER, number=12, rng=rng)
    # From one place to all six: two of each.
    assert sorted(len(replacements(TEACHER, one)) for one in assemblies) == [
        1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6,
    ]  # fmt: skip


def test_a_space_offers_its_mixers_to_the_stages() -> None:
    from searchspace.spec_file import load_space

    offered = load_space("digits")
    space = graft_space(TEACHER, offered)
    for index in range(2):
        mixers = space.mixers_of(index, 0)
        assert set(offered.mixers_of(index, 0)) <= {*mixers, *offered.mixers_of(index, 0)}
        assert mixers[0] == WINDOW
        assert NoMixer() in mixers
    one_stage = TEACHER.replace(stages=TEACHER.stages[:1])
    with pytest.raises(ValueError, match="the network 1"):
        graft_space(one_stage, offered)


def test_the_space_is_an_ordinary_one() -> None:
    rng = random.Random(3)
    assert isinstance(SPACE, SearchSpace)
    for _ in range(30):
        network = SPACE.sample(rng)
        assert SPACE.violation(network) is None
        assert with_replacements(TEACHER, replacements(TEACHER, network)) == network
    small, large = (SPACE.extreme("macs", largest=largest) for largest in (False, True))
    assert macs(small) <= macs(TEACHER) <= macs(large)
    outside = with_replacements(TEACHER, [Replacement(stage=0, block=0, mlp_ratio=3.0)])
    assert SPACE.violation(outside) is not None
