"""The driver of a run with small work, as a process of its own that can be killed.

``python -m benchmarks.faults.driver FOLDER --budget 60gpu-seconds [--address A] [--resume]``
``python -m benchmarks.faults.driver FOLDER --retrain ID --devices 2 [--address A]``
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.faults.small_work import SMALL_WORK, SmallJob, retrain_small
from search.cluster import crew
from search.phases import session
from search.plan import Plan
from search.retraining import queue
from search.run import run_search
from search.run_folder import create_run, open_run, resume_run
from search.run_folder.settings import RunSettings
from search.scheduling import trials

# The limits of hung work are minutes; the suite is to end before.
trials.LEAST_LIMIT_SECONDS = 6.0
crew.LEAST_LIMIT_SECONDS = 6.0


def retrain(options: argparse.Namespace) -> int:
    """Retrain networks with small work; exit like ``search retrain``."""
    queue.attempt = retrain_small  # type: ignore[attr-defined]
    console = Console(file=sys.stdout, width=100)
    plan = queue.RetrainPlan(recipe="digits", epochs=options.epochs, devices=options.devices)
    with open_run(options.folder, write=True) as run:
        stopped_by = queue.retrain_members(
            run, options.retrain, plan, console=console, ray_address=options.address
        )
    print(f"stopped by {stopped_by}", flush=True)
    return 1 if stopped_by else 0


def train_together(devices: int) -> None:
    """Plan so many devices for every trial."""
    plan_from_times = session.plan_from_times  # type: ignore[attr-defined]

    def plan(*given: Any, **named: Any) -> Plan:
        made = plan_from_times(*given, **named)
        return replace(made, rung_devices=(devices,) * len(made.rungs))

    session.plan_from_times = plan  # type: ignore[attr-defined]


def main() -> int:
    """Run, resume or retrain; exit like ``search run``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--budget")
    parser.add_argument("--address")
    parser.add_argument("--record")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strategy", default="supernet")
    parser.add_argument("--share", action="append", default=[])
    parser.add_argument("--storage", default="")
    parser.add_argument("--work", default="{}", help="JSON: fields of SmallJob")
    parser.add_argument("--together", type=int, help="Devices that train one network.")
    parser.add_argument("--retrain", type=int, action="append", help="Networks of a finished run.")
    parser.add_argument("--devices", type=int, default=1, help="Of a retraining.")
    parser.add_argument("--epochs", type=int, default=40, help="Of a retraining.")
    options = parser.parse_args()
    if options.retrain:
        return retrain(options)
    if options.together:
        train_together(options.together)
    if options.resume:
        opened = resume_run(options.folder, options.budget)
    else:
        shares = {name: float(share) for name, share in (s.split("=") for s in options.share)}
        settings = RunSettings(
            data="digits",
            budget=options.budget,
            sampler="random",
            seed=options.seed,
            shares=shares,
            strategy=options.strategy,
            storage=options.storage,
        )
        opened = create_run(options.folder, settings, database=options.record)
    with opened as run:
        if not options.resume:
            made = SmallJob(folder=run.folder, files=run.files, **json.loads(options.work))
            fields = {k: v for k, v in asdict(made).items() if k not in ("folder", "files")}
            (run.folder / "work.json").write_text(json.dumps(fields))
        console = Console(file=sys.stdout, width=100)
        stopped_by = run_search(run, console, ray_address=options.address, work=SMALL_WORK)
    print(f"stopped by {stopped_by}", flush=True)
    return 130 if stopped_by else 0


if __name__ == "__main__":
    sys.exit(main())
