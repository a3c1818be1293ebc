"""What the arms of a study have found: read from their folders; nothing is started."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.strategies.singles import single_networks
from benchmarks.strategies.study import (
    AFTERNOON,
    ARMS,
    SINGLE,
    Found,
    Member,
    Study,
    choose_members,
)
from search.front.query import FrontQuery, choose_rows, judged_by, recipe_epochs, trials_of
from search.plan import PHASES
from search.record.record import Record
from search.report.payload import hypervolume_payload
from search.results.candidates import searched_fidelities, shown_fidelity
from search.results.dominance import hypervolume, non_dominated
from search.results.fidelity import is_trained_alone, trained_alone
from search.retraining.model_card import RetrainResult
from search.retraining.out_folder import RESULT_FILE
from search.run_folder.folder import RECORD, open_run
from search.trust import horizon_report
from searchspace.architecture import Architecture
from searchspace.cost import count

DONE_SHARE = 0.99


def all_found(study: Study) -> Iterable[tuple[str, int, Found]]:
    """Read what is done, by seed and arm."""
    for seed in study.here():
        for arm in ARMS:
            found = found_by(study, arm, seed)
            if found is not None:
                yield arm, seed, found


def found_by(study: Study, arm: str, seed: int) -> Found | None:
    """Read what an arm has found; None before it is done."""
    if arm == SINGLE:
        if not study.images.is_dir():
            return None
        networks = sorted(
            single_networks(study.prepare(), study.sizes), key=lambda one: count(one).macs
        )
        return Found(front=tuple(Member(architecture=one) for one in networks), trained=0, run={})
    folder = study.folder(arm, seed)
    if not is_done(folder, arm):
        return None
    return _found_by_script(folder) if arm in AFTERNOON else _found_by_run(folder)


def is_done(folder: Path, arm: str) -> bool:
    """Tell whether an arm's run has come to its end."""
    if arm in AFTERNOON:
        return (folder / "trials.json").is_file()
    if not is_begun(folder):
        return False
    with open_run(folder) as run:
        return bool(run.record.get_meta("phase") == "done")


def is_begun(folder: Path) -> bool:
    """Tell whether a run's record says what was asked, so that it can be resumed."""
    if not (folder / RECORD).is_file():
        return False
    with closing(sqlite3.connect(folder / RECORD)) as connection:
        if connection.execute("SELECT name FROM sqlite_master").fetchone() is None:
            return False
    with Record.open(folder / RECORD) as record:
        return record.get_meta("settings") is not None


def _found_by_run(folder: Path) -> Found:
    """Read what `search pareto` shows, and what the run knows of itself."""
    query = FrontQuery(sort="macs")
    with open_run(folder) as run:
        trials, objectives = trials_of(run), run.settings.objectives
        alone = [t for t in trials if t.state == "done" and is_trained_alone(t.fidelity)]
        trained = len({trial.key for trial in alone})
        known = {"trained": str(trained), "spent_seconds": f"{run.state.spent:.0f}"}
        if not searched_fidelities(trials):
            return Found(front=(), trained=trained, run=known)
        front = choose_rows(judged_by(run, query), query, objectives=objectives)
        curve = hypervolume_payload(
            trials,
            run.record.charges(PHASES),
            fidelity=shown_fidelity(trials),
            objectives=objectives,
            unit_seconds=1.0,
        )
        known["until_final_seconds"] = f"{_until_final(curve['spent'], curve['volume']):.0f}"
        horizon = horizon_report(
            trials, recipe_epochs=recipe_epochs(run), order=None, rng=np.random.default_rng(0)
        )
    if horizon is not None and (tau := horizon.rungs[-1].tau).tau is not None:
        known |= {"horizon_epochs": str(horizon.longest), "horizon_tau": f"{tau.tau:.2f}"}
        known["horizon_networks"] = str(tau.num_points)
        if (held := horizon.held_out) is not None:
            known["forecast_error"] = f"{held.error:.2f}"
            known["last_value_error"] = f"{held.last_error:.2f}"
    members = [Member(architecture=c.architecture, fidelity=c.fidelity, top1=c.top1) for c in front]
    return Found(front=tuple(members), trained=trained, run=known)


def _found_by_script(folder: Path) -> Found:
    written = json.loads((folder / "trials.json").read_text(encoding="utf-8"))
    trials, fidelity = written["trials"], trained_alone(written["epochs"])
    losses = np.array([(100 - t["top1"], t["macs"]) for t in trials], dtype=float).reshape(-1, 2)
    kept = [t for t, on in zip(trials, non_dominated(losses), strict=True) if on]
    members = [
        Member(
            architecture=Architecture.from_dict(t["architecture"]),
            fidelity=fidelity,
            top1=t["top1"],
        )
        for t in sorted(kept, key=lambda t: t["macs"])
    ]
    volumes = _volumes(losses)
    run = {"trained": str(len(trials))}
    if trials:
        spent = [t["spent"] for t in trials]
        run |= {"spent_seconds": f"{spent[-1]:.0f}"}
        run |= {"until_final_seconds": f"{_until_final(spent, volumes):.0f}"}
    return Found(front=tuple(members), trained=len(trials), run=run)


def _volumes(losses: Any) -> list[float]:
    """Return the hypervolume after each of some results, as the report of a run has it."""
    if not len(losses):
        return []
    scaled = losses / np.array([100.0, 1.1 * losses[:, 1].max()])
    return [hypervolume(scaled[: end + 1], np.ones(2)) for end in range(len(scaled))]


def _until_final(spent: Sequence[float], volumes: Sequence[float]) -> float:
    """Return the device-seconds after which a hypervolume was within 1 % of its last value."""
    return next(
        seconds
        for seconds, volume in zip(spent, volumes, strict=True)
        if volume >= DONE_SHARE * volumes[-1]
    )


def chosen(study: Study, arm: str, found: Found) -> tuple[Member, ...]:
    """Choose what is retrained of a front; of single mixers all, for nobody knows the best."""
    return found.front if arm == SINGLE else choose_members(found.front, study.members)


def to_retrain(study: Study, seed: int) -> list[Member]:
    """List the networks of a seed that are to be retrained still, each once."""
    wanted: dict[str, Member] = {}
    for arm in ARMS:
        found = found_by(study, arm, seed)
        for member in () if found is None else chosen(study, arm, found):
            wanted.setdefault(member.key, member)
    return [m for m in wanted.values() if math.isnan(tested_top1(study, m, seed))]


def tested_top1(study: Study, member: Member, seed: int) -> float:
    """Return the test accuracy of a network that was retrained with a seed; else NaN."""
    path = study.retrained(member.key, seed) / RESULT_FILE
    if not path.is_file():
        return math.nan
    result = RetrainResult.from_dict(json.loads(path.read_text(encoding="utf-8")))
    return result.accuracy.top1
