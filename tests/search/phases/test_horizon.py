"""The horizon in a whole run: networks of different mixers, once each, within the budget."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from search.plan import HORIZON, PHASES
from search.results import searched_fidelities, shown_fidelity, trial_fidelities
from search.run_folder.settings import RunSettings
from search.run_folder.state import RunState
from search.trust import horizon_report
from tests.local_run import LocalRun

BUDGET = 1_500.0


def new_run(folder: Path, strategy: str, patch: pytest.MonkeyPatch) -> LocalRun:
    settings = RunSettings(
        data="digits", budget=f"{BUDGET:g}cpu-seconds", sampler="random", strategy=strategy
    )
    return LocalRun(folder / "run", settings, patch)


@pytest.mark.parametrize("strategy", ["supernet", "proxy", "zero-cost"])
def test_networks_of_many_mixers_are_trained_on_and_the_budget_is_kept(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path, strategy, monkeypatch)
    # In the middle of the horizon of most; it goes on where it was.
    assert run.enter(kill_after=0.6 * BUDGET) == "killed"
    assert run.enter() == "done"
    with run.record() as record:
        plan, trials = RunState(record).plan, record.trials()
        assert plan is not None
        assert plan.num_horizon >= 5
        longest = f"train-{plan.horizon_epochs}e"
        # Of the digits' recipe's 80.
        assert plan.horizon_epochs in (20, 40)
        there = [trial for trial in trials if trial.fidelity == longest]
        assert len(there) == plan.num_horizon
        assert {trial.origin for trial in there} == {HORIZON}
        kinds = [{m.kind for s in t.architecture.stages for m in s.mixers} for t in there]
        single = {kind for found in kinds if len(found) == 1 for kind in found}
        # Half of them are of one mixer, each of another.
        assert len(there) / 2 <= len(single) < len(there)
        # All of them are on every other length as well.
        for fidelity in trial_fidelities(plan):
            keys = {trial.key for trial in trials if trial.fidelity == fidelity}
            assert {trial.key for trial in there} <= keys
        judged = Counter((trial.key, trial.fidelity) for trial in trials)
        assert set(judged.values()) == {1}
        assert 0.9 * BUDGET < record.spent(PHASES) <= 1.01 * BUDGET
        assert record.spent_by_phase()[HORIZON] > 0
        # The front is not that of these few.
        assert searched_fidelities(trials)[0] == longest
        assert shown_fidelity(trials) != longest
        report = horizon_report(
            trials, recipe_epochs=plan.recipe_epochs, order=None, rng=np.random.default_rng(0)
        )
        assert report is not None
        assert report.is_of_all
        assert {rung.epochs for rung in report.rungs} == set(plan.rungs)
