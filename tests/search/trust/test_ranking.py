"""Kendall's tau equals its definition, and says where it cannot be known."""

from __future__ import annotations

import dataclasses
import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq

from search.trust.ranking import (
    EstimatorTrust,
    KendallTau,
    TrustPoint,
    choose_estimator,
    choose_score,
    compare,
    estimator_trust,
    kendall_tau_interval,
    trust_points,
    trust_report,
)
from tests.tiny_trials import trial

PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12)


@given(PAIRS)
def test_tau_is_kendalls_tau_b(pairs: list[tuple[int, int]]) -> None:
    x, y = zip(*pairs, strict=True)

    found = kendall_tau_interval(x, y, rng=np.random.default_rng(0))

    if len(set(x)) == 1 or len(set(y)) == 1:
        assert found.tau is None
    else:
        assert found.tau == pytest.approx(stats.kendalltau(x, y).statistic)


def test_the_interval_is_near_that_of_resampled_pairs() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=20)
    y = x + rng.normal(size=20)
    found = kendall_tau_interval(list(x), list(y), rng=rng)

    draws = rng.integers(0, 20, size=(1000, 20))
    taus = [stats.kendalltau(x[draw], y[draw]).statistic for draw in draws]

    assert (found.low, found.high) == pytest.approx(np.quantile(taus, (0.025, 0.975)), abs=0.05)


def test_the_same_order_has_tau_one_and_the_same_seed_the_same_interval() -> None:
    first, again = (
        kendall_tau_interval([1, 2, 3, 4, 5, 6], [2, 4, 8, 9, 11, 30], rng=np.random.default_rng(3))
        for _ in range(2)
    )

    assert first == again
    assert (first.tau, first.high) == (1.0, 1.0)


def test_one_network_is_not_several() -> None:
    alone = KendallTau(tau=None, low=None, high=None, num_points=1)
    found = EstimatorTrust(name="supernet", tau=alone, top_tau=alone, estimates=(1.0,))
    _, said = choose_estimator([found])
    assert said.startswith("1 network trained alone is too few to say")


@pytest.mark.parametrize("number", [5, 6])
def test_a_perfect_order_of_few_is_not_sure_to_be_one(number: int) -> None:
    """Its resamples are perfect as well: their interval would be a single point."""
    x = list(range(number))
    up, down = (
        kendall_tau_interval(x, y, rng=np.random.default_rng(0)) for y in (x, [-v for v in x])
    )
    assert (down.low, down.high) == (-1.0, pytest.approx(-up.low if up.low else None))

    # Mallows' model by its definition: of all orders, each as likely as q to its discordant pairs.
    orders = list(itertools.permutations(range(number)))
    pairs = list(itertools.combinations(range(number), 2))
    discordant = np.array([sum(order[i] > order[j] for i, j in pairs) for order in orders])

    def chance_and_mean(q: float) -> tuple[float, float]:
        shares = q**discordant / (q**discordant).sum()
        return float(shares[0]), float(((1 - 2 * discordant / len(pairs)) * shares).sum())

    q = brentq(lambda q: chance_and_mean(q)[0] - 0.025, 0.01, 1.0)
    assert up.low == pytest.approx(chance_and_mean(q)[1], abs=1e-6)
    assert up.high == 1.0


def test_points_that_tie_in_both_say_nothing_more() -> None:
    several = [1, 1, 2, 2, 3, 3, 4, 5]
    tied = kendall_tau_interval(several, several, rng=np.random.default_rng(0))
    alone = kendall_tau_interval(range(5), range(5), rng=np.random.default_rng(0))
    assert (tied.tau, tied.low, tied.num_points) == (1.0, alone.low, 8)


def test_too_few_points_have_no_interval() -> None:
    found = kendall_tau_interval([1, 2, 3], [1, 3, 2], rng=np.random.default_rng(0))

    assert found.tau == pytest.approx(1 / 3)
    assert (found.low, found.high, found.num_points) == (None, None, 3)


@pytest.mark.parametrize(("x", "y"), [([1.0], [1.0, 2.0]), ([float("nan"), 1.0], [1.0, 2.0])])
def test_values_that_do_not_pair_up_are_refused(x: list[float], y: list[float]) -> None:
    with pytest.raises(ValueError, match="pairs of finite values"):
        kendall_tau_interval(x, y, rng=np.random.default_rng(0))


def test_trust_leaves_out_networks_that_the_estimate_chose() -> None:
    trials = [
        trial(1, correct=150, origin="trust"),
        trial(2, correct=160, origin="trust"),
        trial(3, correct=170, origin="promote"),
        trial(4, correct=170, origin="trust", state="failed"),
        *(trial(number, correct=100 + number, fidelity="supernet") for number in (1, 2, 3, 4)),
    ]

    points = trust_points(trials)

    assert [(p.id, p.top1, p.supernet) for p in points] == [(1, 75.0, 50.5), (2, 80.0, 51.0)]
    found = estimator_trust(points, rng=np.random.default_rng(0))
    assert {one.name: one.tau.tau for one in found} == {
        "supernet": 1.0,
        "params": 1.0,
        "macs": 1.0,
    }


def test_a_run_without_trust_trials_has_no_points() -> None:
    assert trust_points([trial(1, correct=1), trial(1, correct=1, fidelity="supernet")]) == ()


def test_the_top_third_is_the_best_when_trained_alone() -> None:
    trained = [9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0]
    estimates = [1.0, 5.0, 2.0, 4.0, 3.0, 6.0, 7.0, 8.0, 9.0]
    found = compare("x", estimates, trained, rng=np.random.default_rng(0))
    # The three best, 9, 8 and 7, are estimated as 1, 2 and 3: exactly inverted.
    assert (found.top_tau.tau, found.top_tau.num_points) == (-1.0, 3)
    assert found.tau.tau == pytest.approx(stats.kendalltau(estimates, trained).statistic)


def found(name: str, tau: float | None, num_points: int = 12) -> EstimatorTrust:
    value = KendallTau(tau=tau, low=None, high=None, num_points=num_points)
    return EstimatorTrust(name=name, tau=value, top_tau=value, estimates=())


@pytest.mark.parametrize(
    ("taus", "judge", "words"),
    [
        ({"supernet": 0.6, "macs": 0.5, "params": 0.1}, "supernet", "judged by the supernet"),
        (
            {"supernet": 0.4, "macs": 0.5, "params": 0.1},
            "training",
            r"no better than macs \(0.50\)",
        ),
        ({"supernet": 0.4, "nwot": 0.45, "macs": 0.1, "params": 0.1}, "training", "nwot"),
        ({"supernet": 0.4, "predictor": 0.7, "macs": 0.5}, "predictor", "judged by the predictor"),
        ({"supernet": -0.1, "macs": -0.5, "params": -0.9}, "training", "no agreement"),
        ({"supernet": None, "macs": -0.5, "params": -0.9}, "training", "no agreement"),
    ],
)
def test_a_run_judges_by_what_won(taus: dict[str, float | None], judge: str, words: str) -> None:
    chosen, verdict = choose_estimator([found(name, tau) for name, tau in taus.items()])
    assert chosen == judge
    assert re.search(words, verdict)


@pytest.mark.parametrize(
    ("rivals", "judge", "words"),
    [
        # One of several proxies is often a little ahead.
        ({"nwot": 0.7, "macs": 0.1}, "supernet", r"nwot, has 0\.70, which noise alone explains"),
        ({"nwot": 0.95, "macs": 0.1}, "training", r"no better than nwot \(0\.95\)"),
        # What MACs tell a search knows without a supernet.
        ({"nwot": 0.7, "macs": 0.65}, "training", r"no better than macs \(0\.65\)"),
        ({"nwot": 0.95, "macs": 0.65}, "training", "nwot"),
        ({"nwot": 0.5, "macs": 0.1}, "supernet", r"the others, nwot, has 0\.50\.$"),
    ],
)
def test_a_proxy_is_a_doubt_only_beyond_noise(
    rivals: dict[str, float], judge: str, words: str
) -> None:
    tau = KendallTau(tau=0.6, low=0.3, high=0.9, num_points=12)
    supernet = EstimatorTrust(name="supernet", tau=tau, top_tau=tau, estimates=())
    others = [found(name, tau) for name, tau in rivals.items()]
    chosen, verdict = choose_estimator([supernet, *others])
    assert chosen == judge
    assert re.search(words, verdict)


def test_too_few_networks_leave_the_supernet_unchecked() -> None:
    judge, verdict = choose_estimator([found("supernet", -1.0, 4), found("macs", 1.0, 4)])
    assert judge == "supernet"
    assert "too few" in verdict


def test_a_report_compares_every_estimator_that_all_networks_have() -> None:
    numbers = range(1, 10)
    trials = [
        *(trial(n, correct=100 + n, origin="trust") for n in numbers),
        *(trial(n, correct=50 + n, fidelity="supernet") for n in numbers),
    ]
    scores = {t.key: {"nwot": -float(t.macs), "zen": float("nan")} for t in trials}
    report = trust_report(trust_points(trials, scores), rng=np.random.default_rng(0))
    taus = {e.name: e.tau.tau for e in report.estimators}
    # A score that is not finite for some network compares nothing.
    assert list(taus) == ["supernet", "nwot", "params", "macs", "predictor"]
    assert (taus["supernet"], taus["nwot"], taus["macs"]) == (1.0, -1.0, 1.0)
    assert all(len(e.estimates) == len(report.points) == 9 for e in report.estimators)
    assert report.chosen == "training"  # the supernet is no better than MACs


def scores(**taus: float | None) -> list[EstimatorTrust]:
    return [found(name, tau) for name, tau in taus.items()]


@pytest.mark.parametrize(
    ("taus", "judge", "verdict"),
    [
        (
            {"nwot": 0.7, "zen": 0.2, "params": 0.3, "macs": 0.5},
            "nwot",
            "Networks are judged by the zero-cost score nwot has the largest tau, 0.70 over 12 "
            "networks; of the costs macs has 0.50.",
        ),
        (
            {"nwot": 0.7, "zen": 0.2, "params": 0.3},
            "nwot",
            "Networks are judged by the zero-cost score nwot has the largest tau, 0.70 over 12 "
            "networks; of the costs params has 0.30.",
        ),
        (
            {"nwot": 0.4, "zen": 0.45, "params": 0.3, "macs": 0.5, "predictor": 0.9},
            "macs",
            "No zero-cost proxy ranks better than size does: macs has the largest tau, 0.50 over "
            "12 networks; the best proxy, zen, has 0.45. Networks are chosen by macs alone: spread "
            "over the cost, not by promise.",
        ),
        (
            {"params": 0.3, "macs": 0.2},
            "params",
            "No zero-cost proxy ranks better than size does: params has the largest tau, 0.30 over "
            "12 networks. Networks are chosen by params alone: spread over the cost, not by "
            "promise.",
        ),
        (
            {"nwot": 0.0, "params": -0.3, "macs": None},
            "training",
            "No zero-cost score can be trusted here: nwot has the largest tau, 0.00 over 12 "
            "networks. Networks are judged by short training alone.",
        ),
    ],
)
def test_without_a_supernet_the_best_score_judges(
    taus: dict[str, float | None], judge: str, verdict: str
) -> None:
    assert choose_estimator(scores(**taus)) == (judge, verdict)


def test_without_a_supernet_too_few_networks_are_trained_alone() -> None:
    few = [found("nwot", 0.9, 4), found("macs", 0.1, 4)]
    chosen, verdict = choose_estimator(few)
    assert chosen == "training"
    assert verdict.startswith("4 networks trained alone are too few to say which zero-cost score")
    assert "(5 are needed)" in verdict
    assert choose_estimator([found("nwot", 0.9, 5), found("macs", 0.1, 5)])[0] == "nwot"
    assert choose_estimator([])[0] == "training"


@pytest.mark.parametrize(
    ("taus", "verdict"),
    [
        (
            {"supernet": 0.6, "predictor": 0.5, "nwot": 0.1, "macs": 0.3},
            "Networks are judged by the supernet, tau 0.60 over 12 networks; the best of the "
            "others, macs, has 0.30.",
        ),
        (
            {"supernet": 0.5, "predictor": 0.6, "nwot": 0.4, "macs": 0.3},
            "Networks are judged by the predictor, tau 0.60 over 12 networks; the best of the "
            "others, nwot, has 0.40.",
        ),
        (
            {"supernet": 0.5, "predictor": 0.4, "macs": 0.5},
            "Neither the supernet nor the predictor can be trusted here: the better one, the "
            "supernet, has tau 0.50 over 12 networks, no better than macs (0.50). Networks are "
            "judged by short training alone.",
        ),
        # Of few networks there is no predictor, and nothing is said of one.
        (
            {"supernet": -0.1, "macs": -0.5},
            "The supernet cannot be trusted here: it has tau -0.10 over 12 networks, which is no "
            "agreement. Networks are judged by short training alone.",
        ),
    ],
)
def test_the_verdict_says_why(taus: dict[str, float | None], verdict: str) -> None:
    assert choose_estimator(scores(**taus))[1] == verdict


def test_of_trainings_of_two_lengths_those_of_the_last_are_compared() -> None:
    """A run that got more budget may rank on a longer rung than before."""
    trials = [
        trial(1, correct=120, origin="trust", fidelity="train-1e"),
        trial(2, correct=130, origin="trust", fidelity="train-1e"),
        trial(2, correct=160, origin="trust"),
        trial(3, correct=170, origin="trust"),
        *(trial(n, correct=100 + n, fidelity="supernet") for n in (1, 2, 3)),
    ]
    assert [(p.id, p.top1) for p in trust_points(trials)] == [(2, 80.0), (3, 85.0)]
    one = [*trials[:2], trials[2], *trials[4:]]
    assert [(p.id, p.top1) for p in trust_points(one)] == [(2, 80.0)]


def test_without_a_score_no_network_has_told_anything() -> None:
    judge, words = choose_score([])
    assert judge == "training"
    assert words.startswith("0 networks trained alone are too few")
    judge, words = choose_score([found("predictor", 0.9), found("nwot", 0.9, num_points=3)])
    assert words.startswith("3 networks")


def test_a_network_has_no_scores_unless_they_are_given() -> None:
    fields = {field.name: field for field in dataclasses.fields(TrustPoint)}
    assert fields["proxies"].default_factory() == {}  # type: ignore[misc]
