"""What a graft judges by: the best of its own estimates, if it beats all that need no parts."""

from __future__ import annotations

import pytest

from search.grafting import KL, PAIRS, SUM
from search.results import SUPERNET
from search.trust.ranking import EstimatorTrust, KendallTau, choose_estimator


def estimator(name: str, tau: float, number: int = 9) -> EstimatorTrust:
    found = KendallTau(tau=tau, low=tau - 0.1, high=tau + 0.1, num_points=number)
    return EstimatorTrust(name=name, tau=found, top_tau=found, estimates=())


@pytest.mark.parametrize(
    ("taus", "expected"),
    [
        ({SUM: 0.8, PAIRS: 0.7, SUPERNET: 0.6, "macs": 0.5, "nwot": 0.2}, SUM),
        ({SUM: 0.7, PAIRS: 0.8, SUPERNET: 0.6, "macs": 0.5, "nwot": 0.2}, PAIRS),
        ({SUM: 0.5, PAIRS: 0.5, SUPERNET: 0.6, "macs": 0.4, "nwot": 0.2}, SUPERNET),
        ({SUM: 0.6, PAIRS: 0.5, KL: 0.8, SUPERNET: 0.7, "macs": 0.4, "nwot": 0.2}, KL),
        # What needs no parts ranks as well, or nothing agrees.
        ({SUM: 0.6, PAIRS: 0.5, SUPERNET: 0.6, "macs": 0.6, "nwot": 0.2}, "training"),
        ({SUM: 0.6, PAIRS: 0.5, SUPERNET: 0.6, "macs": 0.1, "nwot": 0.75}, "training"),
        # A score of untrained networks that is ahead by noise is no reason to doubt; costs are one.
        ({SUM: 0.6, PAIRS: 0.5, SUPERNET: 0.6, "macs": 0.1, "nwot": 0.65}, SUM),
        ({SUM: 0.9, PAIRS: 0.9, KL: 0.8, SUPERNET: 0.8, "macs": 0.4, "nwot": 0.9}, SUM),
        ({SUM: 0.9, PAIRS: 0.9, SUPERNET: 0.8, "params": 0.9, "macs": 0.4}, "training"),
        ({SUM: -0.2, PAIRS: -0.3, SUPERNET: -0.1, "macs": -0.5}, "training"),
        # Of one part nothing is known, so that there are no sums.
        ({KL: 0.8, SUPERNET: 0.7, "macs": 0.4, "predictor": 0.9}, KL),
        # A predictor is no rival: it has learned from the healed networks.
        ({SUM: 0.6, PAIRS: 0.5, SUPERNET: 0.4, "macs": 0.1, "predictor": 0.9}, SUM),
    ],
)
def test_the_best_of_its_own_estimates_is_taken_where_it_wins(
    taus: dict[str, float], expected: str
) -> None:
    chosen, verdict = choose_estimator([estimator(name, tau) for name, tau in taus.items()])
    assert chosen == expected
    assert "9 healed networks" in verdict


def test_of_few_networks_nothing_is_believed() -> None:
    taus = {SUM: 0.9, PAIRS: 0.9, SUPERNET: -0.9, "macs": -0.9}
    chosen, verdict = choose_estimator([estimator(name, tau, 4) for name, tau in taus.items()])
    assert chosen == SUPERNET
    assert "too few" in verdict
