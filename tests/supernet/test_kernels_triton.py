"""The Triton primitives against the definition in float64.

By default they run in Triton's interpreter, in a process of its own: ``TRITON_INTERPRET`` has to be
set before Triton is imported. On a GPU: ``pytest -m gpu tests/supernet/test_kernels_triton.py``.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from supernet.kernels import (
    Area,
    aggregate,
    depthwise_conv,
    neighborhood_attention,
    neighborhood_logits,
)
from supernet.kernels.aggregation.naive import (
    aggregate_naive,
    depthwise_conv_naive,
    neighborhood_logits_naive,
)
from supernet.kernels.attention.naive import neighborhood_attention_naive
from supernet.kernels.select import VARIABLE, formulation

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
Shape = tuple[int, int, int, int, int, int, int]
# (batch, height, width, groups, channels of a group, kernel size, dilation)
SHAPES: tuple[Shape, ...] = (
    (2, 3, 5, 2, 3, 3, 1),
    (1, 4, 3, 1, 5, 4, 2),
    (1, 2, 3, 3, 1, 5, 1),
    (1, 2, 2, 2, 40, 2, 1),
    (1, 8, 3, 1, 2, 7, 1),
    (1, 3, 2, 1, 2, 6, 1),
)
TOLERANCES = ((torch.float32, 2e-5), (torch.float16, 5e-3), (torch.bfloat16, 4e-2))


@pytest.mark.timeout(300)
def test_the_primitives_equal_their_definition_in_tritons_interpreter() -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed: this torch does not bring it")
    # The marker's tests are what a GPU would run.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        __file__,
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}

    result = subprocess.run(
        command,
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    assert "skipped" not in result.stdout


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> str:
    if not IS_INTERPRETED and not torch.cuda.is_available():
        pytest.skip("there is no GPU; the interpreter's run is a test of its own")
    monkeypatch.setenv(VARIABLE, "triton")
    torch.manual_seed(0)
    return "cpu" if IS_INTERPRETED else "cuda"


def assert_equal(
    fast: Callable[..., Tensor],
    definition: Callable[..., Tensor],
    inputs: list[Tensor],
    tolerance: float,
) -> None:
    """Compare outputs and all gradients with those of the definition in float64."""
    inputs = [x.requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    y, wanted = fast(*inputs), definition(*exact)
    grad = torch.randn_like(y)
    actual = (y, *torch.autograd.grad(y, inputs, grad))
    expected = (wanted, *torch.autograd.grad(wanted, exact, grad.double()))
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == inputs[0].dtype
        atol = tolerance * max(1.0, float(e.detach().abs().max()))
        torch.testing.assert_close(a.double(), e, rtol=0, atol=atol)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("multiplier", ["none", "shared", "per image"])
def test_aggregation(device: str, shape: Shape, multiplier: str) -> None:
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
    [(3, *TOLERANCES[1]), (4, *TOLERANCES[1]), (3, *TOLERANCES[2]), (7, *TOLERANCES[2])],
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
def test_convolution_with_filters_of_each_image(device: str, shape: Shape) -> None:
    batch, height, width, groups, depth, size, dilation = shape
    channels = groups * depth
    inputs = [
        torch.randn(batch, height, width, channels, device=device),
        torch.randn(batch, channels, size, size, device=device),
        torch.randn(channels, device=device),
    ]

    assert_equal(
        lambda v, w, b: depthwise_conv(v, w, b, dilation=dilation),
        lambda v, w, b: depthwise_conv_naive(v, w, b, dilation=dilation),
        inputs,
        2e-5,
    )


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("norm", ["softmax", "filter_norm"])
def test_attention_with_all_terms(
    device: str, norm: str, dtype: torch.dtype, tolerance: float
) -> None:
    area = Area(2, 3, 1, 0.5, True, norm)
    maps = [torch.randn(1, 4, 5, 6, device=device, dtype=dtype) for _ in range(3)]
    tables = [torch.randn(9, 6, device=device, dtype=dtype) for _ in range(2)]
    tables.append(torch.randn(9, 2, device=device, dtype=dtype))

    def fast(q: Tensor, k: Tensor, v: Tensor, qr: Tensor, rk: Tensor, bias: Tensor) -> Tensor:
        return neighborhood_attention(
            v, area, queries=q, keys=k, query_table=qr, key_table=rk, bias=bias
        )

    assert_equal(
        fast,
        lambda *operands: neighborhood_attention_naive(operands, area),
        [*maps, *tables],
        tolerance,
    )
