"""The Triton primitives against the definition in float64.

By default they run in Triton's interpreter; on a GPU: ``pytest -m gpu tests/supernet``.
"""

from __future__ import annotations

import pytest
import torch

from supernet.kernels import aggregate, depthwise_conv, hadamard_conv, neighborhood_logits, tiles
from supernet.kernels.aggregation.naive import (
    aggregate_naive,
    depthwise_conv_naive,
    neighborhood_logits_naive,
)
from supernet.kernels.hadamard.naive import hadamard_conv_naive
from supernet.kernels.select import formulation
from tests.supernet.kernels.triton_cases import (
    IS_INTERPRETED,
    assert_equal,
    prepare_device,
    run_in_interpreter,
)

HALF, BRAIN = (torch.float16, 5e-3), (torch.bfloat16, 4e-2)
Shape = tuple[int, int, int, int, int, int, int]
# (batch, height, width, groups, channels of a group, kernel size, dilation)
SHAPES: tuple[Shape, ...] = (
    (2, 3, 5, 2, 3, 3, 1),
    (1, 4, 3, 1, 5, 4, 2),
    (1, 2, 3, 3, 1, 5, 1),
    (1, 2, 2, 2, 40, 2, 1),
    (1, 8, 3, 1, 2, 7, 1),
    (1, 3, 2, 1, 2, 6, 1),
    (1, 3, 2, 1, 70, 3, 1),
)


@pytest.mark.timeout(600)
def test_the_primitives_equal_their_definition_in_tritons_interpreter() -> None:
    run_in_interpreter(__file__)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> str:
    return prepare_device(monkeypatch)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("multiplier", ["none", "shared", "per image"])
def test_aggregation(
    device: str, shape: Shape, multiplier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "MIN_PART", 1)  # sums in several parts
    batch, height, width, groups, depth, size, dilation = shape
    inputs = [
        torch.randn(batch, height, width, groups, size**2, device=device),
        torch.randn(batch, height, width, groups * depth, device=device),
    ]
    if multiplier != "none":
        images = (batch,) if multiplier == "per image" else ()
        inputs.append(torch.randn(*images, size**2, groups * depth, device=device))

    assert formulation(inputs[0]) == "triton"
    assert_equal(
        lambda a, v, m=None: aggregate(a, v, size, m, dilation=dilation),
        lambda a, v, m=None: aggregate_naive(a, v, size, m, dilation=dilation),
        inputs,
        2e-5,
    )


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [*SHAPES, (1, 2, 3, 1, 2, 13, 1)])
def test_logits(device: str, shape: Shape) -> None:
    batch, height, width, groups, depth, size, dilation = shape
    inputs = [torch.randn(batch, height, width, groups * depth, device=device) for _ in range(2)]

    assert_equal(
        lambda q, k: neighborhood_logits(q, k, groups, size, dilation=dilation),
        lambda q, k: neighborhood_logits_naive(q, k, groups, size, dilation=dilation),
        inputs,
        2e-5,
    )


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("size", "dtype", "tolerance"),
    [(3, *HALF), (4, *HALF), (3, *BRAIN), (7, *BRAIN)],
)
def test_primitives_in_half_precision(
    device: str, size: int, dtype: torch.dtype, tolerance: float
) -> None:
    filters = torch.randn(1, 5, 4, 2, size**2, device=device, dtype=dtype) / size
    values, others = (torch.randn(1, 5, 4, 6, device=device, dtype=dtype) for _ in range(2))
    multiplier = torch.randn(size**2, 6, device=device, dtype=dtype)

    assert formulation(values) == "triton"
    assert_equal(
        lambda a, v, m: aggregate(a, v, size, m),
        lambda a, v, m: aggregate_naive(a, v, size, m),
        [filters, values, multiplier],
        tolerance,
    )
    assert_equal(
        lambda q, k: neighborhood_logits(q, k, 2, size),
        lambda q, k: neighborhood_logits_naive(q, k, 2, size),
        [others, values],
        tolerance,
    )


@pytest.mark.gpu
def test_many_terms_are_summed_in_float32(device: str) -> None:
    """In float16 a sum of 49 ones and 2048 would stop at 2048."""
    filters = torch.ones(1, 7, 7, 1, 49, device=device, dtype=torch.float16)
    values = torch.ones(1, 7, 7, 1, device=device, dtype=torch.float16)
    values[0, 0, 0, 0] = 2048.0

    y = aggregate(filters, values, 7)

    assert y[0, 3, 3, 0].item() == 2096.0


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES[:2])
@pytest.mark.parametrize("per_image", [False, True])
def test_depthwise_convolution(device: str, shape: Shape, per_image: bool) -> None:
    batch, height, width, groups, depth, size, dilation = shape
    channels = groups * depth
    inputs = [
        torch.randn(batch, height, width, channels, device=device),
        torch.randn(*(batch,) * per_image, channels, size, size, device=device),
        torch.randn(channels, device=device),
    ]

    assert_equal(
        lambda v, w, b: depthwise_conv(v, w, b, dilation=dilation),
        lambda v, w, b: depthwise_conv_naive(v, w, b, dilation=dilation),
        inputs,
        2e-5,
    )


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("shape", "width", "size", "dilation"),
    [
        ((2, 3, 5, 8), 4, 3, 1),
        ((1, 4, 3, 20), 2, 4, 2),
        ((1, 9, 17, 4), 1, 2, 1),
        ((1, 3, 3, 32), 32, 3, 1),
        ((1, 2, 2, 8), 4, 5, 1),
    ],
)
def test_hadamard_convolution(
    device: str,
    shape: tuple[int, int, int, int],
    width: int,
    size: int,
    dilation: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tiles, "MIN_PART", 1)
    channels = shape[-1]
    inputs = [torch.randn(shape, device=device) for _ in range(2)]
    inputs += [torch.randn(size**2, channels, width, device=device) / size]
    inputs += [torch.randn(channels, device=device)]

    assert_equal(
        lambda q, k, w, b: hadamard_conv(q, k, w, b, dilation=dilation),
        lambda q, k, w, b: hadamard_conv_naive(q, k, w, b, dilation=dilation),
        inputs,
        3e-5,
    )


@pytest.mark.gpu
def test_hadamard_convolution_in_half_precision(device: str) -> None:
    # The interpreter multiplies matrices of bfloat16 by their bit patterns.
    dtype, tolerance = HALF if IS_INTERPRETED else BRAIN
    shapes = ((1, 5, 4, 8), (1, 5, 4, 8), (9, 8, 4), (8,))
    inputs = [torch.randn(shape, device=device, dtype=dtype) for shape in shapes]

    assert_equal(hadamard_conv, hadamard_conv_naive, inputs, tolerance)
