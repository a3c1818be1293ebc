"""ELSA's power of a fraction at and near zero, in every precision that is trained in."""

from __future__ import annotations

import pytest
import torch

from supernet.mixers.elsa import signed_power


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("exponent", [0.1, 0.5, 1.5])
def test_the_gradient_at_zero_is_finite_and_elsewhere_that_of_a_power(
    dtype: torch.dtype, exponent: float
) -> None:
    base = torch.tensor([0.0, -0.0, 0.25, -2.0], dtype=dtype, requires_grad=True)

    power = signed_power(base, exponent)
    (gradient,) = torch.autograd.grad(power.sum(), base)

    exact = torch.tensor([0.25, -2.0], dtype=torch.float64)
    accuracy = {"rtol": 8 * torch.finfo(dtype).eps, "atol": 0.0}
    torch.testing.assert_close(
        power[2:].double(), exact.sign() * exact.abs() ** exponent, **accuracy
    )
    torch.testing.assert_close(
        gradient[2:].double(), exponent * exact.abs() ** (exponent - 1), **accuracy
    )
    assert gradient.isfinite().all()
    assert power[:2].tolist() == [0.0, 0.0]
    # The smallest number of a half: its gradient would be beyond the largest.
    limits = torch.finfo(dtype)
    least = torch.tensor([limits.tiny * limits.eps], dtype=dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(signed_power(least, exponent).sum(), least)
    assert gradient.isfinite().all()
