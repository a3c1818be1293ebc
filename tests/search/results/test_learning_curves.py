"""Forecasts of longer trainings, on curves whose truth is known because it was drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import kendalltau

from search.results import learning_curves
from search.results.certainty import order_after
from search.results.learning_curves import (
    Curve,
    CurveModel,
    Point,
    curves_of,
    forecast_held_out,
    forecasts,
)
from tests.tiny_trials import trial

IMAGES, RECIPE = 2_000, 80


def drawn(
    seed: int, *, number: int = 16, lengths: tuple[int, ...] = (3, 10, 20)
) -> tuple[dict[int, Curve], dict[int, float]]:
    """Draw power laws with floors; return curves of some trainings, and the truth of the recipe.

    Every second network has the shorter trainings alone.
    """
    rng = np.random.default_rng(seed)
    curves, truth = {}, {}
    for network in range(number):
        level, slope = rng.uniform(0.1, 0.4), rng.uniform(0.4, 0.8)
        floor = rng.uniform(0.1, 0.3)

        def error(
            epochs: int, level: float = level, slope: float = slope, floor: float = floor
        ) -> float:
            return min(level * (floor + (1 - floor) * (epochs / 10) ** -slope), 0.9)

        own = lengths if network % 2 else lengths[:-1]
        wrong = {epochs: rng.binomial(IMAGES, error(epochs)) for epochs in own}
        curves[network] = tuple(Point(e, 100 * (1 - w / IMAGES), IMAGES) for e, w in wrong.items())
        truth[network] = 100 * (1 - error(RECIPE))
    return curves, truth


def test_forecasts_are_nearer_to_the_truth_than_the_last_value() -> None:
    """And their 95 % intervals have it about as often as they say."""
    off, last_off, inside = [], [], []
    for seed in range(6):
        curves, truth = drawn(seed)
        found = forecasts(curves, epochs=RECIPE)
        off += [abs(found[n].top1 - truth[n]) for n in truth]
        last_off += [abs(curves[n][-1].top1 - truth[n]) for n in truth]
        inside += [found[n].low <= truth[n] <= found[n].high for n in truth]
    assert np.mean(off) < np.mean(last_off) / 2
    assert np.mean(inside) > 0.88


def test_a_forecast_does_not_hang_on_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where trainings are long and judged on many images, few draws are near a curve."""
    rng = np.random.default_rng(1)
    curves = []
    for _ in range(8):
        level, slope, floor = rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.8), rng.uniform(0.2, 0.7)
        errors = {e: level * (floor + (1 - floor) * (e / 3) ** -slope) for e in (3, 9, 75)}
        noise = {e: 100 * rng.normal(0, 0.01) for e in errors}
        curves.append(tuple(Point(e, 100 - 100 * errors[e] + noise[e], 1e4) for e in errors))
    found = []
    number = learning_curves.NUM_DRAWS
    for times in (1, 2, 3):
        monkeypatch.setattr(learning_curves, "NUM_DRAWS", times * number)
        model = CurveModel(curves)
        found.append([model.forecast(curve, 300) for curve in curves])
    for several in zip(*found, strict=True):
        deviation = several[0].deviation
        for ends in ("top1", "low", "high"):
            values = [getattr(one, ends) for one in several]
            assert max(values) - min(values) < 0.6 * deviation


def test_a_network_of_one_training_borrows_the_slope_of_the_others() -> None:
    curves, _ = drawn(1)
    steep = {n: (Point(10, 60.0, 1e6), Point(20, 80.0, 1e6)) for n in range(30)}
    single = (Point(10, 60.0, 1e6),)

    of_steep = CurveModel(list(steep.values())).forecast(single, 20)

    assert of_steep.top1 == pytest.approx(80, abs=1.5)
    assert CurveModel(list(curves.values())).forecast(single, 20).top1 < 78


def test_a_forecast_far_ahead_is_less_sure() -> None:
    curves, _ = drawn(2)
    model = CurveModel(list(curves.values()))
    near, far = (model.forecast(curves[0], epochs) for epochs in (15, 150))
    assert near.high - near.low < far.high - far.low
    assert near.low <= near.top1 <= near.high


def test_nothing_is_forecast_from_too_few_curves_or_too_short_ones() -> None:
    curves, _ = drawn(3)
    several = {n: c for n, c in curves.items() if n < 4}
    assert forecasts(several, epochs=RECIPE) == {}
    single = {n: c[:1] for n, c in curves.items()}
    assert forecasts(single, epochs=RECIPE) == {}
    short = {n: c[:2] for n, c in curves.items()}  # 10 of 80 epochs
    assert forecasts(short, epochs=RECIPE) == {}
    assert set(forecasts(curves, epochs=RECIPE, of=[1, 2, 99])) == {1, 2}


def test_held_out_trainings_are_forecast_without_having_been_seen() -> None:
    curves, _ = drawn(4)
    found = forecast_held_out(curves.values())
    assert found is not None
    longest = [curve for curve in curves.values() if curve[-1].epochs == 20]
    last = [abs(curve[-1].top1 - curve[-2].top1) for curve in longest]
    assert (found.num_curves, found.epochs) == (len(longest), 20)
    assert found.last_error == pytest.approx(np.mean(last))
    assert found.error < found.last_error
    truths = [curve[-1].top1 for curve in longest]
    seen = [curve[-2].top1 for curve in longest]
    assert found.last_tau == pytest.approx(kendalltau(seen, truths).statistic)
    assert -1 <= found.tau <= 1
    # Of a curve that is hidden nothing of its end is known: one that breaks off is forecast badly.
    broken = {**curves, 1: (*curves[1][:-1], Point(20, 5.0, IMAGES))}
    worse = forecast_held_out(broken.values())
    assert worse is not None
    assert worse.error > found.error + 80 / found.num_curves / 2
    assert forecast_held_out([*curves.values()][:5]) is None


def test_a_curve_has_the_trainings_alone_on_all_images() -> None:
    trials = [
        trial(1, correct=120, fidelity="train-10e"),
        trial(1, correct=140, fidelity="train-10e", seed=1),
        trial(1, correct=100, fidelity="train-3e"),
        trial(1, correct=150, fidelity="train-3e-of-25%"),
        trial(1, correct=150, fidelity="supernet"),
        trial(1, correct=180, fidelity="retrain-micro-30e"),
        trial(2, correct=10, fidelity="train-3e", state="failed"),
    ]
    assert curves_of(trials) == {1: (Point(3, 50.0, 200), Point(10, 65.0, 200))}


def test_neighbours_change_places_as_often_as_their_difference_is_below_zero() -> None:
    now, later = np.array([90.0, 80.0, 85.0]), np.array([91.0, 88.0, 90.0])
    found = order_after(now, later=later, deviations=np.array([1.0, 2.0, 0.5]))

    def below(mean: float, deviation: float) -> float:
        return 0.5 * (1 + math.erf(-mean / deviation / math.sqrt(2)))

    expected = below(91 - 90, math.hypot(1, 0.5)) + below(90 - 88, math.hypot(0.5, 2))
    assert found.num_pairs == 2
    assert found.expected_turns == pytest.approx(expected, abs=0.05)
    assert found.best_stays == pytest.approx(1 - below(1, math.hypot(1, 0.5)) - 0.06, abs=0.07)
    assert not order_after(now, later=now, deviations=np.full(3, 0.1)).is_likely_to_turn
    assert order_after(now, later=now[::-1], deviations=np.full(3, 0.1)).is_likely_to_turn
