"""A run as pandas frames, for a notebook: `load_run`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from search.front import FrontQuery, judged_by, trials_of
from search.record import LEDGER_COLUMNS, Trial
from search.results import Candidate, beyond_limits, searched_fidelities
from search.run_folder import RunFolder, RunSettings, open_run
from search.terminal import describe_stages
from searchspace.architecture import describe


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """A run, read once.

    Attributes:
        settings: What was asked for.
        trials: A row a trial, by ``trial``: the architecture's ``id`` and ``key``, ``fidelity``,
            ``seed``, ``origin``, ``state``, ``params``, ``macs``, ``mixers``, ``stage0`` and so on,
            every value that was measured (``top1`` in percent), ``seconds`` charged, ``finished``.
            A retrained network is as it was retrained, maybe for larger images.
        front: A row a candidate at the fidelity whose front is shown, by ``id``: its accuracy with
            the interval, costs, ``on_front``, ``near_front`` and ``front_probability``.
        curves: A row an epoch of every training alone: ``trial``, the architecture's ``id``,
            ``fidelity``, ``epoch`` and the mean training ``loss``.
        ledger: A row an attempt: ``phase``, ``trial_id``, ``devices``, ``started`` and ``ended``
            (UTC), ``outcome`` and the device-``seconds`` that were charged.
    """

    settings: RunSettings
    trials: pd.DataFrame
    front: pd.DataFrame
    curves: pd.DataFrame
    ledger: pd.DataFrame


def load_run(path: Path | str) -> LoadedRun:
    """Read a run; it may be going on.

    Args:
        path: The run's folder.

    Raises:
        ValueError: If the folder is not one of a run.
    """
    with open_run(Path(path)) as run:
        trials = trials_of(run)
        frame = pd.DataFrame([_trial_row(trial) for trial in trials])
        front = pd.DataFrame([_candidate_row(one) for one in _judged(run, trials)])
        ledger = pd.DataFrame(run.record.ledger(), columns=LEDGER_COLUMNS).set_index("id")
        settings = run.settings
    return LoadedRun(
        settings=settings,
        trials=frame if frame.empty else _with_times(frame.set_index("trial"), "finished"),
        curves=pd.DataFrame(
            [row for trial in trials for row in _curve_rows(trial)],
            columns=["trial", "id", "fidelity", "epoch", "loss"],
        ),
        front=front if front.empty else front.set_index("id").sort_values("macs"),
        ledger=_with_times(ledger, "started", "ended", "last_seen"),
    )


def _judged(run: RunFolder, trials: tuple[Trial, ...]) -> tuple[Candidate, ...]:
    has_front = searched_fidelities(trials) and beyond_limits(trials, run.limits) is None
    return judged_by(run, FrontQuery()) if has_front else ()


def _curve_rows(trial: Trial) -> list[dict[str, Any]]:
    place = {"trial": trial.id, "id": trial.architecture_id, "fidelity": trial.fidelity}
    losses = trial.measured.losses
    return [{**place, "epoch": epoch, "loss": loss} for epoch, loss in losses.items()]


def _trial_row(trial: Trial) -> dict[str, Any]:
    return {
        "trial": trial.id,
        "id": trial.architecture_id,
        "key": trial.key,
        "fidelity": trial.fidelity,
        "seed": trial.seed,
        "origin": trial.origin,
        "state": trial.state,
        "params": trial.params,
        "macs": trial.macs,
        "mixers": describe(trial.architecture),
        "dims": "-".join(str(stage.dim) for stage in trial.architecture.stages),
        **{f"stage{i}": text for i, text in enumerate(describe_stages(trial.architecture))},
        **replace(trial.measured, losses={}).to_json(),
        # A trial's values may have seconds of their own: those of the work, not those charged.
        "seconds": trial.seconds,
        "attempts": trial.num_attempts,
        "finished": trial.finished,
        "cause": trial.cause,
    }


def _candidate_row(one: Candidate) -> dict[str, Any]:
    return {
        "id": one.id,
        "key": one.key,
        "fidelity": one.fidelity,
        one.measure: one.top1,
        "low": one.low,
        "high": one.high,
        "num_seeds": one.num_seeds,
        "params": one.params,
        "macs": one.macs,
        "latency_ms": one.latency_ms,
        "memory_mib": one.memory_mib,
        "on_front": one.on_front,
        "near_front": one.near_front,
        "front_probability": one.front_probability,
        "mixers": describe(one.architecture),
        "dims": "-".join(str(stage.dim) for stage in one.architecture.stages),
        **{f"stage{i}": text for i, text in enumerate(describe_stages(one.architecture))},
    }


def _with_times(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    times = {name: pd.to_datetime(frame[name], unit="s", utc=True) for name in columns}
    return frame.assign(**times)
