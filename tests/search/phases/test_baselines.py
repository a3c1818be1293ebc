"""Networks of one mixer in a whole run: judged like the others, and the best of them promoted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from search.plan import PHASES
from search.record import Trial
from search.results import candidates, mixing_gains, rung_fidelities, shown_fidelity
from search.run_folder.settings import RunSettings
from search.run_folder.state import RunState
from search.scheduling import Promotions
from searchspace.single_mixer import is_single_mixer, single_mixer_baselines
from tests.local_run import LocalRun
from tests.tiny_trials import network, trial

BUDGET = 600.0


@pytest.mark.parametrize("strategy", ["supernet", "proxy"])
def test_single_mixers_at_several_costs_are_judged_and_promoted(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = RunSettings(
        data="digits", budget=f"{BUDGET:g}cpu-seconds", sampler="random", strategy=strategy
    )
    run = LocalRun(tmp_path / "run", settings, monkeypatch)
    # In the middle of the search: baselines are judged once.
    assert run.enter(kill_after=0.4 * BUDGET) == "killed"
    assert run.enter() == "done"
    with run.record() as record:
        plan, trials = RunState(record).plan, record.trials()
        assert plan is not None
        assert record.spent(PHASES) <= 1.01 * BUDGET
        *_, highest = rung_fidelities(plan)
        lowest = "supernet" if strategy == "supernet" else next(iter(rung_fidelities(plan)))
        judged = {trial.key for trial in trials if trial.fidelity == lowest}
        baselines = single_mixer_baselines(settings.load_space().replace(num_classes=10))
        there = [one.key in judged for one in baselines]
        # The first of the list, which span mixers and costs, and not much more than a quarter.
        assert sum(there) >= 5
        assert there == sorted(there, reverse=True)
        assert sum(there) <= len(judged) / 3
        # Several of them have the longest training, at different costs.
        top = [t for t in trials if t.fidelity == highest and is_single_mixer(t.architecture)]
        promoted = {t.macs for t in top if t.origin in ("promote", "search")}
        assert len(promoted) >= 2
        found = candidates(trials, fidelity=shown_fidelity(trials), objectives=("top1", "macs"))
        gains = mixing_gains(found)
        assert gains
        assert any(gain.mixed is not None for gain in gains)


def test_what_is_put_first_is_chosen_before_all_else_and_once() -> None:
    low, high = "train-1e", "train-3e"
    trials = [trial(n, correct=20 * n, fidelity=low) for n in range(1, 7)]
    promotions = Promotions(trials, base=None, rungs=[low, high], objectives=("top1", "macs"))
    promotions.put_first([network(2), network(9), network(2)], high)
    chosen = [promotions.next() for _ in range(2)]
    assert chosen == [(network(2), high), (network(9), high)]
    # What went up counts: one third of six has gone.
    assert promotions.next() is None


def test_rungs_are_sorted_by_what_is_forecast_and_the_base_is_not() -> None:
    low, high = "train-1e", "train-3e"
    base = [trial(n, correct=10 * n, fidelity="supernet") for n in range(1, 7)]
    rung = [trial(n, correct=10 * n, fidelity=low) for n in range(1, 7)]
    asked = []

    def forecast(of_one: Sequence[Trial]) -> float:
        asked.append([one.fidelity for one in of_one])
        return 100.0 - of_one[-1].measured.top1  # the worst is the best

    promotions = Promotions(
        [*base, *rung],
        base="supernet",
        rungs=[low, high],
        objectives=("top1",),
        forecast=forecast,
    )
    chosen = [promotions.next() for _ in range(2)]
    assert chosen == [(network(1), high), (network(2), high)]
    assert asked == [["supernet", low]] * 6
