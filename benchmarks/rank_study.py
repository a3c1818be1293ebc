"""A rank-correlation study: how estimators rank networks that are also trained alone.

Each piece of work is a job with a name; what is done is a line in ``results.jsonl``, what is under
way has a checkpoint, so the study can be killed at any moment and started again. The table of all
results is small enough to be kept beside the documentation and analysed without training.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from search.trust.predictor import MIN_NETWORKS, cross_validated
from search.trust.ranking import PREDICTOR, EstimatorTrust, compare
from searchspace.architecture import Architecture, describe
from searchspace.cost import count
from searchspace.space import SearchSpace
from searchspace.spec_file import load_space
from supernet.data import ImageData, open_data
from supernet.measuring.proxies import proxy_scores
from supernet.mixers.weight_sharing import PROJECTIONS, WeightSharing
from supernet.network.supernet import build_subnet, extract
from supernet.recipes.recipe import load_recipe, with_epochs
from supernet.shared_weights.checkpoint import load_supernet
from supernet.shared_weights.strategies import STRATEGIES, check_strategy
from supernet.shared_weights.trainer import SupernetTrainer
from supernet.training.batches import eval_batches, steps_per_epoch
from supernet.training.calibration import calibration_images, recalibrate
from supernet.training.evaluation import evaluate
from supernet.training.training import TrainingOptions, train

logger = logging.getLogger(__name__)

RESULTS_FILE = "results.jsonl"
SHORT = "train-short"
# How the supernets of a study are trained: strategy and projections.
SUPERNETS = tuple(f"{name}-{shared}" for name in STRATEGIES for shared in PROJECTIONS)
UNSHARED = f"-{PROJECTIONS[0]}"
SHORT_SEED = 1_000
PROXY_BATCH = 64
EVAL_BATCH = 256
SAVE_EVERY_STEPS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class StudySettings:
    """What is compared, and for how long it is trained.

    Attributes:
        space: Name or path of the space.
        networks: How many are trained alone; at most half have one mixer everywhere.
        seeds: Trainings of each.
        epochs: Of each training.
        short_epochs: Of the estimator that trains alone for a short time, with a seed of its own.
        supernets: Some of `SUPERNETS`.
        supernet_epochs: Passes of an architecture over the train split, the same for all
            strategies: a step that trains four architectures counts four times.
        trial_recipe, supernet_recipe: Names or paths.
        seed: Of the choice of networks and the supernets.
    """

    space: str
    networks: int
    seeds: int
    epochs: int
    short_epochs: int
    supernets: tuple[str, ...]
    supernet_epochs: int
    trial_recipe: str = "quick"
    supernet_recipe: str = "supernet"
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A piece of work that can be done on its own.

    Attributes:
        kind: ``supernet``, ``alone``, ``short`` or ``proxies``.
        name: Of the supernet (``uniform`` for ``uniform-unshared``), or the key of the network.
        seed: Of a training.
    """

    kind: str
    name: str
    seed: int

    @property
    def folder(self) -> str:
        """Where its checkpoint lies."""
        return f"{self.kind}-{self.name}-{self.seed}"


def choose_networks(settings: StudySettings, space: SearchSpace) -> dict[str, Architecture]:
    """Name the networks by key: some with one mixer everywhere, then random ones."""
    rng = random.Random(f"study/{settings.seed}")
    single = [a for _, a in space.single_mixer_architectures() if space.violation(a) is None]
    chosen = {a.key: a for a in single[: settings.networks // 2]}
    while len(chosen) < settings.networks:
        architecture = space.sample(rng)
        chosen.setdefault(architecture.key, architecture)
    return chosen


def study_jobs(settings: StudySettings, networks: Mapping[str, Architecture]) -> list[Job]:
    """List all work: what everything is compared with comes first, within it the longest."""
    by_cost = sorted(networks, key=lambda key: -count(networks[key]).macs)
    return [
        *(Job(kind="alone", name=key, seed=s) for s in range(settings.seeds) for key in by_cost),
        *(
            Job(kind="supernet", name=name.removesuffix(UNSHARED), seed=settings.seed)
            for name in settings.supernets
        ),
        *(Job(kind="short", name=key, seed=SHORT_SEED) for key in by_cost),
        Job(kind="proxies", name="all", seed=settings.seed),
    ]


def run_study(settings: StudySettings, folder: Path, *, workers: int) -> Iterator[Job]:
    """Do what is left to do and yield each job when it is done.

    Args:
        folder: Holds ``data/`` (prepared images), checkpoints and results.
        workers: Processes, one core each; 0 works in this one.
    """
    space = study_space(settings, folder)
    for name in settings.supernets:
        check_strategy(name.partition("-")[0], space)
    networks = choose_networks(settings, space)
    done = {(r["kind"], r["name"], r["seed"]) for r in read_results(folder)}
    jobs = [
        job for job in study_jobs(settings, networks) if (job.kind, job.name, job.seed) not in done
    ]
    if not workers:
        for job in jobs:
            _record(folder, job, do_job(settings, folder, job))
            yield job
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        pending = {pool.submit(do_job, settings, folder, job): job for job in jobs}
        for future in as_completed(pending):
            _record(folder, pending[future], future.result())
            yield pending[future]
    finally:
        # What has not begun is not begun; what is under way goes on from its checkpoint next time.
        pool.shutdown(cancel_futures=True)


def do_job(settings: StudySettings, folder: Path, job: Job) -> dict[str, dict[str, float]]:
    """Do one job; continues from its checkpoint.

    Returns:
        Values by network key and estimator.
    """
    torch.set_num_threads(1)
    data, space = open_data(folder / "data"), study_space(settings, folder)
    networks = choose_networks(settings, space)
    out = folder / job.folder
    match job.kind:
        case "supernet":
            return _supernet_values(settings, data, space, networks, job=job, out=out)
        case "proxies":
            return _proxy_values(data, networks, seed=job.seed)
    epochs = settings.epochs if job.kind == "alone" else settings.short_epochs
    name = f"alone-{job.seed}" if job.kind == "alone" else SHORT
    try:
        top1 = _train_alone(
            settings, data, networks[job.name], epochs=epochs, seed=job.seed, out=out
        )
    except FloatingPointError as error:
        logger.warning("%s, seed %d: %s", describe(networks[job.name]), job.seed, error)
        return {job.name: {}}  # the table has no value there, and the network is left out
    return {job.name: {name: top1}}


def study_space(settings: StudySettings, folder: Path) -> SearchSpace:
    """Read the space, with the classes of the study's data."""
    return load_space(settings.space).replace(num_classes=open_data(folder / "data").num_classes)


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Read the lines of all finished jobs; a line that was cut off by a kill is not there."""
    path = folder / RESULTS_FILE
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def result_table(settings: StudySettings, folder: Path) -> list[dict[str, str]]:
    """Gather all results: one row a network, one column an estimator; empty where not done."""
    values: dict[str, dict[str, float]] = {}
    for line in read_results(folder):
        for key, found in line["values"].items():
            values.setdefault(key, {}).update(found)
    columns = list(dict.fromkeys(name for found in values.values() for name in found))
    rows = []
    for key, network in choose_networks(settings, study_space(settings, folder)).items():
        cost = count(network)
        row = {"key": key, "description": describe(network)}
        row |= {"params": str(cost.params), "macs": str(cost.macs)}
        row |= {name: _text(values.get(key, {}).get(name)) for name in sorted(columns)}
        rows.append(row | {"architecture": json.dumps(network.to_dict(), sort_keys=True)})
    return rows


def write_table(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write the rows as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_table(path: Path) -> list[dict[str, str]]:
    """Read what `write_table` wrote."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def analyse(rows: Sequence[Mapping[str, str]]) -> list[EstimatorTrust]:
    """Compare every estimator with the mean accuracy over the seeds of training alone.

    The first entry, ``seeds``, is the ceiling: the ranking of one seed against that of another.
    Networks whose trainings are not all done are left out.
    """
    seeds = [name for name in rows[0] if name.startswith("alone-")]
    rows = [row for row in rows if all(row[name] for name in seeds)]
    if not seeds or len(rows) < 2:
        return []
    rng = np.random.default_rng(0)
    trained = [float(np.mean([float(row[name]) for name in seeds])) for row in rows]
    found = []
    if len(seeds) > 1:
        first, second = ([float(row[name]) for row in rows] for name in seeds[:2])
        found.append(compare("seeds", first, second, rng=rng))
    ignored = {"key", "description", "architecture", *seeds}
    for name in rows[0]:
        if name not in ignored and all(row[name] for row in rows):
            estimates = [float(row[name]) for row in rows]
            if all(map(math.isfinite, estimates)):
                found.append(compare(name, estimates, trained, rng=rng))
    if len(rows) >= MIN_NETWORKS:
        networks = [Architecture.from_dict(json.loads(row["architecture"])) for row in rows]
        estimates = cross_validated(networks, trained, seed=0).tolist()
        found.append(compare(PREDICTOR, estimates, trained, rng=rng))
    return found


def passes_of(strategy: str, space: SearchSpace) -> int:
    """Count the architectures that a step of a strategy trains."""
    extremes = (space.extreme("macs", largest=True), space.extreme("macs", largest=False))
    return len(STRATEGIES[strategy](space, random.Random(0), extremes))


def _train_alone(
    settings: StudySettings,
    data: ImageData,
    architecture: Architecture,
    *,
    epochs: int,
    seed: int,
    out: Path,
) -> float:
    recipe = with_epochs(load_recipe(settings.trial_recipe), epochs)
    torch.manual_seed(seed)
    network = build_subnet(architecture, recipe.drop_path)
    options = TrainingOptions(
        train_split=data.split("train"), eval_split=data.split("search"), seed=seed, out=out
    )
    return train(network, data, recipe, options).accuracy.top1


def _supernet_values(
    settings: StudySettings,
    data: ImageData,
    space: SearchSpace,
    networks: Mapping[str, Architecture],
    *,
    job: Job,
    out: Path,
) -> dict[str, dict[str, float]]:
    strategy, _, projections = job.name.partition("-")
    sharing = WeightSharing(projections=projections or PROJECTIONS[0])
    recipe = load_recipe(settings.supernet_recipe)
    epoch = steps_per_epoch(len(data.split("train")), recipe)
    steps = settings.supernet_epochs * epoch // passes_of(strategy, space)
    trainer = SupernetTrainer(
        space,
        data,
        recipe,
        strategy=strategy,
        total_steps=max(steps, 1),
        seed=job.seed,
        sharing=sharing,
    )
    trainer.load(out)
    while trainer.step < trainer.total_steps:
        trainer.run(SAVE_EVERY_STEPS)
        trainer.save(out)
    supernet = load_supernet(out, space)
    calibration = calibration_images(data, EVAL_BATCH)
    judging = list(eval_batches(data.split("search"), data, EVAL_BATCH))
    values = {}
    for key, architecture in networks.items():
        network = extract(supernet, architecture)
        recalibrate(network, calibration)
        name = f"supernet-{strategy}-{sharing.projections}"
        values[key] = {name: evaluate(network, judging, "cpu").top1}
    return values


def _proxy_values(
    data: ImageData, networks: Mapping[str, Architecture], *, seed: int
) -> dict[str, dict[str, float]]:
    images, labels = next(eval_batches(data.split("train"), data, PROXY_BATCH))
    return {
        key: proxy_scores(architecture, images, labels, seed=seed)
        for key, architecture in networks.items()
    }


def _record(folder: Path, job: Job, values: Mapping[str, Mapping[str, float]]) -> None:
    path = folder / RESULTS_FILE
    if path.is_file() and not path.read_bytes().endswith(b"\n"):
        text = path.read_text(encoding="utf-8")  # a line that a kill cut off
        path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**asdict(job), "values": values}) + "\n")
    if job.kind != "supernet":
        shutil.rmtree(folder / job.folder, ignore_errors=True)


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
