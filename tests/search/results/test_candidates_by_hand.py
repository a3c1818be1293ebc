"""What is told of a candidate, by hand: intervals, means, limits, the order of fidelities."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from search.record import Measured
from search.results.candidates import (
    candidates,
    front,
    judged_at,
    retrained,
    searched_fidelities,
    wilson_interval,
)
from search.results.fidelity import order_fidelities
from tests.tiny_trials import trial


def test_the_spread_is_read_from_students_t() -> None:
    for freedom in range(1, 60):
        expected = stats.t.ppf(0.975, freedom)
        trials = [
            trial(1, correct=100 + 10 * (seed % 2), total=10**6, seed=seed)
            for seed in range(freedom + 1)
        ]
        (found,) = candidates(trials, fidelity="train-3e")
        values = [t.measured.top1 for t in trials]
        half = expected * np.std(values, ddof=1) / math.sqrt(len(values))
        image_half = found.top1 - wilson_interval(found.top1 * 1e4, 10**6)[0]
        assert found.top1 - found.low == pytest.approx(
            min(math.hypot(half, image_half), found.top1), rel=0.012
        )


def test_parameters_and_macs_are_weighed_where_nothing_is_said() -> None:
    base = trial(1, correct=100)
    small = replace(base, architecture_id=2, key="b", macs=base.macs + 1, params=base.params - 1)
    large = replace(base, architecture_id=3, key="c", macs=base.macs + 1, params=base.params)
    for found in (
        candidates([base, small, large], fidelity="train-3e"),
        judged_at([base, small, large]),
    ):
        assert [c.on_front for c in found] == [True, True, False]
    assert [c.id for c in front([base, small, large])] == [1, 2]


def test_costs_are_averaged_over_the_trials_that_measured_them() -> None:
    trials = [
        trial(1, correct=100, seed=0, latency_ms=2.0),
        trial(1, correct=110, seed=1, latency_ms=4.0),
        trial(1, correct=120, seed=2),
    ]
    (found,) = candidates(trials, fidelity="train-3e")
    assert (found.latency_ms, found.memory_mib) == (3.0, None)
    assert found.top1 == pytest.approx(55.0)


def test_limits_leave_the_front_of_what_is_within_them() -> None:
    trials = [
        trial(n, correct=100 + 10 * n, latency_ms=float(n) if n != 2 else None) for n in range(1, 6)
    ]
    found = judged_at(trials, objectives=("top1", "macs"), limits={"latency_ms": 3.0})
    assert [c.id for c in found] == [1, 3]  # the second was not measured
    assert all(c.on_front for c in found)
    with pytest.raises(ValueError, match=r"None of the 5 networks .* latency_ms 1. Allow more"):
        judged_at(trials, limits={"latency_ms": 0.5})


def test_a_limit_that_is_no_whole_number_is_said_as_it_is() -> None:
    trials = [trial(n, correct=100, latency_ms=0.30123 * n) for n in (1, 2)]
    # What is said to be the least is enough when it is asked for.
    with pytest.raises(ValueError, match=r"latency_ms <= 0\.25; the least is latency_ms 0\.302\."):
        judged_at(trials, limits={"latency_ms": 0.25})
    assert [c.id for c in judged_at(trials, limits={"latency_ms": 0.302})] == [1]


def test_fidelities_stand_in_the_order_of_their_price() -> None:
    names = ["zero-cost", "train-3e", "supernet", "retrain-micro-9e", "train-10e", "train-1e"]
    assert order_fidelities(names) == (
        *("retrain-micro-9e", "train-10e", "train-3e", "train-1e", "supernet", "zero-cost"),
    )
    trials = [trial(1, correct=1, fidelity=name) for name in names]
    failed = trial(1, correct=1, fidelity="train-99e", state="failed")
    assert searched_fidelities([*trials, failed]) == (
        *("train-10e", "train-3e", "train-1e", "supernet"),
    )


def test_what_is_beaten_beyond_noise_is_not_near_the_front() -> None:
    # Of 200 images: 150 against 149 is noise; against 100 it is not; dearer and equal is near.
    best, noise, beaten = (trial(n, correct=c) for n, c in ((1, 150), (2, 149), (3, 100)))
    found = candidates([best, noise, beaten], fidelity="train-3e", objectives=("top1", "macs"))
    assert [(c.on_front, c.near_front) for c in found] == [
        *((True, False), (False, True), (False, False)),
    ]
    # By hand for the border (Newcombe's tenth method): a member's lower, a rival's upper arm.
    for correct in range(110, 150):
        low, _ = wilson_interval(150, 200)
        _, high = wilson_interval(correct, 200)
        noise_width = math.hypot(75 - low, high - correct / 2)
        (_, rival) = candidates(
            [best, trial(2, correct=correct)], fidelity="train-3e", objectives=("top1", "macs")
        )
        assert rival.near_front == (75 - correct / 2 <= noise_width)


def test_a_retraining_is_no_result_of_the_search() -> None:
    trials = [
        trial(1, correct=10, fidelity="retrain-a-1e", origin="retrain"),
        trial(1, correct=20, fidelity="retrain-b-1e", origin="retrain", state="failed"),
        trial(1, correct=30, fidelity="train-1e"),
    ]
    assert [(c.fidelity, c.id) for c in retrained(trials)] == [("retrain-a-1e", 1)]


def test_an_accuracy_is_worth_the_images_that_its_variance_is_of() -> None:
    """Between seeds and between images: variances add up, and fewer images have as much."""
    for corrects, total in (((3, 9, 6), 10), ((150, 160), 200), ((0, 1), 4)):
        trials = [
            trial(1, correct=correct, total=total, seed=seed)
            for seed, correct in enumerate(corrects)
        ]
        (found,) = candidates(trials, fidelity="train-3e")
        top1s = [100 * correct / total for correct in corrects]
        share = (np.mean(corrects) + 0.5) / (total + 1)  # Jeffreys' mean
        by_images = 1e4 * share * (1 - share) / total
        half = stats.t.ppf(0.975, len(corrects) - 1) * np.std(top1s, ddof=1)
        by_seeds = (half / math.sqrt(len(corrects)) / stats.norm.ppf(0.975)) ** 2
        expected = total * by_images / (by_images + by_seeds)
        assert found.images == pytest.approx(expected, rel=1e-4)


def test_what_seeds_share_and_what_they_measured_is_told_as_it_is() -> None:
    ends = Measured(latency_low_ms=1.0, latency_high_ms=5.0, memory_mib=8.0)
    more = Measured(latency_low_ms=2.0, latency_high_ms=8.0, memory_mib=10.0)
    first = trial(4, correct=100, seed=0, latency_ms=2.0)
    first = replace(first, measured=first.measured | ends)
    second = trial(4, correct=120, seed=1, latency_ms=4.0)
    trials = [first, replace(second, measured=second.measured | more)]
    (found,) = candidates(trials, fidelity="train-3e")
    assert (found.id, found.key, found.architecture) == (4, first.key, first.architecture)
    assert (found.fidelity, found.num_seeds) == ("train-3e", 2)
    assert (found.params, found.macs) == (first.params, first.macs)
    assert (found.latency_ms, found.latency_low_ms, found.latency_high_ms) == (3.0, 1.5, 6.5)
    assert found.memory_mib == 9.0
    assert found.measure == "top1"


def test_an_miou_is_worth_the_images_of_an_accuracy_with_its_variance() -> None:
    values = Measured(miou=60.0, miou_low=52.0, miou_high=70.0, total=40.0)
    one = replace(trial(1, correct=1), measured=values)
    (found,) = candidates([one], fidelity="train-3e")
    deviation = (70.0 - 52.0) / 2 / stats.norm.ppf(0.975)  # of the interval, in percent
    assert found.images == pytest.approx(1e4 * 0.6 * 0.4 / deviation**2, rel=1e-6)
    assert (found.low, found.high, found.top1) == (52.0, 70.0, 60.0)
    assert found.measure == "miou"
