"""A run that was given little: no training begins that cannot end, and the front is no accident."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from search.phases import alone
from search.plan import PHASES
from search.results.candidates import (
    front,
    passed_over,
    searched_fidelities,
    shown_fidelity,
)
from search.results.fidelity import SUPERNET
from search.run_folder.settings import RunSettings
from tests.local_run import LocalRun

START = 6.0


def small_run(folder: Path, budget: int, patch: pytest.MonkeyPatch) -> LocalRun:
    """Make a run whose workers need seconds to start in every phase, and whose epochs are short."""
    settings = RunSettings(data="digits", budget=f"{budget}cpu-seconds", sampler="random")
    run = LocalRun(folder / "run", settings, patch)
    work = f'{{"step": 0.02, "judge": 0.05, "epoch": 0.6, "start": {START}}}'
    (run.folder / "work.json").write_text(work)

    def run_trials(cluster: Any, work: Any, *, job: Any, source: Any, **_: Any) -> None:
        # The worker starts with the first trial, which is charged for it, and is warm from then on.
        is_warm = False
        while not source.should_stop() and (task := source.next()) is not None:
            source.started(task)
            if not is_warm:
                run.clock.work_for(START)
            values = work.train_alone(job, task, 1, lambda epoch: None)
            if source.should_stop():  # it is killed at the end of the budget
                source.settle(task, outcome="lost", measured=None, cause="stopped before its end")
                return
            source.settle(task, outcome="done", measured=values, cause=None)
            is_warm = True

    patch.setattr(alone, "run_trials", run_trials)
    return run


@pytest.mark.parametrize("budget", [40, 50, 60, 70, 80, 90, 100, 120, 150, 200])
def test_no_training_begins_that_cannot_end(
    budget: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(tmp_path, budget, monkeypatch)

    assert run.enter() == "done"

    with run.record() as record:
        trials = record.trials()
        assert not [t for t in trials if t.state in ("waiting", "running")]
        assert record.spent(PHASES) <= 1.05 * budget
        shown = shown_fidelity(trials)
        judged = [trial for trial in trials if trial.fidelity == shown and trial.state == "done"]
        assert len(judged) >= 3
        assert len(front(trials, objectives=("top1", "macs"))) >= 2
        # What is shown is what was promoted, or it is said why not.
        longest = shown == searched_fidelities(trials)[0] and shown != SUPERNET
        assert (passed_over(trials) is None) == longest
