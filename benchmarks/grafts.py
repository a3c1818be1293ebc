"""What is a graft worth? Rankings, fronts, what it costs, and distillation alone. Resumable.

    python benchmarks/grafts.py rank RUN --networks 16 --epochs 20 --csv rank.csv
    python benchmarks/grafts.py cheaper RUN --share 0.75 --seeds 3 --csv cheaper.csv
    python benchmarks/grafts.py fronts GRAFT SCRATCH GRAFT1 SCRATCH1 --members 5 --csv fronts.csv
    python benchmarks/grafts.py fronts GRAFT SCRATCH --epochs 8 --longer 30 --csv fronts.csv
    python benchmarks/grafts.py taught RUN --teacher TEACHER --seeds 3 --members 5 --csv taught.csv
    python benchmarks/grafts.py taught RUN RUN1 RUN2 --teacher TEACHER --csv taught.csv

``RUN`` and ``GRAFT`` are folders of finished grafts (``search run --from``; of ``taught``: of a
search from noise), ``SCRATCH`` of a search from noise. All trainings are ``search retrain``: what
was trained before is not repeated, the test split is read once for each. The rows are written to
the CSV file as they come; with ``--table`` only what is there is summarised.

- ``rank`` (G1): random networks of the graft, from one replacement to all places, are healed; tau
  of the sum of scores, of that sum with pairs, of KL and accuracy as assembled (on the search
  split, as the run judges), of parameters and of MACs against their test accuracy, with 95 %
  bootstrap intervals, over all and in the top third. With two seeds or more also how well the order
  of the second agrees with that of the first: no estimate can be expected to do better.
- ``cheaper`` (G3): the best network by the sum within a share of the teacher's MACs, and the
  teacher itself trained on alike; the difference in points, paired by seed.
- ``fronts`` (G2): the members of both fronts, retrained alike; the hypervolume of (test error,
  MACs) with the reference point (90 %, MACs of the dearest member), in percent. Each pair of runs
  is a seed, whose retrainings have its number, from ``--first-seed`` on. ``--longer`` counts the
  teacher's training: the members from noise are retrained for so many epochs as well.
- ``taught``: a front's members with and without a teacher, with the same recipe and seeds, or
  with another ``--recipe`` beside the teacher. Of several runs each is a seed.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from scipy.stats import t as student

from search.front import FrontQuery, choose_rows, judged_by, retarget
from search.grafting import KL, GraftScores, graft_networks, graft_scores
from search.record import Measured
from search.results import hypervolume
from search.retraining.wanted import RetrainPlan
from search.run_folder import DATA, RunFolder, open_run, own_run
from search.trust.ranking import compare
from search.workers.graft_worker import GraftEvaluator, make_graft_job
from searchspace.architecture import Architecture
from searchspace.cost import count
from searchspace.space import SearchSpace
from supernet.data import open_data

CHANCE = 90.0
ARMS = ("graft", "scratch", "longer")
# What no estimate can be expected to exceed: healing the same networks again.
AGREEMENT = "healed with another seed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One network after one training."""

    arm: str
    id: int
    seed: int
    top1: float
    macs: int
    params: int


def trained(run: Path, number: int, seed: int, words: Sequence[str]) -> float:
    """Retrain a network, unless that is done, and return its accuracy on the test split."""
    command = [sys.executable, "-m", "search", "retrain", str(run), "--arch", str(number)]
    subprocess.run([*command, "--seed", str(seed), *words], check=True)
    options = dict(zip(words[::2], words[1::2], strict=True))
    with open_run(run) as folder:
        given = RetrainPlan(
            recipe=options.get("--recipe") or folder.settings.retrain_recipe,
            epochs=int(options["--epochs"]),
        )
        label = given.label(given.load_recipe())
        is_taught = "--teacher" in options or folder.teacher is not None
        found = [
            trial.measured.top1
            for trial in folder.record.trials(state="done")
            if (trial.architecture_id, trial.seed) == (number, seed)
            and f"{trial.fidelity}-".startswith(f"retrain-{label}-")
            and ("taught-by" in trial.fidelity) == is_taught
        ]
    return found[-1]


class Rows:
    """The rows of a study, in a file that grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: list[Row] = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                self.rows = [_row(line) for line in csv.DictReader(file)]

    def has(self, arm: str, number: int, seed: int) -> bool:
        """Tell whether a training is there."""
        return any((row.arm, row.id, row.seed) == (arm, number, seed) for row in self.rows)

    def add(self, row: Row) -> None:
        """Write a row at once."""
        is_new = not self._path.is_file()
        with self._path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(asdict(row)))
            if is_new:
                writer.writeheader()
            writer.writerow(asdict(row))
        self.rows.append(row)


def _row(line: dict[str, str]) -> Row:
    return Row(
        arm=line["arm"],
        id=int(line["id"]),
        seed=int(line["seed"]),
        top1=float(line["top1"]),
        macs=int(line["macs"]),
        params=int(line["params"]),
    )


def train_all(
    rows: Rows,
    arm: str,
    run: Path,
    numbers: Sequence[int],
    seeds: Iterable[int],
    words: Sequence[str],
) -> None:
    """Train networks with every seed, one seed after the other."""
    for seed in seeds:
        for number in numbers:
            if rows.has(arm, number, seed):
                continue
            top1 = trained(run, number, seed, words)
            with open_run(run) as folder:
                cost = count(folder.architecture(number))
            rows.add(
                Row(arm=arm, id=number, seed=seed, top1=top1, macs=cost.macs, params=cost.params)
            )


def teacher_of(run: RunFolder) -> Architecture:
    """Return what a graft began with."""
    if run.teacher is None:
        raise ValueError(f"{run.folder} is no graft. Name one of `search run --from`.")
    return run.teacher.architecture


def numbered(run: Path, networks: Sequence[Architecture]) -> list[int]:
    """Give networks their ids in a run's record."""
    with own_run(run) as folder:
        costs = [count(network) for network in networks]
        return [
            folder.record.add_architecture(network, params=cost.params, macs=cost.macs)
            for network, cost in zip(networks, costs, strict=True)
        ]


def drawn(space: SearchSpace, scores: GraftScores, number: int) -> list[Architecture]:
    """Draw networks whose parts are all scored."""
    rng = random.Random("grafts/rank")
    found = graft_networks(space, scores.teacher, number=4 * number, rng=rng)
    known = [network for network in found if scores.estimates(network)]
    return known[:: max(len(known) // number, 1)][:number]


def rank(options: argparse.Namespace, rows: Rows) -> Iterator[str]:
    """Measure G1."""
    run: Path = options.run
    with open_run(run) as folder:
        scores = graft_scores(folder.record.trials(), teacher_of(folder))
        networks = drawn(folder.space(), scores, options.networks)
    numbers = numbered(run, networks)
    if not options.table:
        train_all(
            rows, "healed", run, numbers, range(options.seeds), ("--epochs", str(options.epochs))
        )
    by_id = {row.id: [r.top1 for r in rows.rows if r.id == row.id] for row in rows.rows}
    known = [(n, a) for n, a in zip(numbers, networks, strict=True) if n in by_id]
    healed = [float(np.mean(by_id[number])) for number, _ in known]
    columns = {
        name: [scores.estimates(network)[name] for _, network in known]
        for name in scores.estimates(scores.teacher)
    }
    judged = as_assembled(run, [network for _, network in known])
    columns[KL] = [-one.kl for one in judged]
    columns["accuracy as assembled"] = [one.top1 for one in judged]
    columns["params"] = [float(count(network).params) for _, network in known]
    columns["macs"] = [float(count(network).macs) for _, network in known]
    by_seed = [
        [r.top1 for n, _ in known for r in rows.rows if (r.id, r.seed) == (n, seed)]
        for seed in (0, 1)
    ]
    if len(by_seed[0]) == len(by_seed[1]):
        columns[AGREEMENT] = by_seed[1]
    yield "| estimate | tau | 95 % | in the top third | networks |\n|---|---:|---:|---:|---:|"
    for name, values in columns.items():
        against = by_seed[0] if name == AGREEMENT else healed
        found = compare(name, values, against, rng=np.random.default_rng(0))
        tau, top = found.tau, found.top_tau
        interval = "" if tau.low is None else f"{tau.low:.2f} to {tau.high:.2f}"
        said = "" if top.tau is None else f"{top.tau:.2f}"
        yield f"| {name} | {tau.tau or 0:.2f} | {interval} | {said} | {tau.num_points} |"


def as_assembled(run: Path, networks: Sequence[Architecture]) -> list[Measured]:
    """Judge networks of parts before they are healed, as the judges of the run do."""
    with open_run(run) as folder:
        split = folder.state.library
        assert split is not None
        data = open_data(folder.folder / DATA)
        job = replace(make_graft_job(folder.settings, folder.folder, data), shares=split[0])
        evaluator = GraftEvaluator(job, job.library())
        return [evaluator.judge(network) for network in networks]


def cheaper(options: argparse.Namespace, rows: Rows) -> Iterator[str]:
    """Measure G3."""
    run: Path = options.run
    words = ("--epochs", str(options.epochs))
    with own_run(run) as folder:
        teacher = teacher_of(folder)
        limit = options.share * count(teacher).macs
        chosen = retarget(folder, {"macs": limit}, None)[0].id
    (own,) = numbered(run, [teacher])
    if not options.table:
        for arm, number in (("teacher", own), ("graft", chosen)):
            train_all(rows, arm, run, [number], range(options.seeds), words)
    yield from _differences(rows, "teacher", "graft", f"lost at {options.share:g} of the MACs")


def taught(options: argparse.Namespace, rows: Rows) -> Iterator[str]:
    """Measure distillation alone."""
    runs: list[Path] = [options.run, *options.others]
    words = ("--epochs", str(options.epochs))
    more = (*words, "--teacher", str(options.teacher))
    more += ("--recipe", options.recipe) if options.recipe else ()
    for number, run in enumerate(runs, options.first_seed):
        if not options.table:
            seeds = [number] if options.others else range(options.seeds)
            chosen = members(run, options.members)
            train_all(rows, "labels", run, chosen, seeds, words)
            train_all(rows, "taught", run, chosen, seeds, more)
    yield from _differences(rows, "taught", "labels", "gained with the teacher")


def fronts(options: argparse.Namespace, rows: Rows) -> Iterator[str]:
    """Measure G2."""
    runs: list[Path] = [options.run, *options.others]
    if len(runs) % 2:
        raise ValueError(f"Name a graft and a search from noise for each seed, got {len(runs)}.")
    pairs = list(zip(runs[::2], runs[1::2], strict=True))
    arms = ARMS if options.longer else ARMS[:2]
    whole: dict[tuple[str, int], list[int]] = {}
    for seed, (graft, scratch) in enumerate(pairs, options.first_seed):
        for arm, run in zip(arms, (graft, scratch, scratch), strict=False):
            epochs = options.longer if arm == "longer" else options.epochs
            whole[arm, seed] = members(run, options.members)
            if not options.table:
                train_all(rows, arm, run, whole[arm, seed], [seed], ("--epochs", str(epochs)))
    boxes = {arm: _boxes(rows, arm, whole) for arm in arms}
    yield "| arm | hypervolume % by seed |\n|---|---|"
    for arm, found in boxes.items():
        seeds = sorted({seed for name, seed in whole if name == arm})
        by_seed = (f"{found[seed]:.2f}" if seed in found else "-" for seed in seeds)
        yield f"| {arm} | {', '.join(by_seed)} |"
    for arm in arms[1:]:
        there = sorted(boxes["graft"].keys() & boxes[arm].keys())
        gains = [boxes["graft"][seed] - boxes[arm][seed] for seed in there]
        if gains:
            yield _mean_of(gains, f"hypervolume of the graft above {arm}")


def _boxes(rows: Rows, arm: str, whole: Mapping[tuple[str, int], list[int]]) -> dict[int, float]:
    """Return the hypervolume of an arm's whole fronts, in percent of the box of all rows."""
    dearest = max((row.macs for row in rows.rows), default=1)
    found = {}
    for seed in (seed for name, seed in whole if name == arm):
        wanted = whole[arm, seed]
        own = [r for r in rows.rows if (r.arm, r.seed) == (arm, seed) and r.id in wanted]
        if len(own) < len(wanted):
            continue
        points = np.array([(100 - row.top1, row.macs) for row in own], dtype=float)
        box = hypervolume(points, np.array([CHANCE, dearest]))
        found[seed] = 100 * box / (CHANCE * dearest)
    return found


def members(run: Path, number: int) -> list[int]:
    """Return members of the front, evenly by their rank in MACs, with both ends."""
    with open_run(run) as folder:
        query = FrontQuery()
        found = choose_rows(judged_by(folder, query), query, objectives=folder.settings.objectives)
    places = np.linspace(0, len(found) - 1, min(number, len(found))).round().astype(int)
    return [found[place].id for place in dict.fromkeys(places.tolist())]


def _differences(rows: Rows, one: str, two: str, what: str) -> Iterator[str]:
    """Say by how many points the first arm is above the second, paired by seed."""
    seeds = sorted({row.seed for row in rows.rows})
    means = {
        (arm, seed): [r.top1 for r in rows.rows if (r.arm, r.seed) == (arm, seed)]
        for arm in (one, two)
        for seed in seeds
    }
    gains = [
        float(np.mean(means[one, seed]) - np.mean(means[two, seed]))
        for seed in seeds
        if 0 < len(means[one, seed]) == len(means[two, seed])
    ]
    if not gains:
        return
    yield _mean_of(gains, what)


def _mean_of(gains: Sequence[float], what: str) -> str:
    """Give a mean with its 95 % interval by Student's t."""
    half = float("nan")
    if len(gains) > 1:
        half = float(student.ppf(0.975, len(gains) - 1) * np.std(gains, ddof=1) / len(gains) ** 0.5)
    by_seed = ", ".join(f"{gain:+.2f}" for gain in gains)
    return f"Points {what}: {np.mean(gains):+.2f} (95 % +-{half:.2f}; by seed {by_seed})"


STUDIES = {"rank": rank, "cheaper": cheaper, "fronts": fronts, "taught": taught}


def main() -> None:
    """Do what is left of a study, and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("run", type=Path)
    parser.add_argument("others", type=Path, nargs="*")
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--networks", type=int, default=16)
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--longer", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0, help="Of the first run or pair.")
    parser.add_argument("--share", type=float, default=0.75)
    parser.add_argument("--teacher")
    parser.add_argument(
        "--recipe", help="Of the arm with the teacher, e.g. a heavier distillation."
    )
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    rows = Rows(options.csv)
    for line in STUDIES[options.study](options, rows):
        print(line)
    print(json.dumps({"study": options.study, "trainings": len(rows.rows)}))


if __name__ == "__main__":
    main()
