"""Laws of every strategy: only its phases are paid, the budget is kept, a kill loses nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from search.plan import PHASES, SHARES
from search.record.record import Record
from search.results.candidates import front, searched_fidelities
from search.results.fidelity import ZERO_COST, trained_alone
from search.results.objectives import losses_of
from search.run_folder.settings import RunSettings
from search.run_folder.state import RunState
from search.scheduling.tasks import BudgetSpent
from search.trust.judge_choice import sampled_fidelity
from tests.local_run import LocalRun

BUDGET = 300.0
# A graft begins with a network.
STRATEGIES = tuple(name for name in SHARES if name != "graft")


def new_run(folder: Path, strategy: str, patch: pytest.MonkeyPatch) -> LocalRun:
    settings = RunSettings(
        data="digits", budget=f"{BUDGET:g}cpu-seconds", sampler="random", strategy=strategy
    )
    return LocalRun(folder / "run", settings, patch)


def check_ledger(record: Record, strategy: str) -> None:
    assert set(record.spent_by_phase()) == {"measure", *SHARES[strategy]}
    assert 0.9 * BUDGET < record.spent(PHASES) <= 1.01 * BUDGET
    trials = record.trials()
    assert not [trial for trial in trials if trial.state == "running"]
    judged = Counter((trial.key, trial.fidelity, trial.seed) for trial in trials)
    assert set(judged.values()) == {1}
    assert front(trials, objectives=("top1", "macs"))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_spends_its_budget_on_the_phases_of_its_strategy(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path, strategy, monkeypatch)
    assert run.enter() == "done"
    with run.record() as record:
        check_ledger(record, strategy)
        rungs = {trained_alone(rung) for rung in RunState(record).plan.rungs}
        untrained = {"supernet": {"supernet"}, "zero-cost": {ZERO_COST}, "proxy": set()}[strategy]
        assert {trial.fidelity for trial in record.trials()} == rungs | untrained
        assert set(searched_fidelities(record.trials())) == rungs | (untrained - {ZERO_COST})


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_that_is_killed_and_stopped_ends_as_well(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path, strategy, monkeypatch)
    done: set[int] = set()
    ends = []
    for kill_after, stop_after in [(40.0, 1e9), (1e9, 60.0), (70.0, 1e9), (1e9, 1e9)]:
        ends.append(run.enter(kill_after=kill_after, stop_after=stop_after))
        with run.record() as record:
            record.close_orphans()
            now = {trial.id for trial in record.trials(state="done")}
        assert done <= now  # none is lost; a supernet's training comes before the first
        done = now
    assert done
    assert ends == ["killed", "stopped", "killed", "done"]
    with run.record() as record:
        # Nothing beats between the kills and the last heartbeat here: they are charged less.
        assert record.spent(PHASES) <= 1.01 * BUDGET
        assert not record.trials(state="running")
        judged = Counter((trial.key, trial.fidelity) for trial in record.trials())
        assert set(judged.values()) == {1}


def test_short_trainings_fill_the_lowest_rung_and_the_best_third_goes_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path, "proxy", monkeypatch)
    run.enter()
    with run.record() as record:
        rungs = RunState(record).plan.rungs
        levels = [{t.key for t in record.trials(fidelity=trained_alone(rung))} for rung in rungs]
        assert sampled_fidelity(record, strategy="proxy") == trained_alone(rungs[0])
    assert len(rungs) > 1
    for lower, higher in pairwise(levels):
        assert 0 < len(higher) <= len(lower) // 3
        assert higher <= lower


def test_zero_cost_judges_by_the_score_that_ranked_best_and_verifies_by_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path, "zero-cost", monkeypatch)
    run.enter()
    with run.record() as record:
        judge = RunState(record).estimator
        trials = record.trials()
        assert RunState(record).proxy_scores
    # The small work's accuracy grows with MACs, and its one proxy is noisy.
    assert judge == "macs"
    scored = [trial for trial in trials if trial.fidelity == ZERO_COST]
    assert all(t.measured.score == t.macs for t in scored)
    assert losses_of(scored[0], ("top1", "macs")) == (-scored[0].macs, scored[0].macs / 1e6)
    promoted = {trial.key for trial in trials if trial.origin == "promote"}
    assert promoted <= {trial.key for trial in scored}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_that_kills_have_spent_begins_nothing_and_says_why(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path, strategy, monkeypatch)
    with run.record() as record:
        for _ in range(10):  # each start takes 29 s and is killed
            attempt = record.start_attempt("measure", devices=1)
            run.clock.work_for(29.0)
            record.finish_attempt(attempt, outcome="interrupted")

    with pytest.raises(BudgetSpent, match=r"Of 300 .* 290 are spent, 290 of .* 10 times"):
        run.enter()

    with run.record() as record:
        assert record.spent(PHASES) == pytest.approx(290.0)


def test_what_later_starts_took_does_not_make_the_budget_too_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path, "supernet", monkeypatch)
    assert run.enter(stop_after=50.0) == "stopped"
    with run.record() as record:
        record.close_orphans()
        for _ in range(9):
            attempt = record.start_attempt("measure", devices=1)
            run.clock.work_for(15.0)
            record.finish_attempt(attempt, outcome="interrupted")

    assert run.enter() == "done"

    with run.record() as record:
        assert 0.9 * BUDGET < record.spent(PHASES) <= 1.01 * BUDGET
        assert front(record.trials(), objectives=("top1", "macs"))


def test_a_run_that_had_overspent_spends_what_it_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path, "zero-cost", monkeypatch)
    assert run.enter() == "done"
    with run.record() as record:
        record.close_orphans()
        attempt = record.start_attempt("measure", devices=1)
        run.clock.work_for(1.1 * BUDGET - record.spent(PHASES))
        record.finish_attempt(attempt, outcome="interrupted")
    more = 1.5 * BUDGET
    run.settings = replace(run.settings, budget=f"{more:g}cpu-seconds")

    assert run.enter() == "done"

    with run.record() as record:
        assert 0.9 * more < record.spent(PHASES) <= 1.01 * more
