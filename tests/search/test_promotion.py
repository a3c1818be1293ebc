"""Laws of promotion: the front first, never twice, spread out inside a rank."""

from __future__ import annotations

from pathlib import Path

from search.promotion import Promotions, losses_of
from search.record import Record, Trial
from searchspace.architecture import Architecture, Stage
from searchspace.mixers import DepthwiseConv


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
            values = {"top1": top1, "correct": top1, "total": 100}
            record.finish_attempt(attempt, outcome="done", values=values)
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
