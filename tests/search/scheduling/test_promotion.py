"""Laws of promotion: the front first, never twice, spread out inside a rank."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.record import Measured
from search.record.record import Record, State, Trial
from search.results.objectives import losses_of, parse_objectives
from search.scheduling.promotion import Promotions
from searchspace.architecture import Architecture, Stage
from searchspace.mixers import DepthwiseConv
from tests.tiny_trials import trial


def architecture(dim: int) -> Architecture:
    stage = Stage(dim=dim, mixers=(DepthwiseConv(kernel_size=3),))
    return Architecture(img_size=8, patch_size=2, num_classes=2, stages=(stage,))


def judged(tmp_path: Path, points: list[tuple[float, int]]) -> tuple[Trial, ...]:
    """Record networks of given top1 and MACs at the fidelity ``supernet``."""
    with Record.create(tmp_path / "record.db") as record:
        for index, (top1, macs) in enumerate(points):
            number = record.add_architecture(architecture(8 + index), params=1, macs=macs)
            trial = record.add_trial(number, fidelity="supernet", seed=0, origin="search")
            attempt = record.start_attempt("search", devices=0, trial_id=trial)
            values = Measured(top1=top1, correct=top1, total=100)
            record.finish_attempt(attempt, outcome="done", measured=values)
        return record.trials()


def promoted_in_turn(trials: tuple[Trial, ...]) -> list[int]:
    """Promote from the base until nothing is left; return indices in the order of promotion."""
    promotions = Promotions(
        trials, base="supernet", rungs=["train-2e"], objectives=("top1", "macs")
    )
    keys = [trial.key for trial in trials]
    order = []
    while (chosen := promotions.next()) is not None:
        order.append(keys.index(chosen[0].key))
    return order


def test_the_front_is_promoted_before_what_it_dominates(tmp_path: Path) -> None:
    trials = judged(tmp_path, [(50, 10), (40, 20), (60, 30), (30, 30)])
    assert promoted_in_turn(trials) == [0, 2, 1, 3]


def test_inside_a_rank_the_ends_come_before_the_crowd(tmp_path: Path) -> None:
    trials = judged(tmp_path, [(50, 10), (51, 11), (52, 12), (90, 100)])
    assert set(promoted_in_turn(trials)[:2]) == {0, 3}


def test_losses_fall_with_accuracy_and_rise_with_cost(tmp_path: Path) -> None:
    (trial,) = judged(tmp_path, [(75, 2_000_000)])
    assert losses_of(trial, ("top1", "macs")) == (25.0, 2.0)


BASE, LOW, MIDDLE, HIGH = "supernet", "train-1e", "train-3e", "train-9e"


def trial_of(index: int, fidelity: str, *, top1: float, state: State = "done") -> Trial:
    """Make a trial of network ``index``; it costs more MACs the larger the index."""
    network = architecture(8 + 4 * index)
    done = state == "done"
    return Trial(
        id=index,
        architecture_id=index,
        key=network.key,
        architecture=network,
        params=1,
        macs=1_000_000,
        fidelity=fidelity,
        seed=0,
        origin="search",
        state=state,
        measured=Measured(top1=top1, correct=top1, total=100.0) if done else Measured(),
        cause=None if done else "stopped",
        seconds=1.0,
        num_attempts=1,
        finished=None,
    )


def ladder(trials: list[Trial], base: str | None = BASE) -> Promotions:
    return Promotions(
        trials, base=base, rungs=[LOW, MIDDLE, HIGH], objectives=("top1", "macs"), eta=3
    )


def test_a_rung_is_climbed_when_it_holds_eta_times_as_many_and_no_device_waits_before() -> None:
    judged = [trial_of(index, BASE, top1=index) for index in range(12)]
    promotions, climbed = ladder(judged), []
    for _ in range(9):
        chosen = promotions.next()
        assert chosen is not None
        network, rung = chosen
        climbed.append(rung)
        index = [trial.key for trial in judged].index(network.key)
        promotions.note(trial_of(index, rung, top1=index))
    assert climbed == [LOW, LOW, LOW, MIDDLE, LOW, LOW, LOW, MIDDLE, LOW]


def test_the_best_of_those_that_finished_on_a_rung_goes_up() -> None:
    finished = [trial_of(index, LOW, top1=top1) for index, top1 in enumerate([30, 80, 50])]
    chosen = ladder(finished).next()
    assert chosen == (finished[1].architecture, MIDDLE)


def test_trials_that_were_stopped_or_failed_are_in_no_order() -> None:
    stopped = [trial_of(i, LOW, top1=0, state="waiting") for i in range(2)]
    failed = [trial_of(i, LOW, top1=0, state="failed") for i in range(2, 4)]
    finished = [trial_of(i, LOW, top1=10 * i) for i in range(4, 6)]
    promotions = ladder([*stopped, *failed, *finished], base=None)
    assert promotions.next() is None  # two have finished, and three are needed
    promotions.note(trial_of(0, LOW, top1=5))
    assert promotions.next() == (finished[1].architecture, MIDDLE)


def test_accuracies_of_different_fidelities_are_never_compared() -> None:
    misleading = [trial_of(index, BASE, top1=99 - index) for index in range(3)]
    trained = [trial_of(index, LOW, top1=10 * index) for index in range(3)]
    promotions = ladder([*misleading, *trained])
    assert promotions.next() == (trained[2].architecture, MIDDLE)


def test_what_was_trained_on_a_rung_does_not_enter_one_below() -> None:
    judged = [trial_of(index, BASE, top1=index) for index in range(2)]
    promotions = ladder([*judged, trial_of(1, HIGH, top1=50)])
    assert promotions.next() == (judged[0].architecture, LOW)
    assert promotions.next() is None


def test_once_the_base_has_no_more_the_best_go_up_beyond_the_share_of_their_rung() -> None:
    judged = [trial_of(index, BASE, top1=index) for index in range(4)]
    promotions, climbed = ladder(judged), []
    while (chosen := promotions.next()) is not None:
        network, rung = chosen
        index = [trial.key for trial in judged].index(network.key)
        climbed.append((index, rung))
        promotions.note(trial_of(index, rung, top1=index))
    # One of three by the rule; then the best there is, as high as it can go, and none is left out.
    assert climbed == [
        *[(3, LOW), (2, LOW), (1, LOW), (3, MIDDLE), (0, LOW), (3, HIGH)],
        *[(2, MIDDLE), (2, HIGH), (1, MIDDLE), (1, HIGH), (0, MIDDLE), (0, HIGH)],
    ]


def test_two_rungs_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="different ones"):
        Promotions([], base=BASE, rungs=[LOW, LOW], objectives=("top1", "macs"))


def test_without_a_base_the_best_third_of_the_lowest_rung_goes_up() -> None:
    trials = [trial(n, correct=100 - n, fidelity="train-1e") for n in range(1, 8)]
    promotions = Promotions(
        trials, base=None, rungs=["train-1e", "train-3e"], objectives=("top1", "params")
    )
    chosen = []
    while (found := promotions.next()) is not None:
        chosen.append(found)
    # Network 1 is the smallest and the most accurate, then comes 2, and 7 // 3 places are free.
    assert [(a.key, rung) for a, rung in chosen] == [(t.key, "train-3e") for t in trials[:2]]


def test_what_was_measured_beyond_a_limit_is_not_promoted() -> None:
    trials = [
        trial(n, correct=100 + n, fidelity="supernet", latency_ms=float(n)) for n in range(1, 6)
    ]
    promotions = Promotions(
        trials,
        base="supernet",
        rungs=["train-3e"],
        objectives=parse_objectives("top1,latency"),
        limits={"latency_ms": 2.5},
    )
    chosen = []
    while (found := promotions.next()) is not None:
        chosen.append(found[0].key)
    assert sorted(chosen) == sorted(t.key for t in trials[:2])
    assert losses_of(trials[0], ("top1", "latency_ms")) == (100 - trials[0].measured.top1, 1.0)


@pytest.mark.parametrize("base", [BASE, None])
def test_a_network_that_is_being_trained_on_a_rung_is_not_sent_there_again(
    base: str | None,
) -> None:
    lower = LOW if base is None else BASE
    promotions = ladder([trial_of(index, lower, top1=3 * index) for index in range(6)], base)
    sent = [promotions.next()]
    # Each that finishes below puts the order there anew, while nothing has ended above.
    for index in range(6, 30):
        promotions.note(trial_of(index, lower, top1=3 * index))
        sent.append(promotions.next())

    chosen = [(found[0].key, found[1]) for found in sent if found is not None]
    assert len(set(chosen)) == len(chosen) >= 10
    # The best that there was at each time, and of a rung never more than a third.
    assert chosen[0][0] == trial_of(5, lower, top1=0).key
    if base is None:
        assert len(chosen) == 30 // 3
