"""The predictor finds what decides the accuracy, and is judged on what it has not seen."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy import stats

from search.trust.predictor import MIN_NETWORKS, Predictor, cross_validated, features
from searchspace.architecture import Architecture, Stage
from searchspace.cost import count
from searchspace.mixers import DepthwiseConv, WindowAttention
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


def test_features_are_shares_sizes_and_logarithms() -> None:
    convolution = DepthwiseConv(kernel_size=5)
    window = WindowAttention(window_size=2, num_heads=2, terms="qk+bias")
    network = Architecture(
        img_size=16,
        patch_size=2,
        num_classes=4,
        stages=(
            Stage(dim=8, mixers=(convolution, convolution, window), mlp_ratio=3.0),
            Stage(dim=16, mixers=(window,), mlp_ratio=1.5),
        ),
    )
    cost = count(network)
    expected = {
        "params": math.log(cost.params),
        "macs": math.log(cost.macs),
        "0.dim": 8,
        "0.depth": 3,
        "0.mlp_ratio": 3.0,
        "1.dim": 16,
        "1.depth": 1,
        "1.mlp_ratio": 1.5,
        # Of the four blocks of the network, and of each stage's own.
        "depthwise_conv": 2 / 4,
        "window_attention": 2 / 4,
        "0.depthwise_conv": 2 / 3,
        "0.window_attention": 1 / 3,
        "1.window_attention": 1.0,
        "0.depthwise_conv.kernel_size=5": 2 / 3,
    }
    found = features(network)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value), name
    for stage, share in (("0", 1 / 3), ("1", 1.0)):
        for setting in ("window_size=2", "num_heads=2", "terms=qk+bias"):
            assert found[f"{stage}.window_attention.{setting}"] == pytest.approx(share)
    # Nothing else but further settings of the mixers.
    others = set(found) - set(expected)
    assert all(name.count(".") == 2 and "=" in name for name in others if name[2] != "m")


def test_no_network_is_predicted_from_itself() -> None:
    some = networks(10)
    top1 = [accuracy(a) for a in some]
    before = cross_validated(some, top1, seed=0)
    for index in (0, 7):
        changed = [*top1]
        changed[index] += 50.0
        after = cross_validated(some, changed, seed=0)
        assert after[index] == pytest.approx(before[index])
        assert np.abs(np.delete(after - before, index)).max() > 1.0


def test_predictions_are_means_of_accuracies() -> None:
    # A constant is predicted as itself, whatever the folds are, and another one beside it.
    assert cross_validated(networks(9), [70.0] * 9, seed=0) == pytest.approx([70.0] * 9)
