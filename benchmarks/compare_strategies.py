"""Which strategy finds the better front with the same budget? Runs for hours; resumable.

    nohup python benchmarks/compare_strategies.py --data cifar10_25k.tar.xz > study.log 2>&1 &
    python benchmarks/compare_strategies.py --table       # of what is there
    python benchmarks/compare_strategies.py --table --csv CSV   # of a finished study

For every seed, one ``search run`` of each arm on CIFAR-10, all with the space ``micro``, the same
budget, the objectives top1 and macs, and otherwise the program's defaults:

- ``supernet``: ``--strategy supernet``; shared weights judge proposals, the best are trained alone.
- ``proxy``: ``--strategy proxy``; every network is trained alone, the guided sampler proposes.
- ``random``: ``--strategy proxy --sampler random``; the same trainings of networks that are drawn
  at random, none twice. Where the budget has several rungs, the best third goes up as with
  ``proxy``; with one rung, which small budgets have, it is random search.

The front of a run is what ``search pareto`` shows: the members at the highest fidelity it reached.
At most ``--members`` of them, evenly by their rank in MACs and with both ends, are retrained by
``search retrain`` from fresh weights, all with the recipe ``micro``, the same epochs and the same
seed, on train and search together; the test split is read once for each. A network that several
fronts have is retrained once.

A front's hypervolume is that of (test error, MACs) of its retrained members with one reference
point for all: the error of chance, 90 %, and the MACs of the dearest network of the space. It is
given in percent of the box between that point and (0 %, MACs of the cheapest network of the space),
so that 100 would be the cheapest network without an error, and 0 is the front of a run that judged
nothing within its budget. Intervals are 95 % intervals of the mean over seeds by Student's t;
differences are paired by seed.

Killed and started again with the same options, it goes on. Seeds are finished one after the other.
A command that is under way when only this script is killed (kill -9) goes on alone, and the next
start is refused until it has ended.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from scipy.stats import t as student

from search.budget import count_cores, parse_budget
from search.front.query import FrontQuery, choose_rows, judged_by, trials_of
from search.record.record import Record
from search.results.candidates import Candidate, searched_fidelities
from search.results.dominance import hypervolume
from search.results.fidelity import is_trained_alone
from search.retraining.model_card import RetrainResult
from search.retraining.out_folder import RESULT_FILE
from search.run_folder.folder import RECORD, open_run
from searchspace.architecture import describe
from searchspace.cost import count
from searchspace.spec_file import load_space

T = TypeVar("T")
ROOT = Path(__file__).parents[1]
Row = Mapping[str, str]

ARMS = {
    "supernet": ("--strategy", "supernet"),
    "proxy": ("--strategy", "proxy"),
    "random": ("--strategy", "proxy", "--sampler", "random"),
}
BASELINE = "supernet"
SPACE, RECIPE, RETRAIN_SEED, NUM_CLASSES = "micro", "micro", 0, 10
CHANCE_ERROR = 100 * (1 - 1 / NUM_CLASSES)
# trained: networks that the run trained alone; front_size: members before some were chosen.
COLUMNS = (
    *("arm", "seed", "key", "mixers", "macs", "params", "fidelity", "trained", "front_size"),
    *("searched_top1", "test_top1", "epochs", "img_size"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """What is compared.

    Attributes:
        data: Source of the images.
        budget: Of each run, as typed.
        img_size: Side in pixels that images are scaled to; smaller ones make networks cheaper.
        epochs: Of each retraining.
        members: The most that are retrained of a front; at least 2.
        seeds: Of the runs, 0 to this, exclusive.
        cores: That every command may use.
        out: Folder of the runs.
    """

    data: str
    budget: str
    img_size: int
    epochs: int
    members: int
    seeds: int
    cores: int
    out: Path

    def __post_init__(self) -> None:
        parse_budget(self.budget)
        for name, least in (("epochs", 1), ("members", 2), ("seeds", 1), ("cores", 1)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"--{name} must be at least {least}, got {getattr(self, name)}. Give more."
                )

    def folder(self, arm: str, seed: int) -> Path:
        """Name the folder of a run."""
        return self.out / f"{arm}-s{seed}"


def main(words: list[str] | None = None) -> None:
    """Run or continue the study, or print the table of what is there."""
    parser = _parser()
    arguments = parser.parse_args(words)
    path = arguments.csv or arguments.out / "strategies.csv"
    if not arguments.table:
        if arguments.data is None:
            parser.error("a study needs the images: add --data cifar10_25k.tar.xz")
        try:
            study = _study(arguments)
            _prepare(study)
        except ValueError as error:
            parser.error(str(error))
        # A stop from outside ends the command that is under way as Ctrl-C does.
        signal.signal(signal.SIGTERM, _stop)
        run_study(study, path)
    if not path.is_file():
        parser.error(f"there are no results at {path} yet; name another --out or --csv")
    print(tables(read_rows(path)))


def _stop(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def run_study(study: Study, path: Path) -> None:
    """Do what is left to do, one seed after the other; write the results after every command."""
    for seed in range(study.seeds):
        for arm in ARMS:
            _search(study, arm, seed)
            write_rows(path, rows_of(study))
        for arm in ARMS:
            _retrain(study, arm, seed)
            write_rows(path, rows_of(study))


def choose_members(front: Sequence[T], most: int) -> tuple[T, ...]:
    """Pick at most so many members of a sorted front, evenly by rank, both ends among them."""
    if len(front) <= most:
        return tuple(front)
    places = np.linspace(0, len(front) - 1, most).round().astype(int)
    return tuple(front[place] for place in places)


def rows_of(study: Study) -> list[Row]:
    """Describe the chosen members of all runs that are done.

    There is no test accuracy until a member is retrained. A run that judged nothing within its
    budget has one row without a network.
    """
    tested, rows = _test_top1s(study), list[Row]()
    for seed in range(study.seeds):
        for arm in ARMS:
            folder = study.folder(arm, seed)
            if not _is_done(folder):
                continue
            front, trained = _front(folder)
            place = {"arm": arm, "seed": str(seed), "trained": str(trained), "front_size": "0"}
            place["img_size"] = str(study.img_size)
            rows += [] if front else [dict.fromkeys(COLUMNS, "") | place]
            for member in choose_members(front, study.members):
                top1 = tested.get(member.key)
                values = (
                    *(arm, seed, member.key, describe(member.architecture), member.macs),
                    *(member.params, member.fidelity, trained, len(front)),
                    *(f"{member.top1:.2f}", "" if top1 is None else f"{top1:.2f}", study.epochs),
                    study.img_size,
                )
                rows.append(dict(zip(COLUMNS, map(str, values), strict=True)))
    return rows


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write the results as CSV, whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def read_rows(path: Path) -> list[Row]:
    """Read what `write_rows` wrote."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def tables(rows: Sequence[Row]) -> str:
    """Write hypervolumes and best accuracies as Markdown: arms and differences by seeds."""
    done = {
        place: members
        for place, members in _by_place(rows).items()
        if all(member["test_top1"] or not member["key"] for member in members)
    }
    seeds = sorted({int(row["seed"]) for row in rows})
    measures: dict[str, Callable[[Sequence[Row]], float | None]] = {
        "hypervolume, % of the box": front_hypervolume,
        "best test top-1, %": best_top1,
    }
    return "\n\n".join(
        _table(name, {place: measure(_tested(members)) for place, members in done.items()}, seeds)
        for name, measure in measures.items()
    )


def front_hypervolume(members: Sequence[Row]) -> float:
    """Return the hypervolume of retrained networks in percent of the box; see the module."""
    if not members:
        return 0.0
    least, most = macs_range(int(members[0]["img_size"]))
    points = [(100 - float(row["test_top1"]), float(row["macs"])) for row in members]
    losses = np.array(points).reshape(-1, 2)
    box = CHANCE_ERROR * (most - least)
    return 100 * hypervolume(losses, np.array([CHANCE_ERROR, float(most)])) / box


@cache
def macs_range(img_size: int) -> tuple[int, int]:
    """Return the MACs of the cheapest and of the dearest network of the space."""
    space = load_space(SPACE).replace(num_classes=NUM_CLASSES, img_size=img_size)
    ends = (space.extreme("macs", largest=largest) for largest in (False, True))
    least, most = (count(end).macs for end in ends)
    return least, most


def best_top1(members: Sequence[Row]) -> float | None:
    """Return the best test accuracy of retrained networks in percent, if there are any."""
    return max((float(row["test_top1"]) for row in members), default=None)


def _tested(members: Sequence[Row]) -> list[Row]:
    return [member for member in members if member["test_top1"]]


def _table(name: str, values: Mapping[tuple[str, int], float | None], seeds: Sequence[int]) -> str:
    """Write a measure of fronts as a table; a front that is not done is a dash."""
    by_arm = {arm: [values.get((arm, seed)) for seed in seeds] for arm in ARMS}
    head = [name, *(f"seed {seed}" for seed in seeds), "mean", "95 % interval"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [_line(arm, found, ".2f") for arm, found in by_arm.items()]
    for arm, found in by_arm.items():
        if arm != BASELINE:
            pairs = zip(found, by_arm[BASELINE], strict=True)
            gains = [None if ours is None or its is None else ours - its for ours, its in pairs]
            lines.append(_line(f"{arm} - {BASELINE}", gains, "+.2f"))
    return "\n".join(lines)


def _line(label: str, values: Sequence[float | None], style: str) -> str:
    there = [value for value in values if value is not None]
    half = half_width(there)
    cells = ["-" if value is None else f"{value:{style}}" for value in values]
    cells.append(f"{statistics.fmean(there):{style}}" if there else "-")
    cells.append("-" if math.isnan(half) else f"± {half:.2f}")
    return f"| {' | '.join([label, *cells])} |"


def half_width(values: Sequence[float]) -> float:
    """Return half of the 95 % interval of the mean (Student's t); NaN for less than two values."""
    if len(values) < 2:
        return math.nan
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return float(student.ppf(0.975, len(values) - 1)) * spread


def _by_place(rows: Sequence[Row]) -> dict[tuple[str, int], list[Row]]:
    found: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        found.setdefault((row["arm"], int(row["seed"])), []).append(row)
    return found


def _search(study: Study, arm: str, seed: int) -> None:
    """Make a run, or go on with it, unless it is done."""
    folder = study.folder(arm, seed)
    if _is_done(folder):
        return
    if _is_begun(folder):
        _command("run", "--resume", "--out", folder)
        return
    # What was left before the record was complete, e.g. while images were decoded.
    shutil.rmtree(folder, ignore_errors=True)
    what = ("--data", study.data, "--img-size", study.img_size, "--space", SPACE, "--seed", seed)
    _command("run", *ARMS[arm], *what, "--budget", study.budget, "--out", folder)


def _retrain(study: Study, arm: str, seed: int) -> None:
    """Retrain the chosen members of a front that no other front has had retrained."""
    folder, tested = study.folder(arm, seed), _test_top1s(study)
    chosen = choose_members(_front(folder)[0], study.members)
    ids = [member.id for member in chosen if member.key not in tested]
    if ids:
        how = ("--recipe", RECIPE, "--epochs", study.epochs, "--seed", RETRAIN_SEED)
        _command("retrain", folder, *(word for id_ in ids for word in ("--arch", id_)), *how)


def _command(*words: object) -> None:
    """Run a command of the program that lies beside this script, with all that it prints."""
    texts = [str(word) for word in words]
    # A budget is time, so how busy the machine was belongs to the log.
    print(
        f"{datetime.now(UTC):%H:%M:%S}, load {os.getloadavg()[0]:.1f} $ search", *texts, flush=True
    )
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "search", *texts]
    with subprocess.Popen(command, env=environment) as process:
        try:
            status = process.wait()
        except BaseException:
            process.terminate()
            raise
    if status:
        what = f"search {' '.join(texts)}"
        raise SystemExit(f"{what} ended with status {status}. Started again, the study goes on.")


def _is_begun(folder: Path) -> bool:
    """Tell whether a run's record says what was asked, so that it can be resumed."""
    if not (folder / RECORD).is_file():
        return False
    with closing(sqlite3.connect(folder / RECORD)) as connection:
        if connection.execute("SELECT name FROM sqlite_master").fetchone() is None:
            return False
    with Record.open(folder / RECORD) as record:
        return record.get_meta("settings") is not None


def _is_done(folder: Path) -> bool:
    if not _is_begun(folder):
        return False
    with open_run(folder) as run:
        return bool(run.record.get_meta("phase") == "done")


def _front(folder: Path) -> tuple[tuple[Candidate, ...], int]:
    """Return what `search pareto` shows, by MACs, and how many networks were trained alone."""
    query = FrontQuery(sort="macs")
    with open_run(folder) as run:
        trials = trials_of(run)
        alone = [t for t in trials if t.state == "done" and is_trained_alone(t.fidelity)]
        front: tuple[Candidate, ...] = ()
        if searched_fidelities(trials):
            front = choose_rows(judged_by(run, query), query, objectives=run.settings.objectives)
    return front, len({trial.key for trial in alone})


def _test_top1s(study: Study) -> dict[str, float]:
    """Return the test accuracies of all networks that were retrained as the study asks, by key."""
    found = {}
    for path in sorted(study.out.glob(f"*/retrain/*/{RESULT_FILE}")):
        result = RetrainResult.from_dict(json.loads(path.read_text(encoding="utf-8")))
        how = (result.recipe, result.epochs, result.seed, result.start)
        if how == (RECIPE, study.epochs, RETRAIN_SEED, "fresh"):
            found[result.key] = result.accuracy.top1
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="CIFAR-10 as a folder or a tar, e.g. cifar10_25k.tar.xz")
    parser.add_argument("--budget", default="60cpu-minutes", help="of each run")
    parser.add_argument("--img-size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--epochs", type=int, default=20, help="of each retraining")
    parser.add_argument("--members", type=int, default=4, help="the most retrained of a front")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cores", type=int, help="to use; default: all that this process may use")
    parser.add_argument("--out", type=Path, default=Path("runs/strategies"))
    parser.add_argument("--csv", type=Path, help="of the results; default: strategies.csv in --out")
    parser.add_argument("--table", action="store_true", help="only print the table of --csv")
    return parser


def _study(arguments: argparse.Namespace) -> Study:
    names = ("data", "budget", "img_size", "epochs", "members", "seeds", "out")
    values: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    cores = count_cores() if arguments.cores is None else arguments.cores
    return Study(**values, cores=cores)


def _prepare(study: Study) -> None:
    """Take the cores, and check that a study that goes on is the same one."""
    allowed = sorted(os.sched_getaffinity(0))
    if study.cores > len(allowed):
        raise ValueError(
            f"This process may use {len(allowed)} cores, got --cores {study.cores}. Ask for fewer."
        )
    os.sched_setaffinity(0, allowed[: study.cores])
    # Seeds may be added to a study that has begun.
    fixed = {**asdict(study), "data": Path(study.data).name}
    fixed = {name: value for name, value in fixed.items() if name not in ("out", "seeds")}
    study.out.mkdir(parents=True, exist_ok=True)
    path = study.out / "study.json"
    if path.is_file():
        if json.loads(path.read_text())["settings"] != fixed:
            raise ValueError(
                f"{study.out} holds a study with other settings, see {path}. Choose another --out."
            )
        return
    about = {
        "settings": fixed,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {study.cores} used",
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }
    partial = path.with_name("study.json.partial")
    partial.write_text(json.dumps(about, indent=2) + "\n")
    partial.replace(path)


if __name__ == "__main__":
    main()
