"""Triton's kernels through its compiler, for GPUs that need not be there.

The interpreter runs kernels as Python: it accepts annotations, types and shapes that the compiler
refuses.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed: this torch does not bring it", allow_module_level=True)

import triton
from torch.utils._python_dispatch import TorchDispatchMode

from scripts import compile_triton
from supernet.kernels import tiles
from supernet.kernels.aggregation import in_triton as aggregation
from supernet.kernels.attention import in_triton
from supernet.kernels.attention.area import Area
from supernet.kernels.outlook import in_triton as outlook
from supernet.kernels.tiles import MAX_PARTS, MIN_PART, tile_shape


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", compile_triton.CASES, ids=lambda case: case.__name__)
def test_kernels_compile_for_a_gpu_and_stay_in_registers(
    case: compile_triton.Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")

    kernels = compile_triton.compile_kernels(case, torch.bfloat16, capability=90)

    assert len(kernels) >= 3
    for kernel in kernels:
        # More registers than 128 would leave fewer than 16 warps on a multiprocessor.
        assert kernel.registers <= 128, kernel
        assert kernel.spilled_bytes <= 32, kernel


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_kernels_compile_in_other_precisions_and_for_older_gpus(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")

    kernels = compile_triton.compile_kernels(compile_triton.depthwise, dtype, capability=80)

    assert {kernel.name for kernel in kernels} == {"_aggregate", "_multiplier_grad"}


def test_attention_allocates_what_the_documentation_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The formula of docs/measurements/operators.md; nothing of size B*H*W*heads*K*K is in it."""
    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", lambda *_, **__: None)
    batch, side, channels, heads, taps = 2, 40, 32, 2, 49
    q, k, v, grad = (torch.randn(batch, side, side, channels) for _ in range(4))
    tables = (torch.randn(taps, channels), torch.randn(taps, channels), torch.randn(taps, heads))
    area = Area(heads, 7, 1, 0.2, True, "softmax")
    pixels = batch * side * side
    parts = min(-(-pixels // MIN_PART), MAX_PARTS)

    with _Allocations() as found:
        in_triton.attention_grad(grad, (q, k, v, *tables), area)

    results = 3 * v.numel() + sum(table.numel() for table in tables)
    rows, columns = tile_shape(channels // heads)
    tiles = batch * -(-side // rows) * -(-side // columns)
    sums = taps * (parts * 2 * channels + tiles * heads)
    assert found.elements == results + 2 * pixels * heads + sums


def _aggregate(batch: int) -> None:
    filters, values = torch.zeros(batch, 4, 5, 2, 9), torch.zeros(batch, 4, 5, 4)
    aggregation.aggregate(filters, values, 3, 1, None, None, False)


def _logits(batch: int) -> None:
    values = torch.zeros(batch, 4, 5, 4)
    aggregation.logits(values, values, 2, 3, 1, None)


def _attention(batch: int) -> None:
    packed = torch.zeros(batch, 4, 5, 18)
    in_triton.attention((*packed.split(6, -1), None, None, None), AREA)


def _attention_grad(batch: int) -> None:
    maps = [torch.zeros(batch, 4, 5, 6) for _ in range(4)]
    in_triton.attention_grad(maps[0], (maps[1], maps[2], maps[3], None, None, None), AREA)


def _outlook(batch: int) -> None:
    weights, values = torch.zeros(batch, 2, 3, 1, 9, 9), torch.zeros(batch, 4, 5, 1)
    outlook.aggregate(weights, values, 3, 2, False)


AREA = Area(2, 3, 1, 0.2, True, "softmax")


@pytest.mark.parametrize(
    ("call", "largest"),
    [
        (_aggregate, 4 * 5 * 2 * 9),  # filters
        (_logits, 4 * 5 * 2 * 9),  # results
        (_attention, 4 * 5 * 18),  # maps in a packed projection
        (_attention_grad, 4 * 5 * 18),  # gradients of such maps, made for them
        (_outlook, 2 * 3 * 81),  # weights of tokens
    ],
)
def test_what_offsets_of_32_bits_do_not_reach_in_an_image_is_refused(
    call: Callable[[int], None], largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", lambda *_, **__: None)
    monkeypatch.setattr(tiles, "LARGEST_OFFSET", largest + 1)
    call(3)

    monkeypatch.setattr(tiles, "LARGEST_OFFSET", largest)
    with pytest.raises(ValueError, match=f"fewer than {largest} elements"):
        call(3)


class _Allocations(TorchDispatchMode):
    """Counts the elements of all tensors that operators make in its context."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), settings: Any = None
    ) -> Any:
        result = function(*arguments, **(settings or {}))
        if not function.is_view:
            self.elements += result.numel()
        return result
