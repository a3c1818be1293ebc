"""What the report says of its own estimates is true of the numbers beside it."""

from __future__ import annotations

import pytest

from search.grafting import KL
from search.report.findings import horizon_content, trust_content
from search.results import HeldOut, LaterOrder
from search.trust import HorizonReport, KendallTau, TrustReport
from search.trust.horizon import RungOrder
from search.trust.ranking import EstimatorTrust, TrustPoint
from tests.tiny_trials import network

HELD_OUT = HeldOut(num_curves=6, epochs=20, error=1.5, last_error=6.0, covered=1.0)
ORDER = LaterOrder(num_pairs=3, expected_turns=2.0, best_stays=0.3)


def tau(value: float | None, low: float | None = None, high: float | None = None) -> KendallTau:
    return KendallTau(tau=value, low=low, high=high, num_points=8)


def test_a_length_at_which_all_are_equal_hides_no_sentence() -> None:
    """After an epoch all may be at chance: there is no tau, and what else is known is said."""
    report = HorizonReport(
        longest=20,
        recipe_epochs=80,
        num_kinds=3,
        is_of_all=True,
        rungs=(
            RungOrder(epochs=1, tau=tau(None)),
            RungOrder(epochs=3, tau=tau(0.5, 0.1, 0.9)),
        ),
        held_out=HELD_OUT,
        order=ORDER,
    )

    content = horizon_content(report)

    assert content is not None
    forecasts, order = content["sentences"]
    assert forecasts.startswith("Forecasts of 6 trainings of 20 epochs that were held out")
    assert order.startswith("The order of this front is likely to turn")
    assert content["rows"][0][1:3] == ("undefined", "all values are equal")


def warning(**taus: KendallTau) -> str:
    names = {"kl": KL, "nwot": "nwot"}
    point = TrustPoint(id=1, top1=50, supernet=50, params=1, macs=1, architecture=network(1))
    report = TrustReport(
        points=(point,) * 8,
        estimators=tuple(
            EstimatorTrust(name=names.get(name, name), tau=one, top_tau=one, estimates=(1.0,) * 8)
            for name, one in taus.items()
        ),
        chosen="supernet",
        verdict="",
    )
    content = trust_content(report)
    assert content is not None
    return str(content["warning"])


GOOD, BETTER, POOR = tau(0.5, 0.2, 0.8), tau(0.6, 0.3, 0.9), tau(0.1, -0.3, 0.5)


def test_inherited_weights_that_rank_no_better_than_size_are_warned_of() -> None:
    assert "no better than their size does" in warning(supernet=GOOD, params=POOR, macs=BETTER)
    assert "no better than their size does" in warning(supernet=tau(None), params=POOR)
    assert warning(supernet=BETTER, params=GOOD, macs=POOR) == ""


def test_what_is_better_than_inherited_weights_is_named() -> None:
    """A score that is better is no size; a predictor has learned from trainings."""
    said = warning(supernet=GOOD, nwot=BETTER, params=POOR, macs=POOR)
    assert "no better than nwot does" in said
    assert "size" not in said
    assert warning(supernet=GOOD, predictor=BETTER, params=POOR, macs=POOR) == ""


def test_a_graft_has_no_inherited_weights() -> None:
    assert warning(supernet=GOOD, kl=BETTER, params=POOR, macs=POOR) == ""


@pytest.mark.parametrize(("high", "is_said"), [(0.4, True), (-0.1, False)])
def test_an_interval_includes_zero_only_where_it_does(high: float, is_said: bool) -> None:
    worse = tau(-0.9, -1.0, -0.8)
    said = warning(supernet=tau(-0.3, -0.6, high), params=worse, macs=worse)
    assert ("includes 0" in said) == is_said
