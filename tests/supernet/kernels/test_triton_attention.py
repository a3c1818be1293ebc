"""Triton's fused attention against the definition in float64.

By default it runs in Triton's interpreter; on a GPU: ``pytest -m gpu tests/supernet``.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from supernet.kernels import Area, neighborhood_attention, tiles
from supernet.kernels.attention.naive import neighborhood_attention_naive
from supernet.kernels.select import formulation
from tests.supernet.kernels.formulations import poisoned_buffers
from tests.supernet.kernels.triton_cases import assert_equal, prepare_device, run_in_interpreter

NAMES = ("queries", "keys", "values", "query_table", "key_table", "bias")
# The product, then which of queries' table, keys' table and bias.
TERMS = (
    (True, (True, True, True)),
    (True, (False, False, False)),
    (True, (True, False, False)),
    (True, (False, True, False)),
    (True, (False, False, True)),
    (False, (True, True, False)),
    (False, (True, False, False)),
    (False, (False, True, True)),
    (False, (False, False, True)),
)


@pytest.mark.timeout(600)
def test_attention_equals_its_definition_in_tritons_interpreter() -> None:
    run_in_interpreter(__file__)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(tiles, "MIN_PART", 1)  # sums of tables in several parts
    return prepare_device(monkeypatch)


def draw(
    device: str,
    area: Area,
    tables: tuple[bool, bool, bool],
    shape: tuple[int, int, int, int] = (1, 3, 5, 6),
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Draw the operands that these terms need, by name."""
    taps, channels = area.kernel_size**2, shape[-1]
    has_query_table, has_key_table, has_bias = tables
    sizes: dict[str, tuple[int, ...]] = {"values": shape}
    if area.has_product or has_query_table:
        sizes["queries"] = shape
    if area.has_product or has_key_table:
        sizes["keys"] = shape
    if has_query_table:
        sizes["query_table"] = (taps, channels)
    if has_key_table:
        sizes["key_table"] = (taps, channels)
    if has_bias:
        sizes["bias"] = (taps, area.num_heads)
    return {name: torch.randn(size, device=device, dtype=dtype) for name, size in sizes.items()}


def assert_attention(operands: dict[str, Tensor], area: Area, tolerance: float) -> None:
    names = list(operands)
    assert formulation(operands["values"]) == "triton"

    def fast(*tensors: Tensor) -> Tensor:
        return neighborhood_attention(area=area, **dict(zip(names, tensors, strict=True)))

    def definition(*tensors: Tensor) -> Tensor:
        found = dict(zip(names, tensors, strict=True))
        q, k, v, *tables = (found.get(name) for name in NAMES)
        assert v is not None
        return neighborhood_attention_naive((q, k, v, *tables), area)

    assert_equal(fast, definition, list(operands.values()), tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("norm", "has_product", "tables"),
    [
        *(("softmax", *terms) for terms in TERMS),
        *(("filter_norm", *terms) for terms in TERMS[::3]),
        *(("identity", *terms) for terms in TERMS[::4]),
    ],
)
def test_every_subset_of_terms(
    device: str, norm: str, has_product: bool, tables: tuple[bool, bool, bool]
) -> None:
    area = Area(2, 3, 1, 0.7, has_product, norm)

    assert_attention(draw(device, area, tables), area, 3e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("shape", "heads", "size", "dilation", "norm"),
    [
        ((2, 3, 4, 6), 1, 4, 1, "filter_norm"),
        ((1, 5, 4, 4), 2, 3, 2, "softmax"),
        ((1, 5, 4, 4), 2, 3, 2, "filter_norm"),
        ((1, 2, 3, 10), 2, 5, 1, "softmax"),
        ((2, 1, 1, 3), 3, 3, 1, "softmax"),
        ((1, 4, 3, 8), 1, 1, 1, "softmax"),
        ((1, 4, 3, 8), 1, 1, 1, "filter_norm"),
        ((1, 10, 11, 34), 1, 2, 1, "softmax"),
        ((1, 3, 3, 2), 1, 7, 1, "filter_norm"),
    ],
)
def test_shapes(
    device: str, shape: tuple[int, int, int, int], heads: int, size: int, dilation: int, norm: str
) -> None:
    area = Area(heads, size, dilation, 0.5, True, norm)

    assert_attention(draw(device, area, (True, True, True), shape), area, 3e-5)


@pytest.mark.gpu
def test_a_kernel_of_thirteen(device: str) -> None:
    area = Area(1, 13, 1, 0.5, True, "softmax")

    assert_attention(draw(device, area, (False, False, False), (1, 2, 1, 2)), area, 3e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("norm", ["softmax", "filter_norm"])
def test_half_precision(device: str, norm: str, dtype: torch.dtype, tolerance: float) -> None:
    area = Area(2, 3, 1, 0.5, True, norm)
    operands = draw(device, area, (True, True, True), (1, 4, 5, 6), dtype)

    assert_attention(operands, area, tolerance)


@pytest.mark.gpu
def test_the_parts_of_a_packed_projection_are_read_where_they_lie(device: str) -> None:
    area = Area(2, 3, 1, 0.5, True, "softmax")
    packed = torch.randn(2, 3, 4, 18, device=device)

    assert_equal(
        lambda x: _attend(x.split(6, -1), area),
        lambda x: neighborhood_attention_naive((*x.split(6, -1), None, None, None), area),
        [packed],
        3e-5,
    )


@pytest.mark.gpu
def test_a_map_of_one_column_may_have_any_stride_from_column_to_column(device: str) -> None:
    area = Area(2, 3, 1, 0.5, True, "softmax")
    maps = [torch.randn(2, 1, 3, 6, device=device).transpose(1, 2) for _ in range(3)]
    assert maps[0].is_contiguous()
    assert maps[0].stride(2) == 3 * 6

    assert_equal(
        lambda *x: _attend(x, area),
        lambda *x: neighborhood_attention_naive((*x, None, None, None), area),
        maps,
        3e-5,
    )


def _attend(parts: tuple[Tensor, ...], area: Area) -> Tensor:
    queries, keys, values = parts
    return neighborhood_attention(values, area, queries=queries, keys=keys)


@pytest.mark.gpu
def test_large_logits_do_not_overflow(device: str) -> None:
    """exp(200) is infinite in float32; a softmax of such logits is not."""
    area = Area(1, 3, 1, 1.0, True, "softmax")
    operands = draw(device, area, (False, False, False), (1, 3, 3, 4))
    operands["queries"] *= 100

    assert_attention(operands, area, 1e-4)


@pytest.mark.gpu
def test_filter_norm_of_equal_logits_is_zero_and_so_are_its_gradients(device: str) -> None:
    area = Area(1, 3, 1, 1.0, False, "filter_norm")
    values = torch.randn(1, 3, 3, 4, device=device, requires_grad=True)
    bias = torch.full((9, 1), 0.3, device=device, requires_grad=True)

    y = neighborhood_attention(values, area, bias=bias)
    grads = torch.autograd.grad(y, (values, bias), torch.ones_like(y))

    assert torch.equal(y, torch.zeros_like(y))
    assert torch.equal(grads[0], torch.zeros_like(values))
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.gpu
def test_results_repeat_to_the_bit_in_poisoned_memory(device: str) -> None:
    area = Area(2, 3, 1, 0.5, True, "softmax")
    operands = draw(device, area, (True, True, True), (2, 5, 6, 6))
    inputs = [x.requires_grad_() for x in operands.values()]

    def step() -> list[Tensor]:
        y = neighborhood_attention(area=area, **operands)
        return [y, *torch.autograd.grad(y, inputs, torch.ones_like(y))]

    with poisoned_buffers():
        first, second = step(), step()

    assert all(x.isfinite().all() for x in first)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.gpu
def test_maps_without_pixels(device: str) -> None:
    area = Area(2, 3, 1, 0.5, True, "softmax")
    operands = draw(device, area, (True, False, False), (1, 3, 0, 6))
    inputs = [x.requires_grad_() for x in operands.values()]

    y = neighborhood_attention(area=area, **operands)
    grads = torch.autograd.grad(y, inputs, torch.ones_like(y))

    assert y.shape == (1, 3, 0, 6)
    assert all(not grad.any() for grad in grads)
