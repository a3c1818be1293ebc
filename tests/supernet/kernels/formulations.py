"""What the tests of the operators share: forcing a formulation, and memory that is not zero."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

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
