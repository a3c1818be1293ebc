"""Time whole networks, in turn, in one process: images a second and peak memory.

    python benchmarks/bench_networks.py [--device cuda] [--dtype bfloat16] [--batch N] [PRESET ...]

Every round runs one training step (forward and backward, no optimiser) and one inference step of
each preset; medians are printed with the ratio to the first preset. bfloat16 is autocast, in both
steps, as in training. Peak memory is that of one step beside the weights: of a fresh process of the
preset alone on a CPU, of the allocator after a first step on a GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor, nn

from benchmarks.peak_memory import peak_bytes
from benchmarks.timing import clock_timer, cpu_timer, median_seconds, positive
from searchspace.presets import PRESETS, preset
from supernet.measuring.latency import device_name
from supernet.mixers import MIXERS
from supernet.network.supernet import build_subnet

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
MODES = ("training", "inference")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """How networks run; the layout is that of images and weights, the blocks' is their own."""

    device: torch.device
    dtype: torch.dtype
    images: int
    img_size: int
    channels_last: bool
    compiled: bool


def main(words: Sequence[str] | None = None) -> None:
    """Print one line a preset."""
    arguments = parse(words)
    torch.set_num_threads(arguments.threads)
    setting = Setting(
        device=torch.device(arguments.device),
        dtype=DTYPES[arguments.dtype],
        images=arguments.batch,
        img_size=arguments.img_size,
        channels_last=arguments.channels_last,
        compiled=arguments.compile,
    )
    if setting.compiled:
        # All networks are compiled from one function, which by default runs uncompiled after eight.
        torch._dynamo.config.recompile_limit = 4 * len(arguments.presets)
        torch._dynamo.config.fail_on_recompile_limit_hit = True
    if arguments.peak:
        print(measure_peak(arguments.presets[0], arguments.peak, setting))
        return
    heading = describe(arguments, setting)
    print(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in heading.items()))
    print(
        f"{'preset':16} {'train img/s':>16} {'infer img/s':>16} {'train MiB':>10} {'infer MiB':>10}"
    )
    networks = {name: Timed(name, setting) for name in arguments.presets}
    rates = measure_rates(networks, setting, repeats=arguments.repeats)
    # Those of other networks hold gradients: peaks come last, each network's alone.
    first = rates[arguments.presets[0]]
    rows = []
    for name in arguments.presets:
        peaks = {mode: peak_of(name, mode, setting, arguments) for mode in MODES}
        rows.append({"preset": name, "images_a_second": rates[name], "peak_mebibytes": peaks})
        cells = [
            f"{rates[name][mode]:8.2f} ({rates[name][mode] / first[mode]:4.2f})" for mode in MODES
        ]
        print(
            f"{name:16} {cells[0]:>16} {cells[1]:>16} "
            f"{peaks['training']:10.0f} {peaks['inference']:10.0f}",
            flush=True,
        )
        if arguments.json:
            text = json.dumps(heading | {"rows": rows}, indent=1)
            arguments.json.write_text(text + "\n", encoding="utf-8")


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; what depends on the device is filled in."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("presets", nargs="*", default=list(buildable()))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="float32; on a GPU bfloat16")
    parser.add_argument("--batch", type=positive, help="8; on a GPU 128")
    parser.add_argument("--repeats", type=positive, help="2; on a GPU 10")
    parser.add_argument("--threads", type=positive, default=1, help="of a CPU")
    parser.add_argument("--img-size", type=positive, default=224)
    parser.add_argument("--channels-last", action="store_true", help="layout of images and weights")
    parser.add_argument("--compile", action="store_true", help="run through torch.compile")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows here as well")
    parser.add_argument("--peak", choices=MODES, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    is_gpu = arguments.device == "cuda"
    arguments.dtype = arguments.dtype or ("bfloat16" if is_gpu else "float32")
    arguments.batch = arguments.batch or (128 if is_gpu else 8)
    arguments.repeats = arguments.repeats or (10 if is_gpu else 2)
    return arguments


def describe(arguments: argparse.Namespace, setting: Setting) -> dict[str, object]:
    """Say what was measured where, when and with what."""
    return {
        "device": device_name(setting.device),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
        "threads": arguments.threads,
        "dtype": arguments.dtype,
        "batch": setting.images,
        "pixels": setting.img_size,
        "channels_last": setting.channels_last,
        "compiled": setting.compiled,
        "repeats": arguments.repeats,
    }


def buildable() -> Iterator[str]:
    """Yield the wanted presets whose mixers all have a module here."""
    for name in WANTED:
        if name in PRESETS:
            stages = preset(name).stages
            if all(mixer.kind in MIXERS for stage in stages for mixer in stage.mixers):
                yield name


class Timed:
    """A preset's network with its images, and the two steps that are timed."""

    def __init__(self, name: str, setting: Setting) -> None:
        layout = torch.channels_last if setting.channels_last else torch.contiguous_format
        self.setting = setting
        self.network = build_subnet(preset(name)).to(setting.device).to(memory_format=layout)
        self.run: nn.Module | Callable[[Tensor], Tensor] = self.network
        if setting.compiled:
            self.run = torch.compile(self.network)
        shape = (setting.images, 3, setting.img_size, setting.img_size)
        self.images = torch.randn(shape, device=setting.device).to(memory_format=layout)

    def training(self) -> None:
        """Run forward and backward."""
        self.network.train()
        self.network.zero_grad(set_to_none=True)
        with self._precision():
            logits = self.run(self.images)
        logits.float().logsumexp(-1).mean().backward()

    @torch.no_grad()
    def inference(self) -> None:
        """Run forward alone."""
        self.network.eval()
        with self._precision():
            self.run(self.images)

    def _precision(self) -> torch.autocast:
        dtype = self.setting.dtype
        return torch.autocast(self.setting.device.type, dtype, enabled=dtype != torch.float32)


def measure_rates(
    networks: dict[str, Timed], setting: Setting, *, repeats: int
) -> dict[str, dict[str, float]]:
    """Run all steps round by round; return median images a second in training and inference."""
    # Processor time, which a busy machine disturbs little; a GPU's work is not in it.
    is_cpu = setting.device.type == "cpu"
    timer = cpu_timer() if is_cpu else clock_timer(time.perf_counter, setting.device)
    steps = {
        (name, mode): getattr(timed, mode) for name, timed in networks.items() for mode in MODES
    }
    seconds = median_seconds(steps, repeats=repeats, timer=timer)
    return {
        name: {mode: setting.images / seconds[name, mode] for mode in MODES} for name in networks
    }


def peak_of(name: str, mode: str, setting: Setting, arguments: argparse.Namespace) -> float:
    """Return the peak memory in MiB of a step of a preset."""
    if setting.device.type == "cuda":
        return measure_peak(name, mode, setting)
    # The process's own high-water mark: each preset and step needs a fresh one.
    options = ["--batch", str(setting.images), "--img-size", str(setting.img_size)]
    options += ["--dtype", arguments.dtype, "--threads", str(arguments.threads), "--peak", mode]
    options += ["--channels-last"] * setting.channels_last + ["--compile"] * setting.compiled
    command = [sys.executable, __file__, name, *options]
    return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def measure_peak(name: str, mode: str, setting: Setting) -> float:
    """Measure how many MiB a step needs beside the network's weights and the images."""
    timed = Timed(name, setting)
    step = getattr(timed, mode)
    if setting.device.type == "cuda":
        step()  # compilers, and workspaces that stay
        timed.network.zero_grad(set_to_none=True)
        before = torch.cuda.memory_allocated(setting.device)
        torch.cuda.reset_peak_memory_stats(setting.device)
        step()
        return (torch.cuda.max_memory_allocated(setting.device) - before) / 2**20
    before = peak_bytes()
    step()
    return (peak_bytes() - before) / 2**20


if __name__ == "__main__":
    main()
