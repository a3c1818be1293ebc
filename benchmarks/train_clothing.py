"""ELSA, window attention and depth-wise convolution on real photographs, trained alike.

The clothing images (10 classes, 144 pixels) at 128 pixels; networks of the space `micro_128` with
one kind of mixer each; the recipe `micro` with resized crops, because photographs are larger than
what is seen of them; train and search together to learn from, the test split read once after each
training. Prints a table of accuracies with their intervals, then one of costs: a training step of
each network in turn, so that all have the same share of a busy machine, and the memory that a step
adds at its peak, in a process of its own. What is trained already is not trained again.

    python benchmarks/train_clothing.py --data ../shared/data/clothing10_144.tar --epochs 30
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F

from benchmarks.peak_memory import peak_bytes
from search.results.intervals import wilson_interval
from search.retraining.network import RetrainOptions, RetrainResult, retrain
from searchspace.architecture import Architecture, Stage
from searchspace.mixers import DepthwiseConv, Elsa, Mixer, WindowAttention
from supernet.data import ImageData, prepare_data
from supernet.network.supernet import build_subnet
from supernet.recipes.recipe import Recipe, load_recipe, with_epochs
from supernet.training.batches import train_shards

T = TypeVar("T")

# The stages of configs/spaces/micro_128.yaml; ratio 2, patches of 8 pixels.
STAGES = ((32, 1), (64, 2), (128, 1))
NETWORKS: dict[str, tuple[Mixer, Mixer, Mixer]] = {
    "elsa": (
        Elsa(kernel_size=7, num_heads=2),
        Elsa(kernel_size=7, num_heads=4),
        WindowAttention(window_size=4, num_heads=8),
    ),
    "window": (
        WindowAttention(window_size=8, num_heads=2),
        WindowAttention(window_size=4, num_heads=4),
        WindowAttention(window_size=4, num_heads=8),
    ),
    "depthwise": (
        DepthwiseConv(kernel_size=7),
        DepthwiseConv(kernel_size=7),
        DepthwiseConv(kernel_size=3),
    ),
}


def network(name: str, num_classes: int) -> Architecture:
    """Return one of the networks; ELSA's last stage has windows, as published."""
    stages = tuple(
        Stage(dim=dim, mixers=(mixer,) * depth, mlp_ratio=2.0)
        for (dim, depth), mixer in zip(STAGES, NETWORKS[name], strict=True)
    )
    return Architecture(img_size=128, patch_size=8, num_classes=num_classes, stages=stages)


def recipe_of(epochs: int) -> Recipe:
    """Return the recipe of all of them."""
    changes = {
        "name": "micro_photos",
        "batch_size": 64,
        "random_crop_padding": 0,
        "random_resized_crop": (0.3, 1.0),
        "crop_pct": 0.875,
    }
    micro = Recipe.model_validate({**load_recipe("micro").model_dump(), **changes})
    return with_epochs(micro, epochs)


def alone(work: Callable[..., T], *arguments: object) -> T:
    """Call a function in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def train_one(
    out: Path, name: str, seed: int, data: ImageData, epochs: int, device: str
) -> RetrainResult:
    """Train one of the networks, or read what an earlier training left."""
    options = RetrainOptions(out=out / f"{name}-s{seed}", seed=seed, device=device, threads=1)
    return retrain(network(name, data.num_classes), data, recipe_of(epochs), options)


class Stepping:
    """A network that takes training steps on one batch, again and again."""

    def __init__(self, name: str, data: ImageData, recipe: Recipe, device: str) -> None:
        torch.set_num_threads(1)
        self.architecture = network(name, data.num_classes)
        self.network = build_subnet(self.architecture, recipe.drop_path).to(device).train()
        self.optimizer = torch.optim.AdamW(self.network.parameters())
        shards = next(train_shards(data.full_train(), data, recipe, epoch=0, seed=0))
        self.images, self.targets = shards[0].finished(device)

    def step(self) -> float:
        """Take one step and return its seconds."""
        started = time.perf_counter()
        F.cross_entropy(self.network(self.images), self.targets).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.images.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started


def peak_of_step(name: str, data: ImageData, epochs: int, device: str) -> float:
    """Return the MiB that a step adds at its peak to what is held before it."""
    stepping = Stepping(name, data, recipe_of(epochs), device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        stepping.step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = peak_bytes()
    stepping.step()
    return (peak_bytes() - before) / 2**20


def print_costs(data: ImageData, options: argparse.Namespace) -> None:
    """Print what a training step of each network costs."""
    recipe = recipe_of(options.epochs)
    steppings = {name: Stepping(name, data, recipe, options.device) for name in NETWORKS}
    seconds: dict[str, list[float]] = {name: [] for name in NETWORKS}
    for _ in range(options.rounds + 1):
        for name, stepping in steppings.items():
            seconds[name].append(stepping.step())
    medians = {name: 1000 * statistics.median(found[1:]) for name, found in seconds.items()}
    print(f"\n| network | step of {recipe.batch_size} images, ms | over window | step adds, MiB |")
    print("|---|---|---|---|")
    for name, median in medians.items():
        peak = alone(peak_of_step, name, data, options.epochs, options.device)
        print(f"| {name} | {median:.0f} | {median / medians['window']:.2f} | {peak:,.0f} |")


def main() -> None:
    """Train all networks and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15, help="of timed steps")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/clothing"))
    options = parser.parse_args()
    data = prepare_data(options.data, img_size=128, folder=options.out / "data")
    print(f"{sum(data.sizes.values()):,} images, {options.epochs} epochs, {options.device}")
    print("| network | params | MACs | test top-1 %, by seed | mean |")
    print("|---|---|---|---|---|")
    for name in NETWORKS:
        results = [
            alone(train_one, options.out, name, seed, data, options.epochs, options.device)
            for seed in range(options.seeds)
        ]
        accuracies = "; ".join(_interval(result) for result in results)
        mean = statistics.mean(result.accuracy.top1 for result in results)
        print(
            f"| {name} | {results[0].params:,} | {results[0].macs / 1e6:.1f}M | {accuracies} "
            f"| {mean:.1f} |",
            flush=True,
        )
    print_costs(data, options)


def _interval(result: RetrainResult) -> str:
    low, high = wilson_interval(result.accuracy.correct, result.accuracy.total)
    return f"{result.accuracy.top1:.1f} ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    main()
