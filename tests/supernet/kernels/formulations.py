"""What the tests of the operators share: forcing a formulation, and memory that is not zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from supernet.kernels import library
from supernet.kernels.select import VARIABLE


def use(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Force a formulation; skip where there is no compiler for C."""
    if name == "c" and library.find_compiler() is None:
        pytest.skip("this machine has no C compiler")
    monkeypatch.setenv(VARIABLE, name)


@contextmanager
def poisoned_buffers() -> Iterator[None]:
    """Fill all memory that torch hands out with NaN, and start from one seed."""
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(False)


def assert_same_gradients(
    fast: Callable[..., Tensor],
    definition: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    tolerance: float,
) -> None:
    """Compare the output and all gradients with those of the definition in float64.

    Args:
        inputs: Of both; they require gradients.
        tolerance: Of the largest value of each.
    """
    exact = [x.detach().double().requires_grad_() for x in inputs]
    y, wanted = fast(*inputs), definition(*exact)
    grad = torch.randn(wanted.shape, dtype=torch.float64)
    assert y.is_contiguous()
    actual = (y, *torch.autograd.grad(y, inputs, grad.to(y.dtype)))
    expected = (wanted, *torch.autograd.grad(wanted, exact, grad))
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == inputs[0].dtype
        scale = max(1.0, float(e.detach().abs().max())) if e.numel() else 1.0
        torch.testing.assert_close(a.double(), e, rtol=0, atol=tolerance * scale)
