"""The folder of a finished run, made without training anything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from search.plan import Plan, PlanInputs, make_plan
from search.record.record import Record, Trial
from search.run_folder.settings import RunSettings
from search.run_folder.state import DONE, RunState
from tests.tiny_trials import trial

COMMAND = "search run --budget 10cpu-minutes --out run"


def some_trials() -> tuple[Trial, ...]:
    """Return the trials of a search: judged, trained alone, retrained."""
    numbers = range(1, 10)
    return (
        *(trial(n, correct=80 + 7 * n, fidelity="supernet", origin="search") for n in numbers),
        *(trial(n, correct=70 + 12 * n, origin="trust") for n in numbers if n != 8),
        # No better than network 7, and dearer: off the front by noise only.
        trial(8, correct=150, origin="promote"),
        trial(3, correct=150, fidelity="retrain-micro-9e", origin="retrain"),
        trial(7, correct=180, fidelity="retrain-micro-9e", origin="retrain"),
    )


def write_run(folder: Path, trials: Iterable[Trial] = ()) -> Path:
    """Write a run with these trials (default: `some_trials`), one device-second each."""
    folder.mkdir()
    seconds = _every_second()
    with Record.create(folder / "record.db", clock=lambda: next(seconds)) as record:
        settings = RunSettings(data="digits", budget="10cpu-minutes", command=COMMAND)
        record.set_meta("settings", settings.to_dict())
        state = RunState(record)
        state.phase, state.plan = DONE, plan_of_minutes()
        for one in tuple(trials) or some_trials():
            number = record.add_architecture(one.architecture, params=one.params, macs=one.macs)
            trial_id = record.add_trial(
                number, fidelity=one.fidelity, seed=one.seed, origin=one.origin
            )
            if one.state in ("done", "failed"):
                attempt = record.start_attempt(one.origin, devices=1, trial_id=trial_id)
                record.finish_attempt(
                    attempt,
                    outcome="done" if one.state == "done" else "failed",
                    measured=one.measured or None,
                    cause=one.cause,
                )
    return folder


def _every_second() -> Iterator[float]:
    """Yield the times of a clock that is looked at once a second."""
    now = 1_000.0
    while True:
        yield now
        now += 1.0


def plan_of_minutes() -> Plan:
    """Plan ten minutes on two devices."""
    return make_plan(
        PlanInputs(
            budget_seconds=600,
            devices=2,
            measured_seconds=1.0,
            supernet_step=0.1,
            trial_step_seconds=((100_000, 0.01), (1_000_000, 0.02)),
            judge_seconds=0.5,
            steps_per_epoch=10,
            max_epochs=3,
            retrain_steps=1_000,
        )
    )
