"""A kernel's first use on a device: its results are compared with those of torch's formulation.

Compilers, drivers and devices that we have never seen may make of our code what we did not write.
So before a kernel serves where it has not served before, its operator runs on small inputs, on the
device and, in torch and float64, on the CPU. Where the two differ, or the kernel raises, torch's
formulation serves instead, and one line says so. What was found is remembered in the user's cache
folder, for each operator, dtype, device and version of the code, torch and Triton.

A file of that memory says that a comparison has begun before it begins, and is locked meanwhile: a
process that finds it so and unlocked knows that another one died in it. Two such deaths count as a
failure of the kernel; one may have been that of a person's patience.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from searchspace.cache_folder import own_cache_folder
from supernet.kernels import library
from supernet.kernels.samples import SAMPLES, Drawer, Sample, Sizes, results_of

logger = logging.getLogger(__name__)

# Largest differences, as shares of the largest number, that rounding can explain.
TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
MOST_DEATHS = 2
# Large enough that a kernel's start does not count, small enough for a `search doctor`.
TIMED_SIZES = Sizes(batch=4, height=14, width=14, kernel_size=7)
TIMED_RUNS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """Whose kernels are meant: an operator's, in one formulation, dtype and place."""

    package: str
    formulation: str
    device: torch.device
    dtype: torch.dtype

    def __str__(self) -> str:
        name = self.package.rpartition(".")[2]
        return f"{name} in {self.formulation} ({self._dtype_name} on {_device_name(self.device)})"

    @property
    def _dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def module(self, formulation: str | None = None) -> Any:
        """Import its primitives, or those of another formulation."""
        return importlib.import_module(f"{self.package}.in_{formulation or self.formulation}")

    def memory(self) -> str:
        """Name what is remembered of it: another version of anything has another name."""
        words = [str(self), torch.__version__, platform.python_version(), _triton_version()]
        if self.device.type == "cuda":
            words.append(str(torch.cuda.get_device_capability(self.device)))
        elif self.formulation == "c":
            words.append(library.build(self.dtype).name)
        digest = hashlib.sha256("\n".join((*words, _code())).encode()).hexdigest()
        return f"compared-{digest[:20]}.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One primitive held against torch's.

    Attributes:
        name: Of the primitive.
        error: The largest difference, as a share of the largest number; infinite where it raises.
        cause: Why it may not serve; empty if it may.
        seconds: Of the kernel and of torch's formulation on the same device, where they were
            timed.
    """

    name: str
    error: float
    cause: str = ""
    seconds: float | None = None
    torch_seconds: float | None = None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def agrees(package: str, formulation: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether an operator's kernels may serve; compares them at their first use."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return True  # Fake tensors: nothing runs.
    return not _cause(Kernel(package=package, formulation=formulation, device=device, dtype=dtype))


def compare(kernel: Kernel, *, is_timed: bool = False) -> list[Comparison]:
    """Hold all primitives of an operator against torch's, whatever is remembered of it."""
    with _undisturbed(kernel.device.type):
        return [
            _timed(_compared(kernel, name, sample), kernel, sample)
            if is_timed
            else _compared(kernel, name, sample)
            for name, sample in SAMPLES[kernel.package].items()
        ]


def compare_again(kernel: Kernel) -> list[Comparison]:
    """Compare and time an operator's kernels, and remember what was found."""
    found = compare(kernel, is_timed=True)
    with contextlib.suppress(OSError), _memory(kernel) as memory:
        memory.write(_Remembered(cause=_summary(found), is_over=True))
    _cause.cache_clear()
    return found


def kernels_of(formulation: str, device: torch.device, dtype: torch.dtype) -> list[Kernel]:
    """Name the kernels of all operators that have some in this formulation."""
    return [
        Kernel(package=package, formulation=formulation, device=device, dtype=dtype)
        for package in SAMPLES
        if importlib.util.find_spec(f"{package}.in_{formulation}") is not None
    ]


@functools.cache
def _cause(kernel: Kernel) -> str:
    """Return why the kernels may not serve, or nothing; say it once."""
    try:
        with _memory(kernel) as memory:
            cause = _remembered(kernel, memory)
    except OSError as error:
        logger.debug("What is found of %s is not remembered: %s", kernel, error)
        cause = _summary(compare(kernel))
    if cause:
        logger.warning(
            "The kernels of %s do not serve here: %s. torch's code runs instead, slower; "
            "`search doctor` compares them again.",
            kernel,
            cause,
        )
    return cause


@dataclass(frozen=True, kw_only=True, slots=True)
class _Remembered:
    """What a file says: of a comparison that is not over, how many have ended so before it."""

    cause: str = ""
    is_over: bool = False
    deaths: int = 0


class _Memory:
    """An open and locked file of what was found."""

    def __init__(self, number: int) -> None:
        self._number = number

    def read(self) -> _Remembered:
        try:
            return _Remembered(**json.loads(os.pread(self._number, 10_000, 0)))
        except (ValueError, TypeError):  # new, or cut off
            return _Remembered()

    def write(self, found: _Remembered) -> None:
        os.ftruncate(self._number, 0)
        os.pwrite(self._number, json.dumps(asdict(found)).encode(), 0)


@contextlib.contextmanager
def _memory(kernel: Kernel) -> Iterator[_Memory]:
    """Open the file of a kernel, for this process alone.

    Raises:
        OSError: If there is no folder for it, or it cannot be written.
    """
    path = _folder() / kernel.memory()
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
        yield _Memory(number)
    finally:
        os.close(number)


def _remembered(kernel: Kernel, memory: _Memory) -> str:
    """Return what is remembered, or compare and remember it."""
    known = memory.read()
    if known.is_over:
        return known.cause
    if known.deaths >= MOST_DEATHS:
        return f"{known.deaths} processes died while they were compared with torch's"
    memory.write(_Remembered(deaths=known.deaths + 1))
    try:
        cause = _summary(compare(kernel))
    except BaseException:  # nothing was found out: not even that a process died
        memory.write(known)
        raise
    memory.write(_Remembered(cause=cause, is_over=True))
    return cause


def _summary(found: list[Comparison]) -> str:
    return "; ".join(f"{one.name} {one.cause}" for one in found if one.cause)


def _compared(kernel: Kernel, name: str, sample: Sample) -> Comparison:
    """Run one primitive both ways.

    Raises:
        MemoryError, torch.OutOfMemoryError: Which say nothing about the kernel.
    """
    cpu = torch.device("cpu")
    right = results_of(
        sample,
        kernel.module("torch"),
        Drawer(Sizes(), kernel.dtype, dtype=torch.float64, device=cpu),
    )
    try:
        made = results_of(sample, kernel.module(), _own_drawer(kernel, Sizes()))
        made = [tensor.to(cpu, torch.float64) for tensor in made]
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a compiler or a device may say
        text = (str(error).strip() or "no message").splitlines()[0]
        return Comparison(
            name=name, error=float("inf"), cause=f"raises {type(error).__name__}: {text}"
        )
    if [x.shape for x in made] != [x.shape for x in right]:
        return Comparison(name=name, error=float("inf"), cause="returns other shapes")
    largest = max(map(_difference, made, right))
    fits = largest <= TOLERANCES[kernel.dtype]
    return Comparison(name=name, error=largest, cause="" if fits else f"differs by {largest:.0e}")


def _difference(made: Tensor, right: Tensor) -> float:
    """Return the largest difference as a share of the largest number; infinite if not finite."""
    difference = (made - right).abs().max() / right.abs().max().clamp_min(1e-30)
    return float(difference.nan_to_num(torch.inf))


def _timed(found: Comparison, kernel: Kernel, sample: Sample) -> Comparison:
    if found.cause:
        return found

    def seconds(formulation: str) -> float:
        module, times = kernel.module(formulation), []
        draw = _own_drawer(kernel, TIMED_SIZES)
        for _ in range(TIMED_RUNS + 1):
            _wait(kernel.device)
            started = time.perf_counter()
            sample(module, draw.again())
            _wait(kernel.device)
            times.append(time.perf_counter() - started)
        return min(times[1:])

    return Comparison(
        name=found.name,
        error=found.error,
        seconds=seconds(kernel.formulation),
        torch_seconds=seconds("torch"),
    )


def _own_drawer(kernel: Kernel, sizes: Sizes) -> Drawer:
    return Drawer(sizes, kernel.dtype, dtype=kernel.dtype, device=kernel.device)


@contextlib.contextmanager
def _undisturbed(device: str) -> Iterator[None]:
    """Compute plainly, whatever the caller is in: autocast, a trace of fake tensors, a device."""
    with (
        _disable_current_modes(),
        torch._C.DisableTorchFunction(),
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast(device, enabled=False),
    ):
        yield


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _folder() -> Path:
    folder = own_cache_folder() / "compared"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@functools.cache
def _code() -> str:
    """Hash the operators' own files."""
    files = sorted(library.FOLDER.rglob("*"))
    texts = [path.read_bytes() for path in files if path.suffix in (".py", ".c", ".h")]
    return hashlib.sha256(b"".join(texts)).hexdigest()


@functools.cache
def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.machine()


def _triton_version() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "none"
