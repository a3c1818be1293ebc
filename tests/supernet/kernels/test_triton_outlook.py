"""Outlook aggregation in Triton against the definition in float64.

By default it runs in Triton's interpreter; on a GPU: ``pytest -m gpu tests/supernet``.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from supernet.kernels import outlook_aggregate
from supernet.kernels.outlook.naive import outlook_aggregate_naive
from supernet.kernels.select import formulation
from tests.supernet.kernels.triton_cases import assert_equal, prepare_device, run_in_interpreter

Shape = tuple[int, int, int, int, int, int, int]
# (batch, height, width, heads, channels of a head, kernel size, stride)
SHAPES: tuple[Shape, ...] = (
    (2, 3, 4, 1, 3, 3, 2),
    (1, 2, 3, 2, 2, 3, 1),
    (1, 3, 4, 2, 1, 2, 3),
    (1, 2, 2, 1, 5, 4, 3),
    (1, 5, 9, 1, 64, 2, 2),
    (1, 2, 2, 1, 70, 2, 1),
    (1, 2, 3, 2, 3, 1, 2),
)


@pytest.mark.timeout(600)
def test_outlook_aggregation_equals_its_definition_in_tritons_interpreter() -> None:
    run_in_interpreter(__file__)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> str:
    return prepare_device(monkeypatch)


def example(shape: Shape, device: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    batch, height, width, heads, depth, size, stride = shape
    tokens = (-(-height // stride), -(-width // stride))
    shapes = (batch, *tokens, heads, size**2, size**2), (batch, height, width, heads * depth)
    return [torch.randn(shape, device=device).to(dtype) for shape in shapes]


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
def test_outlook_aggregation(device: str, shape: Shape) -> None:
    inputs, area = example(shape, device), shape[5:]

    assert formulation(inputs[0]) == "triton"
    assert_equal(
        lambda w, v: outlook_aggregate(w, v, *area),
        lambda w, v: outlook_aggregate_naive(w, v, *area),
        inputs,
        2e-5,
    )


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 4e-2)], ids=str
)
@pytest.mark.parametrize("area", [(3, 2), (2, 1)])
def test_outlook_aggregation_in_half_precision(
    device: str, dtype: torch.dtype, tolerance: float, area: tuple[int, int]
) -> None:
    inputs = example((1, 3, 4, 1, 3, *area), device, dtype)

    assert formulation(inputs[0]) == "triton"
    assert_equal(
        lambda w, v: outlook_aggregate(w, v, *area),
        lambda w, v: outlook_aggregate_naive(w, v, *area),
        inputs,
        tolerance,
    )


@pytest.mark.gpu
def test_many_terms_are_summed_in_float32(device: str) -> None:
    """In float16 a sum of 8 ones and 2048 would stop at 2048."""
    weights = torch.ones(1, 1, 1, 1, 25, 25, device=device, dtype=torch.float16)
    values = torch.ones(1, 3, 3, 1, device=device, dtype=torch.float16)
    values[0, 0, 0, 0] = 2048.0

    y = outlook_aggregate(weights, values, 5, 3)

    assert y[0, 2, 2, 0].item() == 2056.0


@pytest.mark.gpu
def test_an_empty_batch_launches_nothing(device: str) -> None:
    inputs = [x.requires_grad_() for x in example((0, 4, 5, 2, 3, 3, 2), device)]

    y = outlook_aggregate(*inputs, 3, 2)

    grads = torch.autograd.grad(y.sum(), inputs)
    assert [x.shape for x in (y, *grads)] == [inputs[1].shape, *(x.shape for x in inputs)]
