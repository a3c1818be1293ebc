"""A large plan is made anew when its first trainings are slow; what was begun is taken back."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from search.phases import alone, session
from search.plan import PHASES, Plan
from search.run_folder.settings import RunSettings
from search.scheduling import TrialRunner, checkpoint_name
from tests import local_run
from tests.local_run import LocalRun

SLOWER = 3.5


@pytest.mark.parametrize("strategy", ["supernet", "proxy"])
def test_trainings_that_are_given_up_wait_for_nothing(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = RunSettings(
        data="digits", budget="120cpu-seconds", sampler="random", strategy=strategy
    )
    run = LocalRun(tmp_path / "run", settings, monkeypatch)
    plan_from_times, plans = session.plan_from_times, list[Plan]()

    def plan_of(*given: Any, **named: Any) -> Plan:
        return replace(plan_from_times(*given, **named), is_large=True)

    def run_trials(cluster: Any, work: Any, *, job: Any, source: Any, **more: Any) -> None:
        if plans:
            local_run._run_trials(cluster, work, job=job, source=source, **more)
            return
        plans.append(source._plan)
        tasks = [source.next() for _ in range(3)]
        for task in tasks:
            source.started(task)
            source.heard(task)
            (run.folder / checkpoint_name(task.trial_id)).mkdir(parents=True)
        planned = source._costs.planned(9_000_000, tasks[0].epochs) / tasks[0].epochs
        for _ in range(2):
            run.clock.work_for(SLOWER * planned)
            for task in tasks:
                source.heard(task)
        assert source.should_stop()
        for task in tasks:
            source.settle(task, outcome="lost", measured=None, cause="stopped")

    monkeypatch.setattr(session, "plan_from_times", plan_of)
    monkeypatch.setattr(alone, "run_trials", run_trials)
    monkeypatch.setattr(alone, "TrialRunner", partial(TrialRunner, clock=run.clock))

    assert run.enter() == "done"

    (first,) = plans
    with run.record() as record:
        trials = record.trials()
        assert not [trial for trial in trials if trial.state == "waiting"]
        assert not [trial for trial in trials if trial.state == "failed"]
        # Three trainings of two epochs each, which nothing came of, are still charged.
        rows = [row for row in record.ledger() if row[9] == "stopped"]
        assert len(rows) == 3
        assert {row[2] for row in rows} == {None}
        assert record.spent(PHASES) >= sum(row[-1] for row in rows) > 0
        lengths = {t.fidelity for t in trials if t.fidelity.startswith("train")}
        assert lengths
        assert f"train-{first.trial_epochs}e" not in lengths
    assert not [*(run.folder / "trials").glob("*")]
