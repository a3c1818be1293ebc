"""How well do short trainings tell the order after the full recipe? And what do batch norms do?

    python benchmarks/short_trainings.py --study runs/study-digits-0 --epochs 1 3 10

The networks are those that a study (`compare_strategies.py`) has retrained. Each is trained alone
as a search does, once for every length, and judged twice on the search split: with the running
statistics of its batch norms, and with recalibrated ones. Kendall's tau of each is with the test
accuracy after the full recipe, that of MACs beside it; 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from search.retraining.model_card import RetrainResult
from search.retraining.out_folder import RESULT_FILE
from search.trust.ranking import kendall_tau_interval
from searchspace.architecture import Architecture
from supernet.data import ImageData, open_data
from supernet.network import build_subnet
from supernet.recipes import Recipe, load_recipe, with_epochs
from supernet.training import (
    TrainingOptions,
    calibration_images,
    eval_batches,
    evaluate,
    recalibrate,
    train,
)

EVAL_BATCH = 256


def main() -> None:
    """Train all networks for each length, and print a line for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", type=Path, required=True, help="Folder of a study, of one seed.")
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 3], help="Lengths.")
    parser.add_argument("--recipe", default="quick", help="Of the short trainings.")
    parser.add_argument("--seed", type=int, default=0, help="Likewise.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data, recipe = open_data(given.study / "data"), load_recipe(given.recipe)
    retrained = list(_retrained(given.study / "retrained"))
    if not retrained:
        parser.error(f"--study: {given.study} has no retrained networks. Finish the study first.")
    truth = [top1 for _, top1, _ in retrained]
    print(f"torch {torch.__version__}, {data.name}, {len(retrained)} networks, {recipe.name}")
    print(f"MACs  {_tau([macs for _, _, macs in retrained], truth)}")
    for epochs in given.epochs:
        found = [
            _judge_short(architecture, data, with_epochs(recipe, epochs), given.seed)
            for architecture, _, _ in retrained
        ]
        running, recalibrated = zip(*found, strict=True)
        print(
            f"{epochs:3d} epochs  running statistics {_tau(running, truth)}  "
            f"recalibrated {_tau(recalibrated, truth)}",
            flush=True,
        )


def _retrained(folder: Path) -> Iterator[tuple[Architecture, float, int]]:
    """Read what was retrained: the network, its accuracy on the test split in percent, its MACs."""
    for path in sorted(folder.glob(f"*/{RESULT_FILE}")):
        result = RetrainResult.from_dict(json.loads(path.read_text()))
        architecture = json.loads((path.parent / "architecture.json").read_text())
        yield Architecture.from_dict(architecture), result.accuracy.top1, result.macs


def _judge_short(
    architecture: Architecture, data: ImageData, recipe: Recipe, seed: int
) -> tuple[float, float]:
    """Train a network; return its accuracies in percent by running and recalibrated statistics."""
    torch.manual_seed(seed)
    network = build_subnet(architecture, recipe.drop_path)
    options = TrainingOptions(
        train_split=data.split("train"), eval_split=data.split("search"), seed=seed
    )
    running = train(network, data, recipe, options).raw.top1
    recalibrate(network, calibration_images(data, recipe.batch_size))
    judged = eval_batches(data.split("search"), data, EVAL_BATCH)
    return running, evaluate(network, judged, "cpu").top1


def _tau(values: Sequence[float], truth: Sequence[float]) -> str:
    found = kendall_tau_interval(values, truth, rng=np.random.default_rng(0))
    if found.tau is None or found.low is None:
        return "-"
    return f"{found.tau:5.2f} ({found.low:.2f} to {found.high:.2f})"


if __name__ == "__main__":
    main()
