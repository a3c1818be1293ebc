"""The horizon: how the order at each length agrees with that at the longest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kendalltau

from search.record import Trial
from search.results import HeldOut, LaterOrder
from search.trust.horizon import (
    HorizonReport,
    describe_held_out,
    horizon_report,
    promotion_forecast,
)
from tests.tiny_trials import trial

AFTER_3 = (60, 80, 70, 110, 100, 90)
AFTER_10 = (90, 110, 120, 150, 130, 140)
AFTER_20 = (150, 120, 130, 170, 140, 160)


def trials(origin: str = "horizon") -> list[Trial]:
    ends = ((3, AFTER_3, origin), (10, AFTER_10, "trust"), (20, AFTER_20, origin))
    return [
        trial(number, correct=correct, fidelity=f"train-{epochs}e", origin=phase)
        for epochs, end, phase in ends
        for number, correct in enumerate(end)
    ]


def report_of(found: list[Trial], order: LaterOrder | None = None) -> HorizonReport | None:
    return horizon_report(found, recipe_epochs=80, order=order, rng=np.random.default_rng(0))


def test_each_length_is_compared_with_the_longest() -> None:
    report = report_of(trials())
    assert report is not None
    assert (report.longest, report.num_kinds, report.is_of_all) == (20, 3, True)
    assert [rung.epochs for rung in report.rungs] == [3, 10]
    for rung, end in zip(report.rungs, (AFTER_3, AFTER_10), strict=True):
        assert rung.tau.tau == pytest.approx(kendalltau(end, AFTER_20).statistic)
        assert rung.tau.num_points == 6


def test_networks_that_shorter_trainings_chose_are_said_to_be_such() -> None:
    report = report_of(trials(origin="promote"))
    assert report is not None
    assert not report.is_of_all
    assert "which shorter trainings had chosen" in next(report.sentences())


def test_networks_of_which_some_were_promoted_are_not_said_to_be_unchosen() -> None:
    promoted = trial(7, correct=190, fidelity="train-20e", origin="promote")
    report = report_of([*trials(), promoted])
    assert report is not None
    assert not report.is_of_all


def test_one_training_that_was_held_out_is_not_several() -> None:
    found = HeldOut(num_curves=1, epochs=40, error=2.0, last_error=9.0, covered=1.0)
    assert describe_held_out(found).startswith("Forecasts of 1 training of 40 epochs that was held")


def test_a_length_of_too_few_networks_is_not_the_longest() -> None:
    alone = trial(1, correct=199, fidelity="train-40e")
    report = report_of([*trials(), alone])
    assert report is not None
    assert report.longest == 20
    assert report_of(trials()[:6]) is None  # one length
    assert report_of([t for t in trials() if t.architecture_id < 4]) is None


@pytest.mark.parametrize(("turns", "word"), [(1.5, "turn by"), (0.1, "last until")])
def test_a_front_whose_order_is_likely_to_turn_is_said_to_be_such(turns: float, word: str) -> None:
    order = LaterOrder(num_pairs=4, expected_turns=turns, best_stays=0.8)
    report = report_of(trials(), order)
    assert report is not None
    *_, last = report.sentences()
    assert f"likely to {word} the recipe's 80 epochs: of its 4 pairs of neighbours" in last


IMAGES = 2_000


def curve(number: int, *, level: float, slope: float, lengths: Sequence[int]) -> list[Trial]:
    """Return trainings whose errors are a power law."""
    return [
        trial(
            number,
            correct=round(IMAGES * (1 - level * (epochs / 3) ** -slope)),
            total=IMAGES,
            fidelity=f"train-{epochs}e",
            origin="trust" if epochs == 10 else "horizon",
        )
        for epochs in lengths
    ]


def slow_and_quick(slope: float, lengths: Sequence[int] = (3, 10, 20)) -> list[Trial]:
    """Return six slow learners, which end at this slope, and six quick ones."""
    found = []
    for number in range(1, 13):
        share = 1 + 0.01 * number
        level, own = (0.75, slope) if number % 2 else (0.5, 0.2)
        found += curve(number, level=share * level, slope=own, lengths=lengths)
    return found


def test_promotion_goes_by_forecasts_only_where_they_rank_better() -> None:
    # After 10 epochs the quick ones are ahead, after 20 the slow ones are.
    trials = slow_and_quick(0.45)
    forecast = promotion_forecast(trials, recipe_epochs=80)
    assert forecast is not None
    slow = curve(20, level=0.75, slope=0.45, lengths=(3, 10))
    quick = curve(21, level=0.5, slope=0.2, lengths=(3, 10))
    assert slow[-1].measured.top1 < quick[-1].measured.top1
    assert forecast(slow) > forecast(quick)
    # An order that stays needs no forecast.
    assert promotion_forecast(slow_and_quick(0.2), recipe_epochs=80) is None
    # A recipe that is far longer than what was trained is not foretold: nobody knows that order.
    assert promotion_forecast(trials, recipe_epochs=90) is not None
    assert promotion_forecast(trials, recipe_epochs=91) is None
    # What promotions have chosen says nothing.
    promoted = [replace(one, origin="promote") for one in trials]
    assert promotion_forecast(promoted, recipe_epochs=80) is None
