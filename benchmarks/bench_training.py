"""Throughput of our training loop against timm's, on the same network, images and recipe.

Both sides train by turns for some steps, in pairs whose order alternates; the median of the ratios
of each pair is the result (at least 0.98 is wanted). timm's side is the step of its train.py, taken
apart into its own parts: create_loader with Mixup's collate, create_optimizer_v2, the scheduler,
plain backward, ModelEmaV3, in its order of calls; timm's wheel does not have the script itself.

    python benchmarks/bench_training.py --steps 20 --pairs 7
    python benchmarks/bench_training.py --device cuda --workers 8 --img-size 224 --arch elsa_swin_t
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import FastCollateMixup, create_dataset, create_loader
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor, nn

from searchspace.architecture import Architecture, Stage
from searchspace.mixers import DepthwiseConv, WindowAttention
from searchspace.presets import preset
from supernet.data import ImageData, prepare_data
from supernet.network.supernet import build_subnet
from supernet.recipes.recipe import Recipe, load_recipe
from supernet.training.augmentation import mend_posterize
from supernet.training.optimization import undecayed
from supernet.training.training import TrainingOptions, _Training


def micro(img_size: int) -> Architecture:
    """Return a small network of two kinds of mixer."""
    stages = (
        Stage(dim=48, mixers=(DepthwiseConv(kernel_size=5),) * 2),
        Stage(dim=96, mixers=(WindowAttention(window_size=4, num_heads=4),) * 2),
    )
    return Architecture(img_size=img_size, patch_size=4, num_classes=4, stages=stages)


def write_images(root: Path, count: int, size: int) -> None:
    """Write noise as PNG files of four classes."""
    rng = np.random.default_rng(0)
    for pool, number in (("train", count), ("val", 40)):
        for index in range(number):
            path = root / pool / f"class{index % 4}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)


class Ours:
    """Our loop, one epoch after another."""

    def __init__(
        self, network: nn.Module, data: ImageData, recipe: Recipe, device: str, workers: int
    ) -> None:
        options = TrainingOptions(
            train_split=data.full_train(),
            eval_split=data.split("search"),
            seed=0,
            device=device,
            loader_workers=workers,
        )
        self.training = _Training(network, data, recipe, options)
        self.training.network.train()
        self.epoch = 0
        self.batches: Iterator[Any] = iter(())

    def step(self) -> None:
        """Take one step."""
        shards = next(self.batches, None)
        if shards is None:
            epoch = self.epoch % self.training.recipe.epochs
            self.batches = self.training.loader.epoch(epoch, seed=0)
            self.epoch += 1
            shards = next(self.batches)
        self.training.take_step(0, 0, shards)


class Timms:
    """The loop of timm's train.py with the recipe's settings."""

    def __init__(
        self, network: nn.Module, root: Path, recipe: Recipe, device: str, workers: int
    ) -> None:
        self.network, self.recipe, self.device = network.to(device).train(), recipe, device
        size: int = network.space.img_size  # type: ignore[assignment, union-attr]
        self.loader = create_loader(
            create_dataset("", root=str(root), split="train", is_training=True),
            input_size=(3, size, size),
            batch_size=recipe.batch_size,
            is_training=True,
            re_prob=recipe.random_erasing,
            re_mode=recipe.random_erasing_mode,
            scale=recipe.random_resized_crop,
            auto_augment=recipe.auto_augment,
            interpolation=recipe.train_interpolation,
            num_workers=workers,
            collate_fn=FastCollateMixup(
                mixup_alpha=recipe.mixup,
                cutmix_alpha=recipe.cutmix,
                prob=recipe.mixup_prob,
                switch_prob=recipe.mixup_switch_prob,
                label_smoothing=recipe.label_smoothing,
                num_classes=4,
            ),
            device=torch.device(device),
            persistent_workers=workers > 0,
        )
        mend_posterize(self.loader.dataset.transform.transforms)
        groups = param_groups_weight_decay(
            network, recipe.weight_decay, no_weight_decay_list=undecayed(network, recipe)
        )
        self.optimizer = create_optimizer_v2(groups, opt=recipe.optimizer, lr=recipe.lr)
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer, num_epochs=recipe.epochs, updates_per_epoch=len(self.loader)
        )
        self.loss = SoftTargetCrossEntropy()
        self.ema = ModelEmaV3(network, decay=0.999)
        self.batches: Iterator[tuple[Tensor, Tensor]] = iter(())
        self.updates = 0

    def step(self) -> None:
        """Take one step."""
        batch = next(self.batches, None)
        if batch is None:
            self.batches = iter(self.loader)
            batch = next(self.batches)
        images, targets = batch
        with torch.autocast(self.device, torch.bfloat16, enabled=self.recipe.amp == "bf16"):
            loss = self.loss(self.network(images), targets)
        self.optimizer.zero_grad()
        loss.backward()
        if self.recipe.clip_grad is not None:
            dispatch_clip_grad(self.network.parameters(), value=self.recipe.clip_grad)
        self.optimizer.step()
        self.updates += 1
        self.ema.update(self.network, step=self.updates)
        self.scheduler.step_update(num_updates=self.updates)


def seconds_of(loop: Ours | Timms, steps: int) -> float:
    """Time some steps."""
    started = time.perf_counter()
    for _ in range(steps):
        loop.step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    """Compare, and print the medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", help="a preset; default: a small network")
    parser.add_argument("--img-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20, help="of each side of a pair")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    architecture = (
        preset(options.arch).replace(num_classes=4, img_size=options.img_size)
        if options.arch
        else micro(options.img_size)
    )
    changes = {"batch_size": options.batch_size, "shard_size": None, "amp": "none"}
    changes |= {"ema_decay": 0.999, "random_erasing_place": "after_mixup"}
    recipe = load_recipe("swin_300e").model_copy(update=changes)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "images"
        write_images(root, options.batch_size * options.steps, round(options.img_size / 0.875))
        data = prepare_data(
            str(root),
            img_size=options.img_size,
            folder=Path(name) / "data",
            memory_limit_bytes=1,  # read and decoded from the files, as timm does
        )
        torch.manual_seed(0)
        ours = Ours(build_subnet(architecture), data, recipe, options.device, options.workers)
        timms = Timms(build_subnet(architecture), root, recipe, options.device, options.workers)
        compare(ours, timms, options)


def compare(ours: Ours, timms: Timms, options: argparse.Namespace) -> None:
    """Run pairs in alternating order and print what came out."""
    seconds_of(ours, 3), seconds_of(timms, 3)
    times: list[tuple[float, float]] = []
    for pair in range(options.pairs):
        if pair % 2:
            theirs = seconds_of(timms, options.steps)
            times.append((seconds_of(ours, options.steps), theirs))
        else:
            mine = seconds_of(ours, options.steps)
            times.append((mine, seconds_of(timms, options.steps)))
    images = options.steps * options.batch_size
    ratios = sorted(theirs / mine for mine, theirs in times)
    print(f"ours  {images / statistics.median(mine for mine, _ in times):8.1f} images/s")
    print(f"timm  {images / statistics.median(theirs for _, theirs in times):8.1f} images/s")
    print(
        f"ratio {statistics.median(ratios):.3f}, median of {len(ratios)} pairs "
        f"({ratios[0]:.3f} to {ratios[-1]:.3f}); above 1 ours is faster"
    )


if __name__ == "__main__":
    main()
