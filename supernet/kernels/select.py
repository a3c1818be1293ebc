"""Which formulation of the neighbourhood operators runs: the one place that decides.

``MIXER_KERNELS`` forces one of them:

* ``naive``: the definition through unfold, for debugging;
* ``torch``: plain torch, tap by tap; depth-wise convolution through `F.conv2d`;
* ``c``: the C library (float32 and float64 on CPU);
* ``auto`` (default): ``c`` where it can run, else ``torch``.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from supernet.kernels import library

FORMULATIONS = ("auto", "c", "torch", "naive")
VARIABLE = "MIXER_KERNELS"


def formulation(tensor: Tensor) -> str:
    """Choose ``c``, ``torch`` or ``naive`` for operands like this tensor.

    Raises:
        ValueError: If ``MIXER_KERNELS`` is not a formulation, or is ``c`` where C cannot run.
    """
    wanted = os.environ.get(VARIABLE, "auto")
    if wanted in ("torch", "naive"):
        return wanted
    if wanted not in FORMULATIONS:
        raise ValueError(
            f"{VARIABLE} must be one of {', '.join(FORMULATIONS)}, got {wanted!r}. "
            "Unset it to choose by device and dtype."
        )
    if tensor.is_cpu and library.is_available(tensor.dtype):
        return "c"
    if wanted == "auto":
        return "torch"
    names = ", ".join(str(dtype) for dtype in library.DTYPES)
    raise ValueError(
        f"{VARIABLE}=c needs a working C compiler and CPU tensors of {names}, got {tensor.dtype} "
        f"on {tensor.device}. Set {VARIABLE}=auto, or install gcc."
    )


def prefers_sdpa(queries: Tensor) -> bool:
    """Tell whether `F.scaled_dot_product_attention` computes attention in windows.

    Not on a CPU: with a bias that learns, it takes PyTorch's slow path there (1.03 to 1.1 times the
    explicit products, timm's block either way, `benchmarks/bench_kernels.py`).
    """
    return not queries.is_cpu and os.environ.get(VARIABLE, "auto") != "naive"


def describe_selection() -> str:
    """Say which formulation runs for float32 on the CPU here."""
    return (
        f"{formulation(torch.empty(0))} on the CPU ({VARIABLE}={os.environ.get(VARIABLE, 'auto')})"
    )


def depthwise_formulation(values: Tensor, kernel_size: int) -> str:
    """Choose ``c``, ``torch`` (`F.conv2d` on a channels_last view) or ``naive`` for a convolution.

    Measured forward plus backward, float32, one AVX-512 core of a shared machine, the stages of
    Swin-T and 32-pixel maps (benchmarks/bench_kernels.py, the quietest of three runs): for K = 3
    conv2d takes 0.65 to 0.9 of C's time; C is 2.0 to 2.9 times faster for K = 5 and 2.5 to 3.1
    times for K = 7. The rest, float64 among it, is not measured and takes C.
    """
    chosen = formulation(values)
    forced = os.environ.get(VARIABLE) == "c"
    if chosen == "c" and not forced and kernel_size <= 3 and values.dtype == torch.float32:
        return "torch"
    return chosen
