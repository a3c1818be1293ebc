"""Which strategy finds the better front with the same budget? Runs for hours; resumable.

    nohup python benchmarks/compare_strategies.py --data cifar10_25k.tar.xz > study.log 2>&1 &
    python benchmarks/compare_strategies.py --table       # of what is there
    python benchmarks/compare_strategies.py --table --csv CSV   # of a finished study

For every seed each arm has the same budget, images, space and objectives (top1 and macs):

- ``supernet``: ``search run`` with the program's defaults; shared weights judge proposals.
- ``proxy``: ``search run --strategy proxy``; every network is trained alone.
- ``nsga2``, ``tpe``: what one would write in an afternoon (``benchmarks/afternoon.py``): Ray Tune
  with Optuna's samplers as they are, each trial trains alone for ``--trial-epochs``.
- ``random``: the same script with random networks.
- ``single``: no search, and no budget: windows, neighbourhood attention, inhomogeneous and
  depth-wise convolution (3, 5, 7) and ELSA everywhere, as far as the space has them, at three sizes
  from its smallest stages to its largest. All of them are retrained, which no other arm is given.

The front of a run is what ``search pareto`` shows; that of the script is among its finished trials.
At most ``--members`` of a front, evenly by their rank in MACs and with both ends, are retrained
from fresh weights with the same recipe and epochs on train and search together; the test split is
read once for each. The seed of the retraining is that of the run: arms are paired by it. A network
that several arms of a seed have is retrained once for it.

A front's hypervolume is that of its retrained members in the box between (0 %, the cheapest network
of the space) and (the error of chance, the dearest), in percent: once over MACs, once over their
logarithm, in which twice the cost is as far for small networks as for large ones. A run that judged
nothing within its budget has 0. Intervals are 95 % intervals of the mean over seeds by Student's t;
differences are paired by seed. Other columns are in ``runs.csv``: device-seconds until the front of
the run's own judgements was within 1 % of its final hypervolume, and the horizon's tau.

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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from scipy.stats import kendalltau
from scipy.stats import t as student

from benchmarks.study_singles import single_networks
from search.budget import count_cores, parse_budget
from search.front.query import FrontQuery, choose_rows, judged_by, recipe_epochs, trials_of
from search.plan import PHASES
from search.record.record import Record
from search.report.payload import hypervolume_payload
from search.results.candidates import searched_fidelities, shown_fidelity
from search.results.dominance import hypervolume, non_dominated
from search.results.fidelity import is_trained_alone, trained_alone
from search.retraining.model_card import RetrainResult
from search.retraining.network import RetrainOptions, retrain
from search.retraining.out_folder import RESULT_FILE
from search.run_folder.folder import RECORD, open_run
from search.trust import horizon_report
from searchspace.architecture import Architecture, describe
from searchspace.cost import count
from searchspace.space import SearchSpace
from searchspace.spec_file import load_space
from supernet.data import open_data, prepare_data
from supernet.recipes import load_recipe, with_epochs

T = TypeVar("T")
ROOT = Path(__file__).parents[1]
Row = Mapping[str, str]

# What `search run` is given; without words an arm is no search of ours.
ARMS: Mapping[str, tuple[str, ...]] = {
    "supernet": ("--strategy", "supernet"),
    "proxy": ("--strategy", "proxy"),
    "nsga2": (),
    "tpe": (),
    "random": (),
    "single": (),
}
AFTERNOON = ("nsga2", "tpe", "random")
BASELINE, SINGLE = "supernet", "single"
# Of rows that do not say them, which are of 2026-11-21.
SPACE, RECIPE, NUM_CLASSES = "micro", "micro", 10
DONE_SHARE = 0.99
# A single mixer of so many times the MACs is no dearer.
NEAR_COST = 1.1
# trained: networks that the run trained alone; front_size: members before some were chosen.
COLUMNS = (
    *("arm", "seed", "key", "mixers", "macs", "params", "fidelity", "trained", "front_size"),
    *("searched_top1", "test_top1", "epochs", "img_size", "space", "num_classes"),
)
RUN_COLUMNS = (
    *("arm", "seed", "trained", "spent_seconds", "until_final_seconds"),
    *("horizon_epochs", "horizon_tau", "horizon_networks", "forecast_error", "last_value_error"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """What is compared.

    Attributes:
        data: Source of the images.
        space: What is searched.
        recipe: Of the retrainings.
        budget: Of each run, as typed.
        img_size: Side in pixels that images are scaled to; smaller ones make networks cheaper.
        epochs: Of each retraining.
        trial_epochs: Of each trial of the afternoon's script.
        members: The most that are retrained of a front; at least 2.
        sizes: Of each single mixer.
        seeds: Of the runs, 0 to this, exclusive.
        cores: That every command may use.
        out: Folder of the runs.
    """

    data: str
    space: str = SPACE
    recipe: str = RECIPE
    budget: str
    img_size: int
    epochs: int
    trial_epochs: int = 4
    members: int
    sizes: int = 3
    seeds: int
    cores: int
    out: Path

    def __post_init__(self) -> None:
        parse_budget(self.budget)
        at_least = (("epochs", 1), ("trial_epochs", 1), ("members", 2), ("sizes", 1))
        for name, least in (*at_least, ("seeds", 1), ("cores", 1)):
            if getattr(self, name) < least:
                option, given = name.replace("_", "-"), getattr(self, name)
                raise ValueError(f"--{option} must be at least {least}, got {given}. Give more.")

    def folder(self, arm: str, seed: int) -> Path:
        """Name the folder of a run."""
        return self.out / f"{arm}-s{seed}"

    @property
    def images(self) -> Path:
        """Where the prepared images of the retrainings are."""
        return self.out / "data"

    def prepare(self) -> SearchSpace:
        """Prepare the images, unless that is done; return the space with their size and classes."""
        space = load_space(self.space).replace(img_size=self.img_size)
        data = prepare_data(self.data, img_size=self.img_size, folder=self.images)
        return space.replace(num_classes=data.num_classes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A network of a front, as its search has judged it; a single mixer was not judged."""

    architecture: Architecture
    fidelity: str = ""
    top1: float = math.nan

    @property
    def key(self) -> str:
        """Of the architecture."""
        return self.architecture.key


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What an arm has found with a seed.

    Attributes:
        front: By rising MACs.
        trained: Networks that were trained alone.
        run: What stands in `RUN_COLUMNS` beside arm and seed.
    """

    front: tuple[Member, ...]
    trained: int
    run: Mapping[str, str]


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
            write_results(study, path)
        for _ in _retrain(study, _to_retrain(study, seed), seed):
            write_results(study, path)


def write_results(study: Study, path: Path) -> None:
    """Write what is there: a row a network, and a row a run beside them."""
    write_rows(path, rows_of(study))
    write_rows(path.with_name("runs.csv"), runs_of(study), RUN_COLUMNS)


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
    rows = list[Row]()
    for arm, seed, found in _all_found(study):
        place = {"arm": arm, "seed": str(seed), "trained": str(found.trained), "front_size": "0"}
        place |= {"img_size": str(study.img_size), "space": study.space}
        rows += [] if found.front else [dict.fromkeys(COLUMNS, "") | place]
        for member in _chosen(study, arm, found):
            tested, cost = _tested_top1(study, member, seed), count(member.architecture)
            values = (
                *(arm, seed, member.key, describe(member.architecture), cost.macs, cost.params),
                *(member.fidelity, found.trained, len(found.front)),
                *(_number(member.top1), _number(tested), study.epochs, study.img_size),
                *(study.space, member.architecture.num_classes),
            )
            rows.append(dict(zip(COLUMNS, map(str, values), strict=True)))
    return rows


def runs_of(study: Study) -> list[Row]:
    """Describe the runs that are done."""
    return [
        dict.fromkeys(RUN_COLUMNS, "") | {"arm": arm, "seed": str(seed)} | dict(found.run)
        for arm, seed, found in _all_found(study)
        if arm != SINGLE
    ]


def _all_found(study: Study) -> Iterable[tuple[str, int, Found]]:
    for seed in range(study.seeds):
        for arm in ARMS:
            found = _found(study, arm, seed)
            if found is not None:
                yield arm, seed, found


def _chosen(study: Study, arm: str, found: Found) -> tuple[Member, ...]:
    """Choose what is retrained of a front; of single mixers all, for nobody knows the best."""
    return found.front if arm == SINGLE else choose_members(found.front, study.members)


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def write_rows(path: Path, rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> None:
    """Write results as CSV, whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def read_rows(path: Path) -> list[Row]:
    """Read what `write_rows` wrote."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def tables(rows: Sequence[Row]) -> str:
    """Write all measures as Markdown: arms and differences by seeds."""
    done = {
        place: _tested(members)
        for place, members in _by_place(rows).items()
        if all(member["test_top1"] or not member["key"] for member in members)
    }
    seeds = sorted({int(row["seed"]) for row in rows})
    arms = [arm for arm in ARMS if arm in {row["arm"] for row in rows}]
    measures: dict[str, Callable[[Sequence[Row]], float | None]] = {
        "hypervolume, % of the box": front_hypervolume,
        "hypervolume over log MACs, % of the box": log_hypervolume,
        "best test top-1, %": best_top1,
    }
    found = {
        name: {place: measure(members) for place, members in done.items()}
        for name, measure in measures.items()
    }
    if SINGLE in arms:
        found[f"best test top-1 above the best single mixer of its MACs, % (to {NEAR_COST:g}x)"] = {
            (arm, seed): gain_over_single(members, done.get((SINGLE, seed), []))
            for (arm, seed), members in done.items()
            if arm != SINGLE
        }
    parts = [_table(name, values, arms, seeds) for name, values in found.items()]
    return "\n\n".join([*parts, _agreement(done, arms)] if SINGLE in arms else parts)


def front_hypervolume(members: Sequence[Row]) -> float:
    """Return the hypervolume of retrained networks in percent of the box; see the module."""
    return _hypervolume(members, lambda macs: macs)


def log_hypervolume(members: Sequence[Row]) -> float:
    """Return the same over the logarithm of MACs."""
    return _hypervolume(members, math.log)


def _hypervolume(members: Sequence[Row], scale: Callable[[float], float]) -> float:
    if not members:
        return 0.0
    first = members[0]
    num_classes = int(first.get("num_classes") or NUM_CLASSES)
    ends = macs_range(first.get("space") or SPACE, int(first["img_size"]), num_classes)
    least, most = map(scale, map(float, ends))
    chance = 100 * (1 - 1 / num_classes)
    points = [(100 - float(row["test_top1"]), scale(float(row["macs"]))) for row in members]
    losses = np.array(points).reshape(-1, 2) - np.array([0.0, least])
    box = chance * (most - least)
    return 100 * hypervolume(losses, np.array([chance, most - least])) / box


@cache
def macs_range(name: str, img_size: int, num_classes: int) -> tuple[int, int]:
    """Return the MACs of the cheapest and of the dearest network of a space."""
    space = load_space(name).replace(num_classes=num_classes, img_size=img_size)
    ends = (space.extreme("macs", largest=largest) for largest in (False, True))
    least, most = (count(end).macs for end in ends)
    return least, most


def gain_over_single(members: Sequence[Row], singles: Sequence[Row]) -> float | None:
    """Return how much more accurate the best network is than single mixers of its cost."""
    best = max(members, key=lambda row: float(row["test_top1"]), default=None)
    if best is None:
        return None
    most = NEAR_COST * float(best["macs"])
    rivals = [float(row["test_top1"]) for row in singles if float(row["macs"]) <= most]
    return float(best["test_top1"]) - max(rivals) if rivals else None


def _agreement(done: Mapping[tuple[str, int], Sequence[Row]], arms: Sequence[str]) -> str:
    """Say how the order of the searched accuracies agrees with that of the retrained ones."""
    lines = ["| order of search and retraining | Kendall's tau, mean over fronts | fronts |"]
    lines.append("|---|---|---|")
    for arm in (name for name in arms if name != SINGLE):
        taus = [_tau(front) for (name, _), front in done.items() if name == arm and len(front) > 2]
        there = [tau for tau in taus if not math.isnan(tau)]
        if there:
            lines.append(f"| {arm} | {statistics.fmean(there):.2f} | {len(there)} |")
    return "\n".join(lines)


def _tau(front: Sequence[Row]) -> float:
    searched, tested = (
        [float(row[name]) for row in front] for name in ("searched_top1", "test_top1")
    )
    return float(kendalltau(searched, tested)[0])


def best_top1(members: Sequence[Row]) -> float | None:
    """Return the best test accuracy of retrained networks in percent, if there are any."""
    return max((float(row["test_top1"]) for row in members), default=None)


def _tested(members: Sequence[Row]) -> list[Row]:
    return [member for member in members if member["test_top1"]]


def _table(
    name: str,
    values: Mapping[tuple[str, int], float | None],
    arms: Sequence[str],
    seeds: Sequence[int],
) -> str:
    """Write a measure of fronts as a table; a front that is not done is a dash."""
    by_arm = {arm: [values.get((arm, seed)) for seed in seeds] for arm in arms}
    head = [name, *(f"seed {seed}" for seed in seeds), "mean", "95 % interval"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [_line(arm, found, ".2f") for arm, found in by_arm.items()]
    for arm, found in by_arm.items():
        if arm != BASELINE and BASELINE in by_arm:
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
    if arm == SINGLE or _is_done(folder, arm):
        return
    if arm not in AFTERNOON and _is_begun(folder):
        _command("run", "--resume", "--out", folder)
        return
    # What was left before the record was complete, e.g. while images were decoded; a script of an
    # afternoon cannot go on.
    shutil.rmtree(folder, ignore_errors=True)
    what = ("--data", study.data, "--img-size", study.img_size, "--space", study.space)
    what = (*what, "--seed", seed, "--budget", study.budget)
    if arm in AFTERNOON:
        how = ("--sampler", arm, "--epochs", study.trial_epochs, "--cores", study.cores)
        _command("afternoon", *how, *what, "--out", folder)
    else:
        _command("run", *ARMS[arm], *what, "--recipe", study.recipe, "--out", folder)


def _found(study: Study, arm: str, seed: int) -> Found | None:
    """Read what an arm has found; None before it is done."""
    if arm == SINGLE:
        if not study.images.is_dir():
            return None
        networks = sorted(
            single_networks(study.prepare(), study.sizes), key=lambda one: count(one).macs
        )
        return Found(front=tuple(Member(architecture=one) for one in networks), trained=0, run={})
    folder = study.folder(arm, seed)
    if not _is_done(folder, arm):
        return None
    return _found_by_script(folder) if arm in AFTERNOON else _found_by_run(folder)


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


def _retrain(study: Study, members: Sequence[Member], seed: int) -> Iterator[None]:
    """Retrain networks with a seed, a process on each core; yield whenever one is done."""
    tasks = [(study, member.architecture, seed) for member in members]
    print(f"{datetime.now(UTC):%H:%M:%S}: {len(tasks)} networks are retrained", flush=True)
    with get_context("spawn").Pool(study.cores) as pool:
        for said in pool.imap_unordered(_retrain_here, tasks):
            load = os.getloadavg()[0]
            print(f"{datetime.now(UTC):%H:%M:%S}, load {load:.1f}: {said}", flush=True)
            yield


def _retrain_here(task: tuple[Study, Architecture, int]) -> str:
    study, architecture, seed = task
    out = _retrained_folder(study, architecture.key, seed)
    recipe = with_epochs(load_recipe(study.recipe), study.epochs)
    options = RetrainOptions(out=out, seed=seed, threads=1)
    result = retrain(architecture, open_data(study.images), recipe, options)
    what = f"{architecture.key} with seed {seed}, {describe(architecture)}"
    return f"{what}: {result.accuracy.top1:.2f} % after {result.seconds:.0f} s"


def _retrained_folder(study: Study, key: str, seed: int) -> Path:
    return study.out / "retrained" / f"{key}-s{seed}"


def _tested_top1(study: Study, member: Member, seed: int) -> float:
    """Return the test accuracy of a network that was retrained with a seed; else NaN."""
    path = _retrained_folder(study, member.key, seed) / RESULT_FILE
    if not path.is_file():
        return math.nan
    result = RetrainResult.from_dict(json.loads(path.read_text(encoding="utf-8")))
    return result.accuracy.top1


def _to_retrain(study: Study, seed: int) -> list[Member]:
    """List the networks of a seed that are to be retrained still, each once."""
    wanted: dict[str, Member] = {}
    for arm in ARMS:
        found = _found(study, arm, seed)
        for member in () if found is None else _chosen(study, arm, found):
            wanted.setdefault(member.key, member)
    return [m for m in wanted.values() if math.isnan(_tested_top1(study, m, seed))]


def _command(*words: object) -> None:
    """Run a command of the program that lies beside this script, with all that it prints."""
    texts = [str(word) for word in words]
    script = ROOT / "benchmarks" / "afternoon.py"
    is_script = texts[0] == "afternoon"
    # A budget is time, so how busy the machine was belongs to the log.
    print(
        f"{datetime.now(UTC):%H:%M:%S}, load {os.getloadavg()[0]:.1f} $ search", *texts, flush=True
    )
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    program = [str(script), *texts[1:]] if is_script else ["-m", "search", *texts]
    command = [sys.executable, *program]
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


def _is_done(folder: Path, arm: str) -> bool:
    if arm in AFTERNOON:
        return (folder / "trials.json").is_file()
    if not _is_begun(folder):
        return False
    with open_run(folder) as run:
        return bool(run.record.get_meta("phase") == "done")


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="CIFAR-10 as a folder or a tar, e.g. cifar10_25k.tar.xz")
    parser.add_argument("--budget", default="60cpu-minutes", help="of each run")
    parser.add_argument("--space", default=SPACE, help="that is searched")
    parser.add_argument("--recipe", default=RECIPE, help="of the retrainings")
    parser.add_argument("--img-size", type=int, help="side in pixels; default: the space's")
    parser.add_argument("--trial-epochs", type=int, default=4, help="of the afternoon's trials")
    parser.add_argument("--sizes", type=int, default=3, help="of each single mixer")
    parser.add_argument("--epochs", type=int, default=20, help="of each retraining")
    parser.add_argument("--members", type=int, default=4, help="the most retrained of a front")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cores", type=int, help="to use; default: all that this process may use")
    parser.add_argument("--out", type=Path, default=Path("runs/strategies"))
    parser.add_argument("--csv", type=Path, help="of the results; default: strategies.csv in --out")
    parser.add_argument("--table", action="store_true", help="only print the table of --csv")
    return parser


def _study(arguments: argparse.Namespace) -> Study:
    names = ("data", "space", "recipe", "budget", "img_size", "epochs", "trial_epochs")
    names = (*names, "members", "sizes", "seeds", "out")
    values: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    if values["img_size"] is None:
        values["img_size"] = load_space(values["space"]).img_size
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
    study.prepare()
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
