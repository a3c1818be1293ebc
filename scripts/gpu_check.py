"""Everything that a machine without a GPU could not show, in a quarter of an hour on one that has.

    python scripts/gpu_check.py                     (about nine minutes on an H200)
    python scripts/gpu_check.py --dry-run           (tiny, on the CPU: does the script itself work?)
    python scripts/gpu_check.py --only kernels,steps

The sections come in the order of their worth. One that fails says so, and the next one runs. Each
line of results says what was expected, from docs/measurements or from a desk check.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from search.workers.measured_costs import time_latency
from searchspace.deployment import Deployment
from searchspace.presets import preset
from searchspace.space import SearchSpace
from searchspace.spec_file import load_space
from supernet.data import ImageData
from supernet.data.arrays import checksum
from supernet.kernels import VARIABLE, compare_kernels, depthwise_conv
from supernet.network import Supernet, build_subnet, extraction_error
from supernet.recipes import Recipe, load_recipe
from supernet.shared_weights import SupernetTrainer
from supernet.training import AMP_DTYPES, EpochReport, TrainingOptions, TrainingStopped, train
from supernet.training.batches import TrainLoader

# Devices times seconds of the search: enough for a front on one GPU.
SEARCHED_SECONDS = 120
PRESETS = ("swin_t", "dwconv_t", "elsa_swin_t", "net7n_t", "id_dwconv_t")


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """Where the script runs, and how much it does.

    Attributes:
        device: Torch device.
        is_tiny: A few images of 64 pixels and one run of everything.
        folder: For what is written.
    """

    device: str
    is_tiny: bool
    folder: Path

    @property
    def is_gpu(self) -> bool:
        """Whether there is a GPU."""
        return self.device == "cuda"

    @property
    def batch(self) -> int:
        """Images of a step of a network alone."""
        return 2 if self.is_tiny else 128

    @property
    def space(self) -> SearchSpace:
        """The flagship, with the classes of ImageNet."""
        return load_space("micro" if self.is_tiny else "swin_t").replace(num_classes=1000)

    def wait(self) -> None:
        """Wait until the device has done what it was told."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def milliseconds(self, work: Callable[[], object], runs: int = 10, warm: int = 3) -> float:
        """Return the median time of some runs, after some that do not count."""
        runs, warm = (1, 1) if self.is_tiny else (runs, warm)
        times = []
        for _ in range(warm + runs):
            started = time.perf_counter()
            work()
            self.wait()
            times.append(1e3 * (time.perf_counter() - started))
        return statistics.median(times[warm:])

    def amp(self, name: str) -> torch.autocast:
        """Compute in a precision of `AMP_DTYPES`."""
        return torch.autocast(self.device, AMP_DTYPES[name], name != "none")


def environment(check: Check) -> None:
    """Say what is here."""
    name = torch.cuda.get_device_name() if check.is_gpu else "CPU"
    say(name, f"torch {torch.__version__}, CUDA {torch.version.cuda}, {os.cpu_count()} cores")


def kernels(check: Check) -> None:
    """Every kernel against torch's operator; ten networks whole, in three precisions."""
    for kernel, found in compare_kernels().items():
        for one in found:
            times = (one.seconds or math.nan, one.torch_seconds or math.nan)
            say(
                f"{kernel}: {one.name}",
                one.cause or f"agrees to {one.error:.0e}",
                "{:.3f} ms, torch {:.3f} ms".format(*(1e3 * seconds for seconds in times)),
            )
    space, rng = check.space, random.Random(1)
    network = Supernet(space).to(check.device).train()
    images = torch.randn(2, 3, space.img_size, space.img_size, device=check.device)
    precisions = ("none",) if check.is_tiny else ("none", "bf16", "fp16")
    worst: dict[str, tuple[float, float]] = dict.fromkeys(precisions, (0.0, 0.0))
    for number in range(1 if check.is_tiny else 10):
        architecture = space.sample(rng)

        def run(formulation: str, amp: str, architecture: object = architecture) -> list[Tensor]:
            network.zero_grad(set_to_none=True)
            torch.manual_seed(0)
            with forced(formulation), check.amp(amp):
                logits = network(images, architecture)
                logits.float().square().mean().backward()
            grads = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
            return [logits.detach().float(), torch.cat(grads)]

        right = run("torch", "none")
        for amp in precisions:
            errors = [difference(*both) for both in zip(run("auto", amp), right, strict=True)]
            worst[amp] = (max(worst[amp][0], errors[0]), max(worst[amp][1], errors[1]))
            say(f"network {number}, {amp}: logits {errors[0]:.1e}, gradients {errors[1]:.1e}")
    for amp, (logits, gradients) in worst.items():
        say(
            f"networks, {amp}: logits differ by {logits:.1e}, gradients by {gradients:.1e}",
            "expected: none 1e-5 and 1e-4, bf16 3e-2 and 1e-1, fp16 5e-3 and 3e-2",
        )
    network.eval()
    errors = [extraction_error(network, space.sample(rng), images) for _ in range(3)]
    say(f"extraction differs by {max(errors):.0e}", "expected below 1e-4")


def batches(check: Check) -> None:
    """What is done to images on the device is what is done on the CPU, to the bit."""
    data = noise(check, 64)
    recipe = recipe_of("swin_300e:tiny", batch_size=32, shard_size=None, auto_augment=None)
    loader = TrainLoader(data.split("train"), data, recipe, workers=0 if check.is_tiny else 2)
    equal = []
    for (shard,) in loader.epoch(0, 0):
        pairs = zip(shard.finished("cpu"), shard.finished(check.device), strict=True)
        equal += [torch.equal(on_cpu, there.cpu()) for on_cpu, there in pairs]
    shard = next(loader.epoch(1, 0))[0]
    took = check.milliseconds(lambda: shard.finished(check.device))
    say(f"batches are equal: {all(equal)}", f"finishing {len(shard)} images takes {took:.2f} ms")


def supernet(check: Check) -> None:
    """Steps of the shared weights, cold and warm; memory; a checkpoint."""
    data = noise(check, 64 if check.is_tiny else 4096)
    cases = [("none", 4)] if check.is_tiny else [("none", 64), ("bf16", 64), ("bf16", 256)]
    for amp, batch in cases:
        recipe = recipe_of("supernet", amp=amp, batch_size=batch)
        trainer = SupernetTrainer(
            check.space,
            data,
            recipe,
            strategy="uniform",
            total_steps=200,
            seed=0,
            device=check.device,
            loader_workers=workers_of(check),
        )
        seconds = []
        for _ in range(2):  # the same steps: the second time their kernels are compiled
            trainer.rewind()
            steps = 2 if check.is_tiny else 20
            started = time.monotonic()
            trainer.run(steps)
            check.wait()
            seconds.append((time.monotonic() - started) / steps)
        peak = torch.cuda.max_memory_allocated() / 2**30 if check.is_gpu else 0.0
        say(
            f"supernet, {amp}, {batch} images: {seconds[0]:.3f} s a step, then {seconds[1]:.3f} s",
            f"{peak:.1f} GiB; expected 2 to 10 s, then .05 to .15 s, below 40 GiB",
        )
    folder, started = check.folder / "checkpoint", time.monotonic()
    snapshot = trainer.snapshot()
    copied = time.monotonic() - started
    snapshot.write(folder)
    written = time.monotonic() - started - copied
    before = {name: value.clone() for name, value in trainer.supernet.state_dict().items()}
    trainer.load(folder)
    after = trainer.supernet.state_dict()
    equal = all(torch.equal(after[name], value) for name, value in before.items())
    say(f"checkpoint: {copied:.2f} s to copy, {written:.2f} s to write, equal: {equal}")


def steps(check: Check) -> None:
    """Networks alone beside timm's Swin-T: steps, inference, launches, the dearest kernels."""
    for name in ("timm", *PRESETS[: 1 if check.is_tiny else None]):
        steps_of(check, name)
    say("expected: swin_t within 10 % of timm, 1,500 to 2,200 images/s; bf16 3 times float32")


def steps_of(check: Check, name: str) -> None:
    """Time a preset, or timm's Swin-T."""
    import timm

    network = (
        timm.create_model("swin_tiny_patch4_window7_224")
        if name == "timm"
        else build_subnet(preset(name))
    )
    network = network.to(check.device).train()
    images = torch.randn(check.batch, 3, 224, 224, device=check.device)
    labels = torch.randint(1000, (check.batch,), device=check.device)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)

    def step(amp: str = "bf16") -> None:
        optimizer.zero_grad(set_to_none=True)
        with check.amp(amp):
            logits = network(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    def infer() -> None:
        with torch.inference_mode(), check.amp("bf16"):
            network(images)

    took = check.milliseconds(step)
    say(f"{name}: {1e3 * check.batch / took:,.0f} images/s in bf16, {took:.1f} ms a step")
    profile(check, name, step)
    if name in ("timm", "swin_t") and not check.is_tiny:
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            slow = check.milliseconds(lambda: step("none"), 4, 2)
            say(f"{name}: {slow:.1f} ms a step in float32, precision {precision}")
    network.eval()
    took = check.milliseconds(infer, 5)
    say(f"{name}: {1e3 * check.batch / took:,.0f} images/s of inference in bf16")


def training(check: Check) -> None:
    """Retraining's loop with loaders, fp16 and averages; stopped and gone on with."""
    data = noise(check, 64 if check.is_tiny else 4096)
    recipe = recipe_of(
        "micro" if check.is_tiny else "swin_300e:tiny",
        epochs=2,
        warmup_epochs=0.5,
        batch_size=8 if check.is_tiny else 256,
        shard_size=None if check.is_tiny else 128,
        ema_decay=0.99,
        amp="fp16" if check.is_gpu else "none",
    )
    architecture = check.space.first() if check.is_tiny else preset("dwconv_t")

    def go(folder: str, epochs: int) -> tuple[dict[str, Tensor], list[EpochReport]]:
        torch.manual_seed(0)
        network, seen = build_subnet(architecture, 0.1), list[EpochReport]()
        options = TrainingOptions(
            train_split=data.split("train"),
            eval_split=data.split("search"),
            seed=0,
            device=check.device,
            out=check.folder / folder,
            on_epoch=seen.append,
            should_stop=lambda: len(seen) >= epochs,
            loader_workers=workers_of(check),
        )
        with suppress(TrainingStopped):
            train(network, data, recipe, options)
        return network.state_dict(), seen

    whole, seen = go("whole", 2)
    go("parts", 1)
    again, _ = go("parts", 2)
    say(f"trained: {seen[-1]}")
    worst = max(float((whole[n].float() - v.float()).abs().max()) for n, v in again.items())
    say(f"gone on with: weights differ by {worst:.0e}", "expected 0, or 1e-3 where atomics add")


def operators(check: Check) -> None:
    """Depth-wise convolution: cuDNN, contiguous or not, against Triton."""
    dtype = torch.bfloat16 if check.is_gpu else torch.float32
    for side, channels in ((14, 96),) if check.is_tiny else ((56, 96), (14, 384)):
        shape = (check.batch, side, side, channels)
        x = torch.randn(shape, device=check.device, dtype=dtype, requires_grad=True)
        weight = torch.randn(channels, 7, 7, device=check.device, dtype=dtype, requires_grad=True)
        for name in ("auto", "triton") if check.is_gpu else ("auto",):
            with forced(name):
                forward = check.milliseconds(lambda x=x, w=weight: depthwise_conv(x, w))
                both = check.milliseconds(
                    lambda x=x, w=weight: depthwise_conv(x, w).sum().backward()
                )
            say(f"depth-wise 7, {shape}, {name}: {forward:.2f} ms, with gradients {both:.2f} ms")
        image = x.detach().permute(0, 3, 1, 2).contiguous().requires_grad_()
        filters = weight.detach()[:, None].contiguous().requires_grad_()

        def dense(image: Tensor = image, filters: Tensor = filters) -> None:
            F.conv2d(image, filters, padding=3, groups=len(filters)).sum().backward()

        say(f"depth-wise 7, {shape}, conv2d, dense: {check.milliseconds(dense):.2f} ms")


def group(check: Check) -> None:
    """What several processes say to each other, in a group of one."""
    backend, place = "nccl" if check.is_gpu else "gloo", check.folder / "meeting"
    dist.init_process_group(backend, init_method=f"file://{place}", rank=0, world_size=1)
    try:
        flag = torch.tensor(True, device=check.device)
        dist.broadcast(flag, 0)
        dist.barrier()
        message = torch.randn(28_000_000 if check.is_gpu else 10, device=check.device)
        took = check.milliseconds(lambda: dist.all_reduce(message))
        say(f"a sum of {message.numel():,} numbers: {took:.2f} ms")
    finally:
        dist.destroy_process_group()


def latency(check: Check) -> None:
    """Small batches, as `--objectives latency` times them: eager, and without Python's part."""
    deployments = (
        Deployment(),
        Deployment(precision="bf16"),
        Deployment(target="cuda-graph"),
        Deployment(target="cuda-graph", precision="bf16"),
        Deployment(target="cuda-graph", precision="bf16", batch=8),
    )
    for name in PRESETS[: 1 if check.is_tiny else None]:
        architecture = preset(name)
        network = build_subnet(architecture).to(check.device).eval()
        for deployment in deployments if check.is_gpu else deployments[:1]:
            found = time_latency(network, architecture, deployment)
            interval = f"{found.latency_low_ms:.2f} to {found.latency_high_ms:.2f}"
            say(f"{name}, {deployment}: {found.latency_ms:.2f} ms ({interval})")


def jpegs(check: Check) -> None:
    """Decoding, on a core and by nvJPEG."""
    from PIL import Image
    from torchvision.io import decode_jpeg

    files = []
    for number in range(4 if check.is_tiny else 64):
        pixels = np.random.default_rng(number).integers(0, 255, (47, 62, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).resize((500, 375), Image.Resampling.BICUBIC).save(
            buffer, "JPEG", quality=93
        )
        files.append(torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8))

    def decode() -> None:
        for file in files:
            Image.open(io.BytesIO(file.numpy().tobytes())).convert("RGB")

    took = check.milliseconds(decode, 3)
    say(f"one core decodes {1e3 * len(files) / took:,.0f} JPEGs/s")
    if check.is_gpu:
        took = check.milliseconds(lambda: decode_jpeg(files, device="cuda"), 5)
        say(f"nvJPEG decodes {1e3 * len(files) / took:,.0f} JPEGs/s")


def search(check: Check) -> None:
    """A whole search on the device, killed on the way and resumed, where Ray is installed."""
    if find_spec("ray") is None:
        say("no search: Ray is not installed")
        return
    if check.is_tiny:
        say("no search: `make run` is one on a CPU")
        return
    command, run = [sys.executable, "-m", "search", "run"], str(check.folder / "run")
    budget = f"{SEARCHED_SECONDS}{'gpu' if check.is_gpu else 'cpu'}-seconds"
    begun = subprocess.Popen([*command, "--budget", budget, "--out", run], start_new_session=True)
    time.sleep(SEARCHED_SECONDS / 2)
    os.killpg(begun.pid, signal.SIGKILL)
    begun.wait()
    say(f"killed after {SEARCHED_SECONDS / 2:.0f} s")
    done = subprocess.run([*command, "--resume", "--out", run], check=False)
    say(f"resumed: status {done.returncode}", f"expected: 0, and {budget} spent")


def poison(check: Check) -> None:
    """A process whose CUDA context is spoilt must end, and not condemn the next networks."""
    if not check.is_gpu:
        say("nothing can be spoilt on a CPU")
        return
    code = (
        "import torch\n"
        "from search.workers.judge_worker import judge_safely\n"
        "index = torch.tensor([9], device='cuda')\n"
        "judge_safely(lambda _: {'x': float(torch.zeros(3, device='cuda')[index].sum())}, None)\n"
        "print('it lives on')\n"
    )
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
        check=False,
    )
    say(f"spoilt: status {done.returncode}, {done.stdout.strip() or 'ended'}", "expected: ended")


SECTIONS: Mapping[str, Callable[[Check], None]] = {
    one.__name__: one
    for one in (
        *(environment, kernels, batches, supernet, steps, training, operators),
        *(group, latency, jpegs, poison, search),
    )
}


@contextmanager
def forced(formulation: str) -> Iterator[None]:
    """Compute with one formulation of the kernels."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = formulation
    try:
        yield
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before


def difference(found: Tensor, right: Tensor) -> float:
    """Return the norm of the difference over the norm; infinite where that is no number."""
    ratio = float((found - right).norm() / right.norm())
    return ratio if math.isfinite(ratio) else math.inf


def noise(check: Check, images: int) -> ImageData:
    """Lay arrays of noise as `prepare_data` leaves them: times do not depend on the pixels."""
    folder, size = check.folder / f"noise{images}", check.space.img_size
    stored, held_out = round(size / 0.875), images // 4
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (images, stored, stored, 3), np.uint8)
    np.save(folder / "train_search_images.npy", pixels)
    labels = np.arange(images) % 1000
    np.save(folder / "train_search_labels.npy", labels)
    (folder / "train_search_checksum.txt").write_text(checksum(pixels, labels) + "\n")
    return ImageData(
        name="noise",
        source="noise",
        folder=folder,
        class_names=tuple(map(str, range(1000))),
        img_size=size,
        stored_size=stored,
        allows_flip=True,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        sizes={"train": images - held_out, "search": held_out, "test": held_out},
        fingerprint="",
        listing="",
    )


def recipe_of(name: str, **changes: object) -> Recipe:
    """Load a shipped recipe with some changes."""
    return Recipe.model_validate({**load_recipe(name).model_dump(), **changes})


def workers_of(check: Check) -> int:
    """Count the processes that make batches."""
    return 0 if check.is_tiny else max((os.cpu_count() or 1) - 2, 1)


def profile(check: Check, name: str, step: Callable[[], None]) -> None:
    """Say how long a step takes to launch, how many kernels, and which take longest."""
    if not check.is_gpu:
        return
    started = time.perf_counter()
    step()
    launching = 1e3 * (time.perf_counter() - started)
    check.wait()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        step()
        check.wait()
    events = sorted(found.key_averages(), key=lambda e: -e.self_device_time_total)
    top = ", ".join(f"{e.key[:40]} {e.self_device_time_total / 1e3:.1f}" for e in events[:6])
    say(f"{name}: {sum(e.count for e in events)} launches in {launching:.1f} ms", f"ms of: {top}")


def say(*words: object) -> None:
    """Print a line of results."""
    print("  ", "; ".join(map(str, words)), flush=True)


def main() -> int:
    """Run the sections; return how many failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="one run of everything, few images")
    parser.add_argument("--dry-run", action="store_true", help="--device cpu --tiny")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas between")
    given = parser.parse_args()
    device, is_tiny = ("cpu", True) if given.dry_run else (given.device, given.tiny)
    wanted = given.only.split(",")
    if unknown := set(wanted) - set(SECTIONS):
        parser.error(f"The sections are {', '.join(SECTIONS)}, got {', '.join(sorted(unknown))}.")
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("There is no GPU here. Use --dry-run to see whether the script works.")
    failed = 0
    for name in wanted:
        started = time.monotonic()
        print(name, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            try:
                SECTIONS[name](Check(device=device, is_tiny=is_tiny, folder=Path(folder)))
            except Exception:  # the next section may still tell something
                failed += 1
                say("FAILED", traceback.format_exc()[-2000:])
        say(f"{time.monotonic() - started:.0f} s")
    return failed


if __name__ == "__main__":
    sys.exit(main())
