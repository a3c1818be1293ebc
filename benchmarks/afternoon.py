"""The script that one would write in an afternoon: Ray Tune, Optuna as it is, short trainings.

    python benchmarks/afternoon.py --data digits --space digits --budget 10cpu-minutes --epochs 10 \
        --sampler nsga2 --seed 0 --out runs/afternoon

Every trial trains one network of the space alone for the same epochs and reports its accuracy on
the search split, and its MACs. There are no rungs, no promotion, no supernet. A network that breaks
a rule of the space has an accuracy of 0. The samplers are Optuna's, with their defaults: ``nsga2``,
``tpe`` (of several objectives) and ``random``.

The budget is device time held: cores times seconds, from the start of Tune on; that Ray starts is
not counted. Trials that it ends in the middle are lost. ``trials.json`` in --out has the others:
``key``, ``architecture``, ``top1`` in percent, ``macs``, ``params`` and after how many
device-seconds they had ended. It is written last; without it a run is begun anew.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

import optuna
import ray
import torch
from ray import tune
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from search.budget import count_cores, parse_budget
from searchspace.cost import count
from searchspace.space import SearchSpace
from searchspace.spec_file import load_space
from supernet.data import open_data, prepare_data
from supernet.network import build_subnet
from supernet.recipes import load_recipe, with_epochs
from supernet.training import TrainingOptions, train

TRIALS = "trials.json"
SAMPLERS = {
    "nsga2": optuna.samplers.NSGAIISampler,
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
}


def train_one(
    config: dict[str, Any], *, space: SearchSpace, data: Path, recipe: str, epochs: int, seed: int
) -> None:
    """Train the network of a trial's choices, and report it."""
    architecture = space.build(lambda name, options: config[name])
    if space.violation(architecture) is not None:
        tune.report({"top1": 0.0, "macs": float(count(architecture).macs)})
        return
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    images, trained = open_data(data), with_epochs(load_recipe(recipe), epochs)
    network = build_subnet(architecture, trained.drop_path)
    options = TrainingOptions(
        train_split=images.split("train"), eval_split=images.split("search"), seed=seed
    )
    accuracy = train(network, images, trained, options).accuracy
    cost = count(architecture)
    tune.report({"top1": accuracy.top1, "macs": float(cost.macs), "done_at": time.time()})


def choose(space: SearchSpace, trial: optuna.Trial) -> None:
    """Let Optuna choose a network; what it suggests becomes a trial's configuration."""
    space.build(lambda name, options: trial.suggest_categorical(name, list(options)))


def search(arguments: argparse.Namespace) -> None:
    """Run the study and write its trials."""
    budget = parse_budget(arguments.budget)
    cores = arguments.cores or count_cores()
    out: Path = arguments.out.resolve()
    space = load_space(arguments.space)
    if arguments.img_size:
        space = space.replace(img_size=arguments.img_size)
    data = prepare_data(arguments.data, img_size=space.img_size, folder=out / "data")
    space = space.replace(num_classes=data.num_classes)

    searcher = OptunaSearch(
        space=partial(choose, space),
        metric=["top1", "macs"],
        mode=["max", "min"],
        sampler=SAMPLERS[arguments.sampler](seed=arguments.seed),
    )
    ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False)
    started = time.time()
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(
                train_one,
                space=space,
                data=out / "data",
                recipe=arguments.recipe,
                epochs=arguments.epochs,
                seed=arguments.seed,
            ),
            {"cpu": 1},
        ),
        tune_config=tune.TuneConfig(
            search_alg=ConcurrencyLimiter(searcher, max_concurrent=cores),
            num_samples=-1,
            time_budget_s=budget.amount_seconds / cores,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(storage_path=str(out / "tune"), verbose=0),
    )
    results = tuner.fit()
    ray.shutdown()
    rows: dict[str, dict[str, Any]] = {}
    for result in map(results.__getitem__, range(len(results))):
        metrics = result.metrics or {}
        spent = (metrics.get("done_at", math.inf) - started) * cores
        if spent > budget.amount_seconds:
            continue  # cut off, or against a rule
        architecture = space.build(lambda name, _, config=result.config: config[name])
        cost = count(architecture)
        rows.setdefault(
            architecture.key,
            {
                "key": architecture.key,
                "architecture": architecture.to_dict(),
                "top1": metrics["top1"],
                "macs": cost.macs,
                "params": cost.params,
                "spent": spent,
            },
        )
    found = sorted(rows.values(), key=lambda row: row["spent"])
    unfinished = out / f"{TRIALS}.partial"
    unfinished.write_text(json.dumps({"epochs": arguments.epochs, "trials": found}, indent=1))
    unfinished.replace(out / TRIALS)


def main(words: Sequence[str] | None = None) -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="digits")
    parser.add_argument("--space", default="digits")
    parser.add_argument("--img-size", type=int, default=0, help="in pixels; default: the space's")
    parser.add_argument("--recipe", default="quick", help="of every trial")
    parser.add_argument("--epochs", type=int, default=10, help="of every trial")
    parser.add_argument("--budget", default="10cpu-minutes")
    parser.add_argument("--sampler", choices=sorted(SAMPLERS), default="nsga2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cores", type=int, default=0, help="default: all that there are")
    parser.add_argument("--out", type=Path, required=True)
    search(parser.parse_args(words))


if __name__ == "__main__":
    main()
