"""Pair the mixers' operators with what they replace, in turn, in one process.

    python benchmarks/bench_mixers.py [--repeats 5] [--claim aggregation ...] [--clock cpu]

Each claim prints medians in milliseconds of both sides, forward plus backward where it does not say
otherwise, and their ratio.
Shapes are the stages of Swin-T (batch 8, 224 pixels) and 32-pixel maps. One thread; the clock is
the processor time of the process by default, which a busy machine disturbs little.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from benchmarks.peak_memory import peak_bytes
from benchmarks.timing import (
    Run,
    Timer,
    backward,
    clock_timer,
    forced,
    leaves,
    median_seconds,
    step,
)
from searchspace.mixers import (
    Elsa,
    Mixer,
    NeighborhoodAttention,
    OutlookAttention,
    WindowAttention,
)
from supernet.kernels import (
    aggregate,
    depthwise_conv,
    hadamard_conv,
    normalise,
    outlook_aggregate,
)
from supernet.kernels.select import describe_selection
from supernet.mixers import MIXERS, window_attention
from supernet.mixers.sharing import Place

STAGES = ((8, 56, 96, 3), (8, 28, 192, 6), (8, 14, 384, 12))  # batch, side, channels, heads
# batch, side, channels, heads, kernel size; the unfold of the last needs 10 GiB at batch 128
SMALL = ((128, 32, 48, 3, 3), (128, 32, 64, 4, 5), (32, 32, 96, 6, 7))
SIZES = (3, 5, 7)
ALL_TERMS = "qk+qr+rk+bias"


def main() -> None:
    """Print the claims that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="rounds; the median is printed")
    parser.add_argument("--claim", choices=tuple(CLAIMS), nargs="+", default=tuple(CLAIMS))
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if arguments.peak:
        print(measure_peak(*map(int, arguments.peak.split(","))))
        return
    print(f"torch {torch.__version__}, 1 thread, {platform.machine()}, float32, ", end="")
    print(f"{arguments.clock} time; {describe_selection()}")
    timer = clock_timer(time.process_time if arguments.clock == "cpu" else time.perf_counter)
    for claim in arguments.claim:
        print(f"\n{claim}: {CLAIMS[claim].__doc__}")
        for label, old, new in CLAIMS[claim]():
            compare(label, old, new, repeats=arguments.repeats, timer=timer)
    if "aggregation" in arguments.claim:
        print_memory()


def compare(label: str, old: Run, new: Run, *, repeats: int, timer: Timer) -> None:
    """Run both sides in turn and print their medians."""
    medians = median_seconds({"old": old, "new": new}, repeats=repeats, timer=timer)
    first, second = (1e3 * median for median in medians.values())
    ratio = f"{first / second:5.2f}x faster, {second / first:5.2f} of its time"
    print(f"{label:34} {first:9.1f} {second:9.1f}   {ratio}", flush=True)


def aggregation() -> Iterable[tuple[str, Run, Run]]:
    """unfold against the operator."""
    shapes = [(*stage, size) for stage in STAGES for size in SIZES]
    for batch, side, channels, heads, size in (*shapes, *SMALL):
        inputs = leaves((batch, side, side, heads, size**2), (batch, side, side, channels))
        run = step(lambda a, v, size=size: aggregate(a, v, size), inputs)
        label = f"B{batch} {side}x{side}x{channels} h{heads} K{size}"
        yield label, forced("naive", run), forced("auto", run)


def attention() -> Iterable[tuple[str, Run, Run]]:
    """timm's shifted windows against neighbourhood attention with all four terms, K = 7."""
    for batch, side, channels, heads in STAGES:
        x = torch.randn(batch, side, side, channels, requires_grad=True)
        mixer = NeighborhoodAttention(kernel_size=7, num_heads=heads, terms=ALL_TERMS)
        new = module_step(OneMixer(mixer, channels, side), x)
        yield f"{side}x{side}x{channels} h{heads}", timm_step(x, heads, shift=3), new


def shift() -> Iterable[tuple[str, Run, Run]]:
    """windows that are not shifted against shifted ones: ours, then timm's."""
    for batch, side, channels, heads in STAGES:
        x = torch.randn(batch, side, side, channels, requires_grad=True)
        mixer = WindowAttention(window_size=7, num_heads=heads)
        still, moved = (module_step(OneMixer(mixer, channels, side, block), x) for block in (0, 1))
        label = f"{side}x{side}x{channels} h{heads}"
        yield f"{label} ours", still, moved
        yield f"{label} timm", timm_step(x, heads, shift=0), timm_step(x, heads, shift=3)


def filter_norm() -> Iterable[tuple[str, Run, Run]]:
    """windows whose filter normalisation is written in plain operators against ours."""
    for batch, side, channels, heads in STAGES:
        x = torch.randn(batch, side, side, channels, requires_grad=True)
        mixer = WindowAttention(window_size=7, num_heads=heads, terms=ALL_TERMS, norm="filter_norm")
        run = module_step(OneMixer(mixer, channels, side), x)
        sides = (normalised_by(norm, run) for norm in (plain_filter_norm, normalise))
        yield f"{side}x{side}x{channels} h{heads}", *sides


def depthwise() -> Iterable[tuple[str, Run, Run]]:
    """conv2d in PyTorch's default layout against the operator, forward and backward apart."""
    small = ((128, 32, channels) for channels in (48, 64, 96))
    for batch, side, channels in (*(stage[:3] for stage in STAGES), *small):
        for size in SIZES:
            shapes = ((channels, size, size), (channels,))
            maps = leaves((batch, side, side, channels), *shapes)
            images = leaves((batch, channels, side, side), *shapes)
            label = f"B{batch} {side}x{side}x{channels} K{size}"
            yield f"{label} forward", lambda x=images: conv2d(*x), lambda x=maps: depthwise_conv(*x)
            yield f"{label} backward", backward(conv2d, images), backward(depthwise_conv, maps)


def block() -> Iterable[tuple[str, Run, Run]]:
    """a whole block with window attention (not shifted) against one with ELSA, K = 7."""
    for batch, side, channels, heads in STAGES:
        x = torch.randn(batch, side, side, channels, requires_grad=True)
        window = WindowAttention(window_size=7, num_heads=heads)
        elsa = Elsa(kernel_size=7, num_heads=heads, group_width=4, lam=0, gamma=1)
        blocks = (WholeBlock(mixer, channels, side) for mixer in (window, elsa))
        old, new = (module_step(module, x) for module in blocks)
        yield f"{side}x{side}x{channels} h{heads}", old, new


def hadamard() -> Iterable[tuple[str, Run, Run]]:
    """PyTorch's grouped convolution of the product q * k, groups of 4, against ours."""
    for batch, side, channels, _ in STAGES:
        for size in SIZES:
            map_ = (batch, side, side, channels)
            inputs = leaves(map_, map_, (size**2, channels, 4), (channels,))
            run = step(hadamard_conv, inputs)
            yield f"{side}x{side}x{channels} K{size}", forced("torch", run), forced("auto", run)


def outlook() -> Iterable[tuple[str, Run, Run]]:
    """outlook attention, and its aggregation alone: unfold, then torch, against the operator."""
    batch, side, channels, heads = 8, 28, 192, 6
    for size, stride in ((3, 2), (3, 1), (5, 2)):
        mixer = OutlookAttention(kernel_size=size, num_heads=heads, stride=stride)
        x = torch.randn(batch, side, side, channels, requires_grad=True)
        whole = module_step(OneMixer(mixer, channels, side), x)
        tokens = (-(-side // stride),) * 2
        inputs = leaves((batch, *tokens, heads, size**2, size**2), tuple(x.shape))
        alone = step(lambda w, v, area=(size, stride): outlook_aggregate(w, v, *area), inputs)
        label = f"{side}x{side}x{channels} h{heads} K{size} s{stride}"
        for run, part in ((whole, "mixer"), (alone, "alone")):
            for old in ("naive", "torch"):
                yield f"{label} {part} {old}", forced(old, run), forced("auto", run)


CLAIMS: dict[str, Callable[[], Iterable[tuple[str, Run, Run]]]] = {
    "aggregation": aggregation,
    "attention": attention,
    "shift": shift,
    "filter_norm": filter_norm,
    "depthwise": depthwise,
    "block": block,
    "hadamard": hadamard,
    "outlook": outlook,
}


class OneMixer(nn.Module):
    """A mixer of one setting."""

    def __init__(self, mixer: Mixer, channels: int, side: int, block: int = 0) -> None:
        super().__init__()
        self.mixer = mixer
        place = Place(dim=channels, size=side, block=block)
        self.module = MIXERS[mixer.kind]([mixer], place=place)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of a map."""
        return self.module(x, self.mixer)


class WholeBlock(nn.Module):
    """Norm, mixer, residual, norm, MLP, residual: Swin's block around any mixer."""

    def __init__(self, mixer: Mixer, channels: int, side: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.mix, self.mlp = OneMixer(mixer, channels, side), Mlp(channels, 4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block on a map (B, H, W, C)."""
        x = x + self.mix(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def timm_step(x: Tensor, heads: int, *, shift: int) -> Run:
    """Make a step of timm's window attention with partition and roll, without norm and MLP."""
    side, channels = x.shape[1], x.shape[-1]
    found = SwinTransformerBlock(channels, (side, side), heads, window_size=7, shift_size=shift)
    found.attn.fused_attn = False  # slower still on a CPU
    return step(lambda y, *_: found._attn(y), (x, *found.attn.parameters()))


def module_step(module: nn.Module, x: Tensor) -> Run:
    """Make a step of a module with the gradients of its input and weights."""
    return step(lambda y, *_: module(y), (x, *module.parameters()))


def normalised_by(norm: Callable[..., Tensor], run: Run) -> Run:
    """Make a run whose windows are normalised by a function."""

    def patched() -> object:
        with mock.patch.object(window_attention, "normalise", norm):
            return run()

    return patched


def plain_filter_norm(logits: Tensor, norm: str, masked: Tensor | None) -> Tensor:
    """Normalise as `normalise` does, so that autograd sees every operator."""
    taps = logits.shape[-1]
    std = logits.std(-1, keepdim=True)
    logits = (logits - logits.mean(-1, keepdim=True)) / (std + 1e-10) * (2 / taps) ** 0.5
    return logits if masked is None else logits.masked_fill(masked, 0.0)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve images (B, C, H, W) with a filter (C, K, K) for each channel."""
    return F.conv2d(x, weight.unsqueeze(1), bias, padding=weight.shape[-1] // 2, groups=len(weight))


def print_memory() -> None:
    """Print the peak memory of aggregations over the size of operands and results."""
    print("\nmemory: peak of forward plus backward over operands, result and gradients, MiB")
    for batch, side, channels, heads in STAGES:
        for size in (3, 7):
            shape = f"{batch},{side},{channels},{heads},{size}"
            # The process's own high-water mark: each shape needs a fresh one.
            command = [sys.executable, __file__, "--peak", shape]
            peak = int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
            pixels = batch * side**2
            floats = pixels * (2 * heads * size**2 + 3 * channels)
            ratio = peak / (4 * floats)
            label = f"{side}x{side}x{channels} h{heads} K{size}"
            print(f"{label:34} {peak / 2**20:9.1f} {4 * floats / 2**20:9.1f}   {ratio:5.2f}")


def measure_peak(batch: int, side: int, channels: int, heads: int, size: int) -> int:
    """Measure how many bytes more the process needs for one aggregation with its gradients."""

    def run(images: int, side: int) -> None:
        inputs = leaves((images, side, side, heads, size**2), (images, side, side, channels))
        filters, values = inputs
        y = aggregate(filters, values, size)
        torch.autograd.grad(y, inputs, y.detach())

    run(1, 8)
    before = peak_bytes()
    run(batch, side)
    return peak_bytes() - before


if __name__ == "__main__":
    main()
