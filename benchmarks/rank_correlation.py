"""Which cheap estimate ranks networks as training them alone does? Runs for hours; resumable.

    nohup python benchmarks/rank_correlation.py --data cifar10_25k.tar.xz > study.log 2>&1 &
    python benchmarks/rank_correlation.py --data ... --estimate    # how long will that take?
    python benchmarks/rank_correlation.py --analyse                # the table, without training

Networks of a space are trained alone with several seeds; supernets, zero-cost proxies, parameters,
MACs, a predictor and short trainings are compared with the mean over the seeds. Killed and started
again with the same options, it goes on. After every job the results are written to ``--csv``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.rank_study import (
    SUPERNETS,
    UNSHARED,
    StudySettings,
    analyse,
    choose_networks,
    passes_of,
    read_table,
    result_table,
    run_study,
    study_jobs,
    study_space,
    write_table,
)
from search.trust.ranking import EstimatorTrust, KendallTau
from searchspace.spec_file import load_space
from supernet.data import open_data, prepare_data
from supernet.network.supernet import build_subnet
from supernet.recipes.recipe import load_recipe
from supernet.shared_weights.trainer import accumulate_gradients
from supernet.training.batches import steps_per_epoch, train_batches

CSV = Path(__file__).parents[1] / "docs/measurements/rank_correlation.csv"
TIMED_NETWORKS = 4


def main(words: list[str] | None = None) -> None:
    """Run or continue the study, or print the table of what is there."""
    arguments = _parser().parse_args(words)
    if not arguments.analyse:
        settings = _settings(arguments)
        folder = _prepare(arguments, settings)
        _print_estimate(settings, folder, arguments.workers)
        if arguments.estimate:
            return
        started = time.monotonic()
        for job in run_study(settings, folder, workers=arguments.workers):
            write_table(arguments.csv, result_table(settings, folder))
            minutes = (time.monotonic() - started) / 60
            print(f"{minutes:7.1f} min: {job.kind} {job.name} seed {job.seed}", flush=True)
    print(table(analyse(read_table(arguments.csv))))


def table(found: list[EstimatorTrust]) -> str:
    """Write what was compared as Markdown."""
    lines = ["| estimator | tau, all | networks | tau, best third | networks |"]
    lines.append("|---|---|---|---|---|")
    for trust in found:
        cells = [trust.name]
        for tau in (trust.tau, trust.top_tau):
            cells += [_interval(tau), str(tau.num_points)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(tau: KendallTau) -> str:
    if tau.tau is None:
        return "none"
    interval = "" if tau.low is None else f" ({tau.low:.2f} to {tau.high:.2f})"
    return f"{tau.tau:.2f}{interval}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="source of images, e.g. cifar10_25k.tar.xz or digits")
    parser.add_argument("--space", default="micro")
    parser.add_argument("--networks", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--short-epochs", type=int, default=2)
    parser.add_argument("--supernet-epochs", type=int, default=60)
    parser.add_argument(
        "--supernets",
        nargs="+",
        default=[name for name in SUPERNETS if name.endswith(UNSHARED)],
        choices=SUPERNETS,
        help="strategy and projections of each",
    )
    parser.add_argument("--workers", type=int, default=2, help="processes; 0: this one")
    parser.add_argument("--out", type=Path, default=Path("runs/rank_correlation"))
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--estimate", action="store_true", help="only say how long it will take")
    parser.add_argument("--analyse", action="store_true", help="only print the table of --csv")
    return parser


def _settings(arguments: argparse.Namespace) -> StudySettings:
    return StudySettings(
        space=arguments.space,
        networks=arguments.networks,
        seeds=arguments.seeds,
        epochs=arguments.epochs,
        short_epochs=arguments.short_epochs,
        supernets=tuple(arguments.supernets),
        supernet_epochs=arguments.supernet_epochs,
    )


def _prepare(arguments: argparse.Namespace, settings: StudySettings) -> Path:
    """Decode the images once, and check that a study that goes on is the same one."""
    folder: Path = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    described = {**asdict(settings), "supernets": list(settings.supernets)}
    about = {"data": Path(arguments.data).name, "settings": described}
    path = folder / "study.json"
    if path.is_file() and _unchangeable(json.loads(path.read_text())) != _unchangeable(about):
        raise SystemExit(f"{folder} holds a study with other settings. Choose another --out.")
    path.write_text(json.dumps(about, indent=2) + "\n")
    hardware = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {arguments.workers} used",
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }
    arguments.csv.with_suffix(".json").write_text(json.dumps(about | hardware, indent=2) + "\n")
    prepare_data(
        arguments.data, img_size=load_space(settings.space).img_size, folder=folder / "data"
    )
    return folder


def _unchangeable(about: dict[str, Any]) -> dict[str, Any]:
    """Leave out what may be added to a study that has begun: more supernets.

    Studies named ``strategies`` before there was more than that to choose.
    """
    added = ("supernets", "strategies")
    fixed = {name: value for name, value in about["settings"].items() if name not in added}
    return {**about, "settings": fixed}


def _print_estimate(settings: StudySettings, folder: Path, workers: int) -> None:
    """Time a step of some networks and say how long all jobs take without resumption."""
    torch.set_num_threads(1)
    space, data = study_space(settings, folder), open_data(folder / "data")
    recipe = load_recipe(settings.trial_recipe)
    split = data.split("train")
    images, labels = next(train_batches(split, data, recipe, epoch=0, seed=0))
    networks = choose_networks(settings, space)
    seconds = []
    for architecture in random.Random(0).sample(
        list(networks.values()), min(TIMED_NETWORKS, len(networks))
    ):
        network = build_subnet(architecture)
        times = []
        for _ in range(3):
            started = time.perf_counter()
            accumulate_gradients(network, [architecture], images, labels, recipe)
            times.append(time.perf_counter() - started)
        seconds.append(statistics.median(times[1:]))
    epoch = steps_per_epoch(len(split), recipe) * statistics.mean(seconds)
    alone = settings.networks * (settings.seeds * settings.epochs + settings.short_epochs)
    supernets = settings.supernet_epochs * len(settings.supernets)
    hours = (alone + supernets) * epoch / 3600
    passes = {name: passes_of(name.partition("-")[0], space) for name in settings.supernets}
    print(
        f"{len(study_jobs(settings, networks))} jobs, {epoch:.0f} s an epoch: about "
        f"{hours:.1f} core-hours, {hours / max(workers, 1):.1f} hours with {max(workers, 1)} "
        f"workers. Architectures in a step: {passes}.",
        flush=True,
    )


if __name__ == "__main__":
    main()
