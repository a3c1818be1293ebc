"""What the tests of Triton's kernels share: where they run, and how results are compared."""

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

from supernet.kernels.select import VARIABLE

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# What Triton 3.6 says with numpy 2.4.
NUMPY_IS_NEWER = "only 0-dimensional arrays can be converted to Python scalars"


def run_in_interpreter(file: str) -> None:
    """Run a file's tests for the GPU in Triton's interpreter, in a process of its own.

    ``TRITON_INTERPRET`` has to be set before Triton is imported.
    """
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed: this torch does not bring it")
    options = ["-q", "-m", "gpu", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, file],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    if NUMPY_IS_NEWER in result.stdout:
        pytest.skip("this Triton's interpreter does not work with a numpy as new as this one")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    assert "skipped" not in result.stdout


def prepare_device(monkeypatch: pytest.MonkeyPatch) -> str:
    """Force Triton, and return the device that it runs on; skip without one."""
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
