"""What a training step costs inside the supernet, beside the same step of the extracted network.

    python benchmarks/bench_supernet_step.py --space micro --batch-size 64
    python benchmarks/bench_supernet_step.py --space swin_t --batch-size 4 --repeats 3

Both sides take turns in one process: forward, backward, clipping, AdamW (fused on both sides). On
the CPU the clock is that of the process, so that others on the machine disturb less. For each
architecture the ratio of the medians is printed, then the median over all architectures.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from searchspace.architecture import Architecture, describe
from searchspace.space import SearchSpace
from searchspace.spec_file import load_space
from supernet.mixers.weight_sharing import KERNELS, PROJECTIONS, WeightSharing
from supernet.network.supernet import Supernet, extract
from supernet.recipes.recipe import Recipe, load_recipe
from supernet.shared_weights.shared_adamw import SharedAdamW
from supernet.shared_weights.shared_training import apply_gradients
from supernet.shared_weights.trainer import accumulate_gradients, build_shared_optimizer
from supernet.shared_weights.usage import UsedWeights

Step = Callable[[], object]


def main() -> None:
    """Print one line for each architecture and the medians at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="micro")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--architectures", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--projections", choices=PROJECTIONS, default="unshared")
    parser.add_argument("--kernels", choices=KERNELS, default="centred")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    space, recipe = load_space(arguments.space), load_recipe("supernet")
    print(
        f"torch {torch.__version__}, {arguments.threads} thread(s), {platform.machine()}, "
        f"{arguments.device}, {space.name}, batch {arguments.batch_size}, "
        f"projections {arguments.projections}, kernels {arguments.kernels}"
    )
    torch.manual_seed(0)
    sharing = WeightSharing(projections=arguments.projections, kernels=arguments.kernels)
    supernet = Supernet(space, sharing=sharing).to(arguments.device).train()
    optimizer, used_weights = build_shared_optimizer(supernet, recipe), UsedWeights(supernet)
    batch = _batch(space, arguments.batch_size, arguments.device)
    rng = random.Random(0)
    ratios = []
    for _ in range(arguments.architectures):
        architecture = space.sample(rng)
        inside = _inside(supernet, optimizer, used_weights, architecture, batch, recipe)
        outside = _outside(supernet, architecture, batch, recipe)
        first, second = _medians((inside, outside), arguments.repeats, arguments.device)
        ratios.append(first / second)
        print(
            f"{ratios[-1]:.3f}  {1e3 * first:8.1f} ms inside  {1e3 * second:8.1f} ms alone  "
            f"{describe(architecture, with_dims=True)}",
            flush=True,
        )
    quarter = statistics.quantiles(ratios, n=4)
    print(
        f"median {statistics.median(ratios):.3f}, quartiles {quarter[0]:.3f} to {quarter[2]:.3f}, "
        f"largest {max(ratios):.3f}"
    )


def _batch(space: SearchSpace, size: int, device: str) -> tuple[Tensor, Tensor]:
    images = torch.randn(size, space.in_chans, space.img_size, space.img_size, device=device)
    return images, torch.randint(space.num_classes, (size,), device=device)


def _inside(
    supernet: Supernet,
    optimizer: SharedAdamW,
    used_weights: UsedWeights,
    architecture: Architecture,
    batch: tuple[Tensor, Tensor],
    recipe: Recipe,
) -> Step:
    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        accumulate_gradients(supernet, [architecture], *batch, recipe)
        apply_gradients(optimizer, used_weights([architecture]), clip_grad=recipe.clip_grad)

    return step


def _outside(
    supernet: Supernet, architecture: Architecture, batch: tuple[Tensor, Tensor], recipe: Recipe
) -> Step:
    network = extract(supernet, architecture)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True
    )

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        accumulate_gradients(network, [architecture], *batch, recipe)
        torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_grad or float("inf"))
        optimizer.step()

    return step


def _medians(steps: Sequence[Step], repeats: int, device: str) -> list[float]:
    """Run the steps in turn and return the median seconds of each; the first round warms up."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    seconds: list[list[float]] = [[] for _ in steps]
    for round_ in range(repeats + 1):
        order = list(range(len(steps)))[:: -1 if round_ % 2 else 1]
        for index in order:
            start = clock()
            steps[index]()
            if device != "cpu":
                torch.cuda.synchronize()
            if round_:
                seconds[index].append(clock() - start)
    return [statistics.median(times) for times in seconds]


if __name__ == "__main__":
    main()
