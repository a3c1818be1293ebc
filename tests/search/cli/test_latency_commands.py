"""`search latency`: what is measured, and what does not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from search.cli import latency_commands
from search.cli.app import app
from search.cli.latency_commands import _Asked, _describe_front
from search.record.record import Record
from searchspace.deployment import Deployment
from searchspace.latency_table import Latency
from tests.tiny_run import write_run
from tests.tiny_trials import trial


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[Any, ...]]]:
    found: list[tuple[str, tuple[Any, ...]]] = []
    for name in ("_measure_space", "_check_front", "_measure_parts"):
        monkeypatch.setattr(
            latency_commands, name, lambda *words, name=name, **_: found.append((name, words))
        )
    return found


@pytest.mark.parametrize(
    ("words", "called", "number"),
    [
        (("--space", "digits"), "_measure_space", 50),
        (("--check", "--space", "digits"), "_measure_space", 50),
        (("--check", "3"), "_measure_space", 3),
        (("run", "--check"), "_check_front", None),
        (("--check", "run"), "_check_front", None),
        (("run",), "_check_front", None),
        (("--parts", "kit"), "_measure_parts", None),
    ],
)
def test_a_check_may_stand_without_its_number(
    words: tuple[str, ...],
    called: str,
    number: int | None,
    asked: list[tuple[str, tuple[Any, ...]]],
) -> None:
    app(["latency", *words], standalone_mode=False)

    ((name, given),) = asked
    assert name == called
    assert number is None or given[3] == number


@pytest.mark.parametrize(
    "words",
    [
        ("--parts", "kit", "--export", "new"),
        ("--parts", "kit", "--precision", "int8"),
        ("--parts", "kit", "run"),
        ("run", "--out", "table.json"),
        ("--export", "new", "--target", "onnxruntime", "--csv", "table.csv"),
    ],
)
def test_what_does_not_go_together_is_one_message(
    words: tuple[str, ...],
    asked: list[tuple[str, tuple[Any, ...]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ValueError, match="do not go together"):
        app(["latency", *words], standalone_mode=False)
    assert asked == []


@pytest.mark.parametrize(
    ("objectives", "words", "said"),
    [
        (("top1", "latency_ms"), (), "median absolute difference 50.0 %"),
        (("top1", "latency_ms"), ("--batch", "8"), "of something else (one image, eager, fp32)"),
        (("top1", "macs"), (), "did not weigh the latency"),
    ],
)
def test_a_run_s_latencies_are_compared_with_what_they_are_of(
    objectives: tuple[str, ...],
    words: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = write_run(tmp_path / "run", [trial(n, correct=90 + n, latency_ms=n) for n in (1, 2)])
    with Record.open(folder / "record.db") as record:
        settings = record.get_meta("settings") | {"objectives": list(objectives)}
        record.set_meta("settings", settings)
    monkeypatch.setattr(
        "search.deployed.measuring.time_networks",
        lambda networks, *_, **__: {number: Latency(2 * number, 1, 9) for number in networks},
    )
    app(["latency", str(folder), *words], standalone_mode=False)

    printed = " ".join(capsys.readouterr().out.split())
    assert said in printed
    assert ("something else" in printed) == ("--batch" in words)


def test_what_is_typed_stands_over_what_a_run_says() -> None:
    run = Deployment(precision="bf16", batch=4)

    found = _Asked(target=None, precision=None, batch=2, device="cpu").over(run, exports=False)

    assert found == Deployment(precision="bf16", batch=2)


def test_files_are_not_written_for_torch() -> None:
    asked = _Asked(target="compiled", precision=None, batch=None, device="cpu")

    with pytest.raises(ValueError, match=r"--export writes files for .* got compiled"):
        asked.over(Deployment(), exports=True)


def test_a_front_is_described_by_its_differences_and_its_order() -> None:
    lines = _describe_front([(1.0, 2.0), (3.0, 3.0), (None, 1.0), (2.0, 4.0)])

    # Of 1, 3, 2 against 2, 3, 4: the second and the third network change places.
    assert "median absolute difference 50.0 %, largest 50.0 %" in lines[0]
    assert lines[1] == "Of 3 pairs 2 are in the same order."
