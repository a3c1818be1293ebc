"""Signals end a run in order; what is killed says so to whoever looks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from search.cli.app import main
from search.record.record import Record
from search.run_folder.folder import own_run
from search.terminal.progress import StopSignals
from tests.tiny_run import write_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def not_under_nohup() -> Iterator[None]:
    """The tests, and what they start, may themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_asks_the_run_to_stop(name: str) -> None:
    number = signal.Signals[name]
    before = signal.getsignal(number)
    with StopSignals() as stop:
        assert stop.requested is None
        os.kill(os.getpid(), number)
        assert stop.requested == name
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("again", ["SIGTERM", "SIGHUP"])
def test_what_follows_the_first_changes_nothing(again: str) -> None:
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.Signals[again])
        assert stop.requested == "SIGTERM"


def test_a_second_ctrl_c_interrupts() -> None:
    with StopSignals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_nohup_is_left_alone() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.requested is None
    finally:
        signal.signal(signal.SIGHUP, before)


HANGS_UP = """
import os, sys, time
from search.terminal.progress import StopSignals
with StopSignals() as stop:
    print("ready", flush=True)
    while stop.requested is None:
        time.sleep(0.01)
    print("goodbye", flush=True)
    print("goodbye", file=sys.stderr, flush=True)
open(sys.argv[1], "w").write(stop.requested)
"""


def test_after_its_terminal_was_closed_it_goes_on_to_its_end(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", HANGS_UP, str(tmp_path / "ended")],
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        assert terminal.readline().strip() == b"ready"
    process.send_signal(signal.SIGHUP)

    assert process.wait(60) == 0
    assert (tmp_path / "ended").read_text() == "SIGHUP"


def test_after_its_reader_has_gone_it_goes_on_to_its_end(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HANGS_UP, str(tmp_path / "ended")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"ready\n"
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGHUP)

    assert process.wait(60) == 0
    assert (tmp_path / "ended").read_text() == "SIGHUP"


def command(patch: pytest.MonkeyPatch, *words: str) -> int:
    patch.setattr("sys.argv", ["search", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("name", ["run", "my run"])
def test_a_second_ctrl_c_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("search.run.run_search", interrupted)

    assert command(monkeypatch, "run", "--budget", "1cpu-minute", "--out", name) == 130
    quoted = {"run": "run", "my run": "'my run'"}[name]
    assert f"Go on with: search run --resume --out {quoted}\n" in capsys.readouterr().err
    with own_run(tmp_path / name):
        pass


def test_ctrl_c_while_images_are_decoded_says_that_nothing_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("supernet.data.prepare_data", interrupted)

    assert command(monkeypatch, "run", "--budget", "1cpu-minute", "--out", "run") == 130
    assert "The same command begins it." in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def status(patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path) -> str:
    patch.setenv("COLUMNS", "300")
    patch.setattr("sys.argv", ["search", "status", str(folder)])
    with pytest.raises(SystemExit):
        main()
    return capsys.readouterr().out


KILLED = """
import os, signal, sys
from pathlib import Path
from search.record.record import Record
record = Record.open(Path(sys.argv[1]), clock=lambda: 1_700_000_000.0)
record.start_attempt("supernet", devices=1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_status_of_a_killed_run_says_that_nobody_works_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    with Record.open(run / "record.db") as record:
        record.set_meta("phase", "supernet")
    subprocess.run([sys.executable, "-c", KILLED, str(run / "record.db")], cwd=ROOT, check=False)

    shown = status(monkeypatch, capsys, run)

    since = f"{datetime.fromtimestamp(1_700_000_000.0):%Y-%m-%d %H:%M:%S}"
    assert f"nobody since {since}; go on with: search run --resume --out {run}" in shown


def test_the_status_of_a_run_that_is_worked_on_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    with Record.open(run / "record.db") as record:
        record.claim()
        assert "a process works on it" in status(monkeypatch, capsys, run)
    assert "nobody since" in status(monkeypatch, capsys, run)
