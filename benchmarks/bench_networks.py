"""Time whole networks, in turn, in one process: images a second and peak memory.

    python benchmarks/bench_networks.py [--batch 8] [--repeats 2] [--device cpu] [PRESET ...]

Every round runs one training step (forward and backward, no optimiser) and one inference step of
each preset; medians are printed with the ratio to the first preset. Peak memory is that of a fresh
process of the preset alone: of the process on a CPU, of the allocator on a GPU.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor, nn

from benchmarks.peak_memory import peak_bytes
from searchspace import PRESETS, preset
from supernet.mixers import MIXERS
from supernet.network import build_subnet

WANTED = (
    "swin_t",
    "dwconv_t",
    "d_dwconv_t",
    "id_dwconv_t",
    "net6n_t",
    "net7n_t",
    "ddf_swin_t",
    "elsa_swin_t",
    "volo_d1",
    "volo_d1_lsa",
    "volo_d1_dwconv",
    "elsa_volo_d1",
)
IMAGE = 224


def main() -> None:
    """Print one line a preset."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("presets", nargs="*", default=list(buildable()))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peak", choices=("training", "inference"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, images = torch.device(arguments.device), arguments.batch
    if arguments.peak:
        print(measure_peak(arguments.presets[0], arguments.peak, images=images, device=device))
        return
    print(
        f"torch {torch.__version__}, {arguments.threads} thread(s), {platform.machine()}, ", end=""
    )
    print(f"{device}, float32, batch {images}, {IMAGE} pixels")
    print(
        f"{'preset':16} {'train img/s':>12} {'infer img/s':>12} {'train MiB':>10} {'infer MiB':>10}"
    )
    runs = {name: make_steps(name, images=images, device=device) for name in arguments.presets}
    rates = measure_rates(runs, repeats=arguments.repeats, images=images, device=device)
    first = next(iter(rates.values()))
    for name, found in rates.items():
        peaks = [
            peak_of(name, mode, batch=images, device=device) for mode in ("training", "inference")
        ]
        cells = [
            f"{rate:6.2f} ({rate / base:4.2f})" for rate, base in zip(found, first, strict=True)
        ]
        print(
            f"{name:16} {cells[0]:>12} {cells[1]:>12} {peaks[0]:10.0f} {peaks[1]:10.0f}", flush=True
        )


def buildable() -> Iterator[str]:
    """Yield the wanted presets whose mixers all have a module here."""
    for name in WANTED:
        if name in PRESETS:
            stages = preset(name).stages
            if all(mixer.kind in MIXERS for stage in stages for mixer in stage.mixers):
                yield name


def measure_rates(
    runs: dict[str, tuple[Callable[[], object], ...]],
    *,
    repeats: int,
    images: int,
    device: torch.device,
) -> dict[str, list[float]]:
    """Run all steps round by round; return median images a second in training and inference."""
    seconds: dict[str, tuple[list[float], ...]] = {name: ([], []) for name in runs}
    # Processor time, which a busy machine disturbs little; a GPU's work is not in it.
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    for round_ in range(repeats + 1):
        for name, steps in runs.items():
            for step, found in zip(steps, seconds[name], strict=True):
                wait(device)
                start = clock()
                step()
                wait(device)
                if round_:  # the first round warms up
                    found.append(clock() - start)
    return {
        name: [images / statistics.median(found) for found in both]
        for name, both in seconds.items()
    }


def make_steps(
    name: str, *, images: int, device: torch.device
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Build a network; return its training step and its inference step."""
    network = build_subnet(preset(name)).to(device)
    batch = torch.randn(images, 3, IMAGE, IMAGE, device=device)
    return lambda: train(network, batch), lambda: infer(network, batch)


def train(network: nn.Module, images: Tensor) -> None:
    """Run forward and backward."""
    network.train()
    network.zero_grad(set_to_none=True)
    network(images).float().logsumexp(-1).mean().backward()


@torch.no_grad()
def infer(network: nn.Module, images: Tensor) -> None:
    """Run forward alone."""
    network.eval()
    network(images)


def wait(device: torch.device) -> None:
    """Wait until a GPU has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_of(name: str, mode: str, *, batch: int, device: torch.device) -> float:
    """Return the peak memory in MiB of a preset in a process of its own."""
    options = ["--batch", str(batch), "--device", str(device), "--peak", mode]
    command = [sys.executable, __file__, name, *options]
    return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def measure_peak(name: str, mode: str, *, images: int, device: torch.device) -> float:
    """Measure how many MiB a step needs beside the network's weights."""
    network = build_subnet(preset(name)).to(device)
    batch = torch.randn(images, 3, IMAGE, IMAGE, device=device)
    run = train if mode == "training" else infer
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run(network, batch)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    before = peak_bytes()
    run(network, batch)
    return (peak_bytes() - before) / 2**20


if __name__ == "__main__":
    main()
