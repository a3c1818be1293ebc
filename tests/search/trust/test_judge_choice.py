"""A run decides once what it judges by, and a predictor's choice is new and promising."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from search.record import Measured
from search.record.record import Record, Trial
from search.run_folder.state import RunState
from search.trust.judge_choice import estimator_of, next_predicted, report_of, sampled_fidelity
from searchspace.architecture import Architecture
from searchspace.cost import count
from searchspace.spec_file import load_space
from tests.search.trust.test_predictor import accuracy, networks
from tests.tiny_engine import plan_of
from tests.tiny_trials import trial

SPACE = load_space("micro")
OBJECTIVES = ("top1", "macs")


def trained(number: int, architecture: Architecture, fidelity: str) -> Trial:
    cost = count(architecture)
    top1 = accuracy(architecture)
    values = Measured(top1=top1, correct=2 * top1, total=200.0)
    return Trial(
        id=number,
        architecture_id=number,
        key=architecture.key,
        architecture=architecture,
        params=cost.params,
        macs=cost.macs,
        fidelity=fidelity,
        seed=0,
        origin="trust",
        state="done",
        measured=values,
        cause=None,
        seconds=1.0,
        num_attempts=1,
        finished=float(number),
    )


def test_the_predictors_choice_is_new_and_better_than_most() -> None:
    trials = [trained(n, a, "train-3e") for n, a in enumerate(networks(40))]
    chosen = []
    for _ in range(6):
        architecture = next_predicted(SPACE, trials, high="train-3e", objectives=OBJECTIVES, seed=0)
        assert architecture is not None
        assert architecture.key not in {t.key for t in trials}
        assert SPACE.violation(architecture) is None
        chosen.append(accuracy(architecture))
        trials.append(trained(len(trials), architecture, "train-3e"))
    average = sum(accuracy(a) for a in networks(200, seed=3)) / 200
    assert sum(chosen) / len(chosen) > average


def test_without_trainings_there_is_nothing_to_predict_from() -> None:
    assert next_predicted(SPACE, [], high="train-3e", objectives=OBJECTIVES, seed=0) is None


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    with Record.create(tmp_path / "record.db") as record:
        yield record


def test_the_choice_is_made_once(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [
        *(trial(n, correct=100 + n, origin="trust") for n in range(1, 8)),
        *(trial(n, correct=50 - n, fidelity="supernet") for n in range(1, 8)),
    ]
    with record:
        monkeypatch.setattr(Record, "trials", lambda _self: trials)
        report = report_of(record, seed=0)
        assert report is not None
        assert report.chosen == "training"  # the supernet's ranking is inverted
        assert estimator_of(record, seed=0) == "training"
        trials.clear()
        assert estimator_of(record, seed=0) == "training"


def test_the_verdict_is_of_what_the_run_judges_by(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A larger budget trains more networks alone; the choice was made before, and stays."""
    trials = [
        *(trial(n, correct=100 + n, origin="trust") for n in range(1, 4)),
        *(trial(n, correct=50 - n, fidelity="supernet") for n in range(1, 8)),
    ]
    with record:
        monkeypatch.setattr(Record, "trials", lambda _self: trials)
        assert estimator_of(record, seed=0) == "supernet"  # three say nothing
        trials += [trial(n, correct=100 + n, origin="trust") for n in range(4, 8)]
        report = report_of(record, seed=0)
    assert report is not None
    assert report.verdict.startswith("Networks are judged by supernet: the run decided so")
    assert "These 7 networks would choose short training alone" in report.verdict


def test_scores_do_not_stand_for_a_supernet_that_has_judged_nothing(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = [trial(n, correct=100 + n, origin="trust") for n in range(1, 8)]
    scores = {t.key: {"nwot": float(t.id)} for t in trials}
    with record:
        monkeypatch.setattr(Record, "trials", lambda _self: trials)
        RunState(record).proxy_scores = scores
        assert report_of(record, seed=0) is None
        assert estimator_of(record, seed=0) == "supernet"
        report = report_of(record, seed=0, strategy="zero-cost")
        assert report is not None
        assert report.chosen == "nwot"


def test_a_score_that_one_network_has_not_is_none_to_judge_by(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = [trial(n, correct=100 + n, origin="trust") for n in range(1, 8)]
    scores = {t.key: {"nwot": float(t.id), "grad_norm": float(t.id)} for t in trials}
    scores[trials[3].key]["nwot"] = math.nan
    with record:
        monkeypatch.setattr(Record, "trials", lambda _self: trials)
        RunState(record).proxy_scores = scores
        report = report_of(record, seed=0, strategy="zero-cost")
    assert report is not None
    assert "nwot" not in {estimator.name for estimator in report.estimators}
    assert report.chosen == "grad_norm"


def test_the_sampler_is_fed_with_what_a_strategy_judges_by(record: Record) -> None:
    with record:
        assert sampled_fidelity(record, strategy="zero-cost") == "zero-cost"
        assert sampled_fidelity(record, strategy="supernet") == "supernet"
        # Without a plan there are no rungs yet.
        assert sampled_fidelity(record, strategy="proxy") == "supernet"


@pytest.mark.parametrize("estimator", ["training", "predictor"])
def test_where_a_run_judges_by_training_the_sampler_is_fed_with_that(
    record: Record, estimator: str
) -> None:
    with record:
        state = RunState(record)
        state.plan = replace(plan_of(), rungs=(1, 3, 9), trial_epochs=9, trust_epochs=3)
        assert sampled_fidelity(record, strategy="supernet") == "supernet"
        state.estimator = estimator
        assert sampled_fidelity(record, strategy="supernet") == "train-3e"
        assert sampled_fidelity(record, strategy="zero-cost") == "train-1e"
        assert sampled_fidelity(record, strategy="graft") == "train-1e"


@pytest.mark.parametrize(
    ("strategy", "judge"),
    [("supernet", "supernet"), ("zero-cost", "training"), ("proxy", "training")],
)
def test_where_nothing_was_trained_the_strategy_says_what_judges(
    record: Record, strategy: str, judge: str
) -> None:
    with record:
        assert estimator_of(record, seed=0, strategy=strategy) == judge


def test_the_predictor_learns_from_the_highest_fidelity_alone() -> None:
    known = [trained(n, a, "train-3e") for n, a in enumerate(networks(2))]
    # Of another fidelity, and not done: neither is learned from.
    others = [
        trained(10, networks(3)[-1], "train-1e"),
        replace(trained(11, networks(4)[-1], "train-3e"), state="failed", measured=Measured()),
    ]
    ask = partial(next_predicted, SPACE, high="train-3e", objectives=OBJECTIVES, seed=0)
    assert ask([known[0], *others]) is None
    assert ask(known) is not None
    # What a lower fidelity tried may be trained at the highest.
    assert ask([*known, others[0]]) == ask(known)
