"""Did mixing pay? By definition: the best mix that costs no more, and the interval between them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from search.record import Trial
from search.results import best_singles, candidates, mixing_gains, singles_to_promote
from search.results.candidates import Candidate
from search.results.intervals import wilson_interval
from searchspace.architecture import Architecture, Stage
from searchspace.mixers import DepthwiseConv
from tests.tiny_trials import network, trial

IMAGES = 200


def single(number: int, *, correct: int, macs: int) -> Trial:
    """Return a trial of a network of one mixer, with made-up MACs."""
    stages = (Stage(dim=8 * number, mixers=(DepthwiseConv(kernel_size=3),)),)
    architecture = Architecture(img_size=16, patch_size=2, num_classes=10, stages=stages)
    named = {"architecture_id": 50 + number, "key": architecture.key, "macs": macs}
    return replace(trial(number, correct=correct), architecture=architecture, **named)  # type: ignore[arg-type]


def mix(number: int, *, correct: int, macs: int) -> Trial:
    return replace(trial(number, correct=correct), macs=macs)


def judged(*trials: Trial) -> tuple[Candidate, ...]:
    return candidates(trials, fidelity="train-3e", objectives=("top1", "macs"))


def test_each_single_mixer_is_compared_with_the_best_mix_that_costs_no_more() -> None:
    found = judged(
        single(1, correct=100, macs=100),
        single(2, correct=90, macs=150),  # dearer and worse: what nobody would draw
        single(3, correct=150, macs=300),
        mix(1, correct=95, macs=80),
        mix(2, correct=110, macs=100),
        mix(3, correct=140, macs=299),
        mix(4, correct=190, macs=301),
    )
    assert [one.id for one in best_singles(found)] == [51, 53]
    cheap, dear = mixing_gains(found)
    assert cheap.mixed is not None
    assert dear.mixed is not None
    assert (cheap.mixed.id, dear.mixed.id) == (2, 3)
    assert dear.difference == pytest.approx(100 * (140 - 150) / IMAGES)
    # Newcombe 1998, method 10.
    (low_mix, high_mix), (low_one, high_one) = (wilson_interval(n, IMAGES) for n in (140, 150))
    assert dear.low == pytest.approx(-5 - math.hypot(70 - low_mix, high_one - 75))
    assert dear.high == pytest.approx(-5 + math.hypot(high_mix - 70, 75 - low_one))


@pytest.mark.parametrize(
    ("correct", "verdict"),
    [(195, "Mixing paid"), (105, "within noise"), (20, "Mixing did not pay")],
)
def test_the_verdict_is_that_of_the_interval(correct: int, verdict: str) -> None:
    *_, gain = mixing_gains(
        judged(single(1, correct=100, macs=100), mix(1, correct=correct, macs=50))
    )
    assert verdict in gain.sentence()
    assert "at 50 % of its MACs" in gain.sentence()


def test_without_a_mix_as_cheap_nothing_is_known() -> None:
    (gain,) = mixing_gains(judged(single(1, correct=100, macs=100), mix(1, correct=150, macs=101)))
    assert gain.mixed is None
    assert "not known" in gain.sentence()
    assert mixing_gains(judged(mix(1, correct=150, macs=101))) == ()


def test_a_quarter_of_the_promoted_are_single_mixers_spread_over_costs() -> None:
    trials = [single(n, correct=50 + 10 * n, macs=100 * n) for n in range(1, 8)]
    trials += [mix(n, correct=100, macs=100) for n in range(1, 4)]

    def chosen(num_promoted: int) -> list[int]:
        found = singles_to_promote(trials, fidelity="train-3e", num_promoted=num_promoted)
        return [one.stages[0].dim // 8 for one in found]

    # What is beyond a limit is not promoted, however accurate.
    within = singles_to_promote(trials, fidelity="train-3e", num_promoted=8, limits={"macs": 500.0})
    assert [one.stages[0].dim // 8 for one in within] == [5, 1]
    assert chosen(3) == []
    assert chosen(7) == [7]  # the most accurate
    assert chosen(8) == [7, 1]
    assert chosen(100) == [7, 5, 3, 1]
    assert network(1).key not in {
        one.key for one in singles_to_promote(trials, fidelity="train-3e", num_promoted=99)
    }
