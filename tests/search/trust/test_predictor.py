"""The predictor finds what decides the accuracy, and is judged on what it has not seen."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy import stats

from search.trust.predictor import MIN_NETWORKS, Predictor, cross_validated, features
from searchspace.architecture import Architecture
from searchspace.spec_file import load_space

SPACE = load_space("micro")


def networks(number: int, seed: int = 0) -> list[Architecture]:
    rng = random.Random(seed)
    return [SPACE.sample(rng) for _ in range(number)]


def accuracy(architecture: Architecture) -> float:
    """Make convolution worth 5 points in each block, and nothing else worth anything."""
    kinds = [mixer.kind for stage in architecture.stages for mixer in stage.mixers]
    return 50 + 5 * sum(kind == "depthwise_conv" for kind in kinds)


def test_features_say_what_stands_where() -> None:
    architecture = networks(1)[0]
    found = features(architecture)
    first = architecture.stages[0].mixers[0].kind
    assert found[f"0.{first}"] == 1
    kinds = {mixer.kind for stage in architecture.stages for mixer in stage.mixers}
    assert sum(found[kind] for kind in kinds) == pytest.approx(1)


def test_a_rule_of_the_mixers_is_learnt_and_holds_for_unseen_networks() -> None:
    known, unseen = networks(40), networks(40, seed=1)
    predictor = Predictor(known, [accuracy(a) for a in known])
    tau = stats.kendalltau(predictor(unseen), [accuracy(a) for a in unseen]).statistic
    assert tau > 0.7


def test_noise_is_not_predicted() -> None:
    rng = np.random.default_rng(0)
    taus = []
    for seed in range(5):
        top1 = rng.normal(size=24)
        estimates = cross_validated(networks(24, seed), list(top1), seed=0)
        taus.append(stats.kendalltau(estimates, top1).statistic)
    assert np.mean(taus) < 0.2


def test_too_few_networks_are_refused() -> None:
    known = networks(MIN_NETWORKS - 1)
    with pytest.raises(ValueError, match="at least 8 trained networks, got 7"):
        cross_validated(known, [1.0] * len(known), seed=0)
