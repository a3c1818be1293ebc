"""Indices and masks are made once for a device, and are real whenever they are kept."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from searchspace.mixers import Elsa, Mixer, WindowAttention
from supernet.mixers import MIXERS
from supernet.mixers.constants import kept
from supernet.mixers.sharing import Place

CPU = torch.device("cpu")


@pytest.fixture
def made() -> list[int]:
    return []


@pytest.fixture
def numbers(made: list[int]) -> Callable[[int, torch.device], Tensor]:
    @kept
    def count(size: int, device: torch.device) -> Tensor:
        made.append(size)
        return torch.arange(size, device=device)

    return count


def test_each_is_made_once(numbers: Any, made: list[int]) -> None:
    first = numbers(3, CPU)
    assert numbers(3, CPU) is first
    assert numbers(4, CPU).tolist() == [0, 1, 2, 3]
    assert made == [3, 4]


def test_what_inference_made_serves_a_backward_pass(numbers: Any) -> None:
    with torch.inference_mode():
        index = numbers(3, CPU)
    table = torch.randn(5, requires_grad=True)
    table.index_select(0, index).sum().backward()
    assert table.grad is not None
    assert table.grad.tolist() == [1, 1, 1, 0, 0]


@pytest.mark.filterwarnings("ignore:.torch.jit.trace. is deprecated")
def test_what_a_trace_made_is_not_kept(numbers: Any) -> None:
    with FakeTensorMode():
        assert type(numbers(3, CPU)) is not Tensor
    found = numbers(3, CPU)
    assert type(found) is Tensor
    with FakeTensorMode():
        assert type(numbers(3, CPU)) is not Tensor

    def add(x: Tensor) -> Tensor:
        return x + numbers(3, CPU)

    compiled = torch.compile(add, backend="eager", fullgraph=True)
    assert compiled(torch.ones(3)).tolist() == [1, 2, 3]
    traced = torch.jit.trace(add, torch.ones(3), check_trace=False)
    assert traced(torch.ones(3)).tolist() == [1, 2, 3]


class Made(TorchDispatchMode):
    """Notes the operators that make tensors of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, given: Any = (), named: Any = None
    ) -> Any:
        self.names.append(function.overloadpacket.__name__)
        return function(*given, **(named or {}))


@pytest.mark.parametrize(
    "mixer",
    [
        WindowAttention(window_size=3, num_heads=2, terms="qk+qr+rk+bias"),
        Elsa(kernel_size=3, num_heads=2, group_width=5, lam=0, gamma=1),
    ],
)
def test_a_second_pass_makes_no_indices(mixer: Mixer, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an odd block, whose windows are shifted, of a supernet with finer choices."""
    module: Any = MIXERS[mixer.kind]([mixer, *finer(mixer)], place=Place(dim=60, size=8, block=1))
    monkeypatch.setattr("supernet.mixers.constants._get_current_dispatch_mode", lambda: None)
    x = torch.randn(1, 8, 8, 60)
    forget_all()
    passes = []
    for _ in range(2):
        with Made() as found:
            module(x, mixer)
        passes.append(found.names)
    assert "arange" in passes[0]
    assert "arange" not in passes[1]


def forget_all() -> None:
    """Drop what other tests have let be made."""
    caches = [f for f in gc.get_objects() if type(f) is functools._lru_cache_wrapper]
    for cache in caches:
        if cache.__wrapped__.__module__ == kept.__module__:
            cache.cache_clear()


def finer(mixer: Mixer) -> list[Mixer]:
    if isinstance(mixer, WindowAttention):
        return [WindowAttention(window_size=4, num_heads=3, terms=mixer.terms)]
    return [Elsa(kernel_size=3, num_heads=3, group_width=10, lam=0, gamma=1)]
