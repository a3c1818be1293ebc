"""The end of a run that judged nothing: it says so, how to go on, and that it is no success."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from search import run
from search.cli import app as cli
from search.report.outcome import print_outcome
from search.run_folder.folder import create_run
from search.run_folder.settings import RunSettings
from tests.search.test_run import SPACE


def test_a_run_without_a_front_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(SPACE)
    settings = RunSettings(space=str(tmp_path / "tiny.yaml"), data="digits", budget="60cpu-seconds")
    shown = StringIO()
    with create_run(tmp_path / "run", settings) as opened:
        attempt = opened.record.start_attempt("measure", devices=1)
        opened.record.finish_attempt(attempt, outcome="done")

        assert not print_outcome(opened, Console(file=shown, width=200))

    assert "of 60.0 device-seconds spent (0.0%)" in shown.getvalue()
    assert f"search run --resume --out {tmp_path / 'run'} --budget AMOUNT" in shown.getvalue()


def test_the_command_fails_where_no_network_was_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "run_search", lambda *arguments, **options: None)
    words = ["run", "--budget", "60cpu-seconds", "--out", str(tmp_path / "run")]

    result = CliRunner().invoke(cli.app, words)

    assert result.exit_code == 1
    assert "No network has been judged: 0.0 of 60.0 device-seconds" in result.output
