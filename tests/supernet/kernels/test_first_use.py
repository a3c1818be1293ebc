"""A kernel serves where it agrees with torch's operator; where not, torch serves and says so."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from supernet.kernels import Area, aggregate, first_use, library, neighborhood_attention
from supernet.kernels.aggregation.naive import aggregate_naive
from supernet.kernels.attention import in_c, in_torch
from supernet.kernels.attention.naive import neighborhood_attention_naive
from supernet.kernels.select import VARIABLE, serving

pytestmark = pytest.mark.skipif(
    library.find_compiler() is None, reason="this machine has no C compiler"
)

PACKAGE = "supernet.kernels.attention"
AREA = Area(2, 3, 1, 0.5, False, "softmax")
Plant = Callable[[Any], None]


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A memory of our own, and a process that has used no kernel."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(first_use, "_folder", lambda: tmp_path)
    first_use._cause.cache_clear()
    yield tmp_path
    first_use._cause.cache_clear()


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Put another kernel in the place of attention's in C; it counts as compiled wrongly."""
    return lambda kernel: monkeypatch.setattr(in_c, "attention", kernel)


def differs(operands: Any, area: Area) -> Tensor:
    return in_torch.attention(operands, area) * 1.001


def raises(operands: Any, area: Area) -> Tensor:
    raise RuntimeError("no kernel image is available\nand more")


def is_not_finite(operands: Any, area: Area) -> Tensor:
    return in_torch.attention(operands, area) * float("nan")


def has_another_shape(operands: Any, area: Area) -> Tensor:
    return in_torch.attention(operands, area)[:1]


def attend() -> None:
    """Compute with the public operator, and compare with the definition."""
    torch.manual_seed(0)
    values, bias = torch.randn(1, 4, 5, 6), torch.randn(9, 2)
    operands = (None, None, values, None, None, bias)
    found = neighborhood_attention(values, AREA, bias=bias)
    torch.testing.assert_close(found, neighborhood_attention_naive(operands, AREA))


def test_kernels_that_agree_serve_and_nothing_is_said(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    attend()
    assert serving(PACKAGE, torch.empty(0)) == "c"
    assert serving(PACKAGE, torch.empty(0, dtype=torch.float64)) == "c"
    assert not caplog.records


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (differs, "attention differs by 1e-03"),
        (raises, "attention raises RuntimeError: no kernel image is available"),
        (is_not_finite, "attention differs by inf"),
        (has_another_shape, "attention returns other shapes"),
    ],
)
def test_a_kernel_that_is_wrong_is_replaced_by_torch_and_one_line_says_so(
    kernel: Any, words: str, plant: Plant, caplog: pytest.LogCaptureFixture
) -> None:
    plant(kernel)
    attend()
    attend()
    (line,) = [record.getMessage() for record in caplog.records]
    assert words in line
    assert "attention in c (float32 on" in line
    assert "\n" not in line


def test_a_wrong_gradient_replaces_the_operator_too(monkeypatch: pytest.MonkeyPatch) -> None:
    right = in_torch.attention_grad
    monkeypatch.setattr(
        in_c, "attention_grad", lambda *given: (*right(*given)[:5], torch.zeros(25, 3))
    )
    assert serving(PACKAGE, torch.empty(0)) == "torch"


def test_other_operators_go_on_with_their_kernels(plant: Plant) -> None:
    plant(differs)
    assert serving(PACKAGE, torch.empty(0)) == "torch"
    assert serving("supernet.kernels.aggregation", torch.empty(0)) == "c"
    filters, values = torch.randn(1, 4, 5, 2, 9), torch.randn(1, 4, 5, 6)
    torch.testing.assert_close(aggregate(filters, values, 3), aggregate_naive(filters, values, 3))


def test_what_was_found_is_remembered_by_later_processes(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert serving(PACKAGE, torch.empty(0)) == "c"
    first_use._cause.cache_clear()  # another process
    plant(raises)
    assert serving(PACKAGE, torch.empty(0)) == "c"
    monkeypatch.setattr(torch, "__version__", "9.9")  # another version
    first_use._cause.cache_clear()
    assert serving(PACKAGE, torch.empty(0)) == "torch"


def test_a_forced_formulation_is_not_questioned(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(differs)
    monkeypatch.setenv(VARIABLE, "c")
    assert serving(PACKAGE, torch.empty(0)) == "c"


def test_a_kernel_that_kills_two_processes_is_not_tried_a_third_time(
    plant: Plant, caplog: pytest.LogCaptureFixture
) -> None:
    plant(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    for _ in range(first_use.MOST_DEATHS):
        child = os.fork()
        if child == 0:
            try:
                serving(PACKAGE, torch.empty(0))
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
    attend()
    assert "2 processes died" in caplog.text


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), torch.OutOfMemoryError()])
def test_what_says_nothing_of_the_kernel_is_not_remembered(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise error

    for _ in range(first_use.MOST_DEATHS + 1):
        with monkeypatch.context() as patch:
            patch.setattr(in_c, "attention", stop)
            with pytest.raises(type(error)):
                serving(PACKAGE, torch.empty(0))
    assert serving(PACKAGE, torch.empty(0)) == "c"


def test_a_damaged_memory_is_made_anew(folder: Path) -> None:
    serving(PACKAGE, torch.empty(0))
    (file,) = folder.iterdir()
    for damage in (b"", b"{", b"[]", b'{"cause": 3, "more": 4}', bytes(range(256))):
        file.write_bytes(damage)
        first_use._cause.cache_clear()
        assert serving(PACKAGE, torch.empty(0)) == "c"


def test_without_a_folder_every_process_compares(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> Path:
        raise OSError("read-only")

    monkeypatch.setattr(first_use, "_folder", refuse)
    assert serving(PACKAGE, torch.empty(0)) == "c"
    first_use._cause.cache_clear()
    plant(differs)
    assert serving(PACKAGE, torch.empty(0)) == "torch"


def test_a_link_in_the_place_of_the_memory_is_not_followed(folder: Path) -> None:
    serving(PACKAGE, torch.empty(0))
    (file,) = folder.iterdir()
    file.unlink()
    file.symlink_to(folder / "elsewhere")
    first_use._cause.cache_clear()
    assert serving(PACKAGE, torch.empty(0)) == "c"
    assert not (folder / "elsewhere").exists()


@pytest.mark.parametrize("surroundings", ["autocast", "inference", "fake", "meta"])
def test_what_surrounds_the_first_use_does_not_matter(surroundings: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    tensor = torch.empty(0)
    modes = {
        "autocast": torch.autocast("cpu", torch.bfloat16),
        "inference": torch.inference_mode(),
        "fake": FakeTensorMode(),
        "meta": torch.device("meta"),
    }
    state = torch.get_rng_state()
    with modes[surroundings]:  # type: ignore[attr-defined]
        assert serving(PACKAGE, tensor) == "c"
    assert torch.equal(torch.get_rng_state(), state)


def test_the_doctor_compares_again_and_shows_what_is_wrong(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    from search.cli.doctor import _kernels

    with monkeypatch.context() as patch:
        patch.setattr(in_c, "attention", raises)
        assert serving(PACKAGE, torch.empty(0)) == "torch"
        with pytest.raises(RuntimeError, match=r"attention +raises RuntimeError"):
            _kernels()
    table = _kernels()
    assert "agrees to" in table
    assert table.count(" ms, torch ") == 12
    assert serving(PACKAGE, torch.empty(0)) == "c"


def test_logging_is_the_only_voice(capfd: pytest.CaptureFixture[str], plant: Plant) -> None:
    logging.getLogger("supernet.kernels.first_use").handlers.clear()
    plant(differs)
    attend()
    assert capfd.readouterr().out == ""


def test_an_operator_without_kernels_is_torchs_and_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a GPU `auto` says Triton, and AdamW's step has none there."""
    monkeypatch.setattr("supernet.kernels.select.formulation", lambda tensor: "triton")
    with caplog.at_level(logging.WARNING):
        assert serving("supernet.kernels.adamw", torch.zeros(1)) == "torch"
    assert caplog.text == ""
