"""ELSA, window attention and depth-wise convolution on real photographs, trained alike.

The clothing images (10 classes, 144 pixels) at 128 pixels; networks of the space `micro_128` with
one kind of mixer each; the recipe `micro` with resized crops, because photographs are larger than
what is seen of them; train and search together to learn from, the test split read once after each
training. Prints a table: accuracy with its interval, seconds, peak memory.

    python benchmarks/train_clothing.py --data ../shared/data/clothing10_144.tar --epochs 30
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
from pathlib import Path

import torch

from search.retrain import RetrainOptions, RetrainResult, retrain
from searchspace.architecture import Architecture, Stage
from searchspace.mixers import DepthwiseConv, Elsa, Mixer, WindowAttention
from supernet.data import ImageData, prepare_data
from supernet.intervals import wilson_interval
from supernet.recipe import Recipe, load_recipe, with_epochs

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


def train_alone(
    out: Path, name: str, seed: int, data: ImageData, epochs: int, device: str
) -> tuple[RetrainResult, float]:
    """Train in a process of its own, so that its peak memory is its own; return result and MiB."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_train, (out, name, seed, data, epochs, device))


def _train(
    out: Path, name: str, seed: int, data: ImageData, epochs: int, device: str
) -> tuple[RetrainResult, float]:
    options = RetrainOptions(out=out / f"{name}-s{seed}", seed=seed, device=device, threads=1)
    result = retrain(network(name, data.num_classes), data, recipe_of(epochs), options)
    if device == "cuda":
        return result, torch.cuda.max_memory_allocated() / 2**20
    return result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    """Train all networks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/clothing"))
    options = parser.parse_args()
    data = prepare_data(options.data, img_size=128, folder=options.out / "data")
    print(f"{sum(data.sizes.values()):,} images, {options.epochs} epochs, {options.device}")
    print("| network | params | MACs | test top-1 %, by seed | mean | seconds | peak MiB |")
    print("|---|---|---|---|---|---|---|")
    for name in NETWORKS:
        found = [
            train_alone(options.out, name, seed, data, options.epochs, options.device)
            for seed in range(options.seeds)
        ]
        results = [result for result, _ in found]
        accuracies = "; ".join(_interval(result) for result in results)
        mean = statistics.mean(result.accuracy.top1 for result in results)
        seconds = statistics.mean(result.seconds for result in results)
        memory = max(mib for _, mib in found)
        print(
            f"| {name} | {results[0].params:,} | {results[0].macs / 1e6:.1f}M | {accuracies} "
            f"| {mean:.1f} | {seconds:,.0f} | {memory:,.0f} |",
            flush=True,
        )


def _interval(result: RetrainResult) -> str:
    low, high = wilson_interval(result.accuracy.correct, result.accuracy.total)
    return f"{result.accuracy.top1:.1f} ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    main()
