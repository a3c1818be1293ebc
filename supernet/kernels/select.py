"""Which formulation of the neighbourhood operators runs: the one place that decides.

``MIXER_KERNELS`` forces one of them:

* ``naive``: the definition through unfold, for debugging;
* ``triton``: Triton (float32, float16, bfloat16 on a GPU, or anywhere in Triton's interpreter);
* ``torch``: plain torch, tap by tap; depth-wise convolution through `F.conv2d`;
* ``c``: the C library (float32 and float64 on CPU);
* ``auto`` (default): ``c`` on a CPU and ``triton`` on a GPU where they can run and an operator's
  results there agree with torch's (`supernet.kernels.first_use`), else ``torch``.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from types import ModuleType

import torch
from torch import Tensor

from supernet.kernels import first_use, library

FORMULATIONS = ("auto", "c", "triton", "torch", "naive")
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
VARIABLE = "MIXER_KERNELS"


def formulation(tensor: Tensor) -> str:
    """Choose ``c``, ``triton``, ``torch`` or ``naive`` for operands like this tensor.

    Raises:
        ValueError: If ``MIXER_KERNELS`` is not a formulation, or is one that cannot run here.
    """
    wanted = os.environ.get(VARIABLE, "auto")
    if wanted in ("torch", "naive"):
        return wanted
    if wanted not in FORMULATIONS:
        raise ValueError(
            f"{VARIABLE} must be one of {', '.join(FORMULATIONS)}, got {wanted!r}. "
            "Unset it to choose by device and dtype."
        )
    if wanted != "triton" and tensor.is_cpu and library.is_available(tensor.dtype):
        return "c"
    if wanted != "c" and _runs_triton(tensor, is_wanted=wanted == "triton"):
        return "triton"
    if wanted == "auto":
        return "torch"
    if wanted == "triton":
        names = ", ".join(str(dtype) for dtype in TRITON_DTYPES)
        raise ValueError(
            f"{VARIABLE}=triton needs Triton and GPU tensors of {names}, got {tensor.dtype} on "
            f"{tensor.device}. Set {VARIABLE}=auto, or TRITON_INTERPRET=1 to debug on a CPU."
        )
    names = ", ".join(str(dtype) for dtype in library.DTYPES)
    raise ValueError(
        f"{VARIABLE}=c needs a working C compiler and CPU tensors of {names}, got {tensor.dtype} "
        f"on {tensor.device}. Set {VARIABLE}=auto, or install gcc."
    )


def serving(package: str, tensor: Tensor) -> str:
    """Choose as `formulation` does, but torch where a package has no such kernels, or wrong ones.

    That those of a formulation that is forced are right is not questioned.
    """
    chosen = formulation(tensor)
    if chosen in ("c", "triton") and not _has_kernels(package, chosen):
        return "torch"
    if chosen not in ("c", "triton") or os.environ.get(VARIABLE) == chosen:
        return chosen
    return chosen if first_use.agrees(package, chosen, tensor.device, tensor.dtype) else "torch"


def module_for(package: str, tensor: Tensor) -> ModuleType:
    """Return the module of a package whose primitives serve operands like this tensor."""
    chosen = serving(package, tensor)
    # Imported when it is wanted, for not every torch brings Triton.
    return importlib.import_module(f"{package}.in_{'torch' if chosen == 'naive' else chosen}")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def has_triton() -> bool:
    """Tell whether Triton is installed (it comes with torch for Linux)."""
    return importlib.util.find_spec("triton") is not None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _has_kernels(package: str, formulation: str) -> bool:
    """Tell whether a package has a formulation: AdamW's step has none in Triton."""
    return _has_module(f"{package}.in_{formulation}")


@functools.cache
def _has_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def prefers_sdpa(queries: Tensor) -> bool:
    """Tell whether `F.scaled_dot_product_attention` computes attention in windows.

    Not on a CPU: with a bias that learns, it takes PyTorch's slow path there.
    """
    return not queries.is_cpu and os.environ.get(VARIABLE, "auto") != "naive"


def compare_kernels() -> dict[first_use.Kernel, list[first_use.Comparison]]:
    """Hold the kernels that may serve on the devices here against torch's operators, with times.

    What is found is remembered in the place of what was found at their first use.
    """
    kernels = []
    if library.is_available(torch.float32):
        kernels += first_use.kernels_of("c", torch.device("cpu"), torch.float32)
    if has_triton():
        for index in range(torch.cuda.device_count()):
            for dtype in (torch.float32, torch.bfloat16):
                kernels += first_use.kernels_of("triton", torch.device("cuda", index), dtype)
    return {kernel: first_use.compare_again(kernel) for kernel in kernels}


def describe_selection() -> str:
    """Say which formulation runs for float32 on the CPU here."""
    return (
        f"{formulation(torch.empty(0))} on the CPU ({VARIABLE}={os.environ.get(VARIABLE, 'auto')})"
    )


def depthwise_formulation(values: Tensor) -> str:
    """Choose ``c``, ``torch`` (`F.conv2d` on a channels_last view) or ``naive`` for a convolution.

    On a GPU cuDNN serves unless Triton is forced; on a CPU C's backward pass is the fastest at all
    measured sizes (docs/measurements/operators.md).
    """
    chosen = serving("supernet.kernels.aggregation", values)
    is_forced = os.environ.get(VARIABLE) == chosen
    return "torch" if chosen == "triton" and not is_forced else chosen


def _runs_triton(tensor: Tensor, *, is_wanted: bool) -> bool:
    """Tell whether Triton takes operands like this tensor; its interpreter only when asked for."""
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    has_device = tensor.is_cuda or (is_wanted and is_interpreted)
    return has_device and tensor.dtype in TRITON_DTYPES and has_triton()
