"""Importance finds the choices that decide, and no others; traits are exact tests."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from search.results.importance import (
    MIN_NETWORKS,
    _encode,
    _shuffled,
    front_traits,
    list_choices,
    study_importance,
)
from searchspace.architecture import Architecture, Stage
from searchspace.mixers import DepthwiseConv, Elsa, Mixer, NeighborhoodAttention
from searchspace.space import SearchSpace
from searchspace.spec_file import load_space


@pytest.fixture(scope="module")
def networks() -> list[Architecture]:
    rng, space = random.Random(0), load_space("micro")
    return [space.sample(rng) for _ in range(150)]


def kernel_size(mixer: Mixer) -> int:
    return mixer.kernel_size if hasattr(mixer, "kernel_size") else 0


def test_the_stage_that_decides_is_the_most_important(networks: list[Architecture]) -> None:
    rng = random.Random(1)
    top1 = [
        60 + 10 * isinstance(n.stages[1].mixers[0], DepthwiseConv) + rng.gauss(0, 0.5)
        for n in networks
    ]

    study = study_importance(networks, top1, seed=0)

    assert study is not None
    assert study.r2 > 0.8
    first, second = study.choices[:2]
    assert (first.place, first.setting) == ("stage 1", "mixer")
    assert first.low > 5 * max(second.mean, 0.01)
    assert first.low <= first.mean <= first.high


def test_a_setting_counts_only_where_its_mixer_is(networks: list[Architecture]) -> None:
    top1 = [
        60.0 + 8 * (isinstance(m := n.stages[0].mixers[0], Elsa) and m.lam == 1.0) for n in networks
    ]

    study = study_importance(networks, top1, seed=0)

    assert study is not None
    worth = {(one.place, one.setting): one.mean for one in study.choices}
    assert worth["stage 0", "lambda"] > 0.3
    assert max(v for (place, _), v in worth.items() if place != "stage 0") < 0.1


def test_noise_has_no_importance(networks: list[Architecture]) -> None:
    rng = random.Random(2)

    study = study_importance(networks, [rng.gauss(60, 1) for _ in networks], seed=0)

    assert study is not None
    assert study.r2 < 0.1


def test_few_networks_or_no_choice_say_nothing(networks: list[Architecture]) -> None:
    few = networks[: MIN_NETWORKS - 1]

    assert study_importance(few, list(range(len(few))), seed=0) is None
    assert study_importance(networks[:1] * 40, list(range(40)), seed=0) is None
    assert study_importance(networks, [50.0] * len(networks), seed=0) is None


def test_equal_seeds_give_equal_studies(networks: list[Architecture]) -> None:
    top1 = [float(kernel_size(n.stages[0].mixers[0])) for n in networks]

    assert study_importance(networks, top1, seed=3) == study_importance(networks, top1, seed=3)


def test_blocks_that_differ_are_choices_of_their_own() -> None:
    (stage, *others) = load_space("micro").first().stages
    mixed = replace(
        stage,
        mixers=(DepthwiseConv(kernel_size=3), NeighborhoodAttention(kernel_size=3, num_heads=2)),
    )
    network = load_space("micro").first().replace(stages=(mixed, *others))

    (choices,) = list_choices([network])

    assert choices["stage 0, block 0", "mixer"] == "depthwise_conv"
    assert choices["stage 0, block 1", "mixer"] == "neighborhood_attention"
    assert ("stage 1", "mixer") in choices


def test_a_depth_is_a_choice_of_its_stage_also_where_blocks_differ() -> None:
    rng, space = random.Random(3), load_space("micro_depth")
    several = [space.sample(rng) for _ in range(150)]
    top1 = [60 + 5 * n.stages[1].depth + rng.gauss(0, 0.5) for n in several]

    study = study_importance(several, top1, seed=0)

    assert study is not None
    first, second = study.choices[:2]
    assert (first.place, first.setting) == ("stage 1", "depth")
    assert first.low > 5 * max(second.mean, 0.01)


def test_shuffled_networks_have_the_blocks_of_their_depth() -> None:
    rng, space = random.Random(4), load_space("micro_depth")
    choices = list_choices([space.sample(rng) for _ in range(60)])
    features, groups = _encode(choices)
    depth, taps = (groups["stage 1", "depth"], groups["stage 1, block 2", "kernel size"])
    mixer = groups["stage 1, block 2", "mixer"]

    for shuffled in _shuffled(features, groups, choices, np.random.default_rng(0)):
        has_third = shuffled[:, mixer].sum(axis=1) == 1
        assert ((shuffled[:, depth[0]] == 3) == has_third).all()
        assert (shuffled[~has_third][:, taps] == -1).all()


def test_traits_are_fishers_exact_test_with_bonferronis_correction(
    networks: list[Architecture],
) -> None:
    def is_elsa(network: Architecture) -> bool:
        return isinstance(network.stages[2].mixers[0], Elsa)

    front = [n for n in networks if is_elsa(n)][:6]
    rest = [n for n in networks if n not in front]

    traits = front_traits(front, rest)

    (trait,) = [t for t in traits if (t.place, t.value) == ("stage 2", "elsa")]
    outside = sum(map(is_elsa, rest))
    p = stats.fisher_exact([[6, 0], [outside, len(rest) - outside]])[1]
    assert (trait.front, trait.num_front, trait.rest) == (6, 6, outside)
    assert trait.p_value == pytest.approx(min(p * len(traits), 1.0))
    assert traits[0].p_value == min(t.p_value for t in traits)


def test_what_all_networks_share_is_no_trait() -> None:
    only = SearchSpace.of(load_space("micro").first()).first()

    assert front_traits([only], [only, only]) == ()


def test_a_setting_without_alternatives_is_no_choice() -> None:
    def network(kernel_size: int) -> Architecture:
        stage = Stage(dim=8, mixers=(DepthwiseConv(kernel_size=kernel_size),))
        return Architecture(img_size=8, patch_size=2, stages=(stage,))

    assert list_choices([network(3), network(5)]) == [
        {("stage 0", "mixer"): "depthwise_conv", ("stage 0", "kernel size"): size}
        for size in (3, 5)
    ]
