"""What users name is text everywhere: no markup, no escape sequence, no HTML, no shell words."""

from __future__ import annotations

import html
import io
import shlex
import subprocess
from pathlib import Path

import pytest
from rich.table import Table

from search.retraining.model_card import _code, _text
from search.terminal.console import PlainConsole, shell_command, visible
from tests.search.cli.test_app import search
from tests.tiny_run import write_run

NAMES = (
    "a [red]b",
    "[/x]",
    "a [bold",
    "[link=http://x]y[/link]",
    ":smile:",
    "a b; rm -rf c",
    "it's",
    "$(touch hacked)",
    "`touch hacked`",
    "--help",
    "\x1b[2J\x1b[31mred",
    "a\x07b\rc",
    "right\u202eleft",
    "two\nlines",
)


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    return tmp_path


def is_plain(text: str) -> bool:
    """Tell whether a terminal obeys nothing in it."""
    return all(character.isprintable() or character in "\n\t" for character in text)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_s_name_is_shown_and_quoted(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    write_run(tmp_path / name)
    run = f"./{name}"

    for command in ("status", "pareto", "select"):
        assert search(command, run) == 0
        printed = capsys.readouterr().out
        assert is_plain(printed)
    command = next(line for line in printed.splitlines() if line.startswith("  search retrain"))
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True
    ).stdout.split(b"\0")
    assert words[:3] == [b"search", b"retrain", str(Path(run)).encode()]


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_name_is_shown_in_the_message(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search("show", f"nothing/{name}") == 2
    error = capsys.readouterr().err

    assert is_plain(error)
    assert error.startswith("Error: ")


@pytest.mark.parametrize("name", NAMES)
def test_side_by_side_names_are_shown_as_they_are(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search("show", "swin_t", "--json")
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(capsys.readouterr().out)

    assert search("compare", f"./{name}", "elsa_swin_t") == 0
    printed = capsys.readouterr().out

    assert is_plain(printed)
    if "\n" not in name:
        assert visible(name) in printed


@pytest.mark.parametrize("text", NAMES)
def test_tables_titles_and_lines_are_text(text: str) -> None:
    console = PlainConsole()
    console.file = io.StringIO()
    table = Table(title=text, caption=text)
    table.add_column(text)
    table.add_row(text)
    console.print(table)
    console.say(text)

    assert is_plain(console.file.getvalue())
    if "\n" not in text:
        assert console.file.getvalue().count(visible(text)) == 5


@pytest.mark.parametrize("name", [*NAMES, "back\\slash\x01", "tab\tname", "byte\udcff"])
def test_a_suggested_command_reads_as_it_was_meant(name: str) -> None:
    command = shell_command("printf", "%s", name)

    assert command.isprintable()
    printed = subprocess.run(["bash", "-c", command], capture_output=True, check=True).stdout
    assert printed == name.encode("utf-8", "surrogateescape")


def test_plain_words_stay_plain() -> None:
    words = ("search", "retrain", "runs/a", "--arch", "1")
    assert shell_command(*words) == shlex.join(words) == " ".join(words)


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "<img src=x onerror=a()>", "a|b", "[x](javascript:a)"]
)
def test_class_names_are_text_in_a_model_card(name: str) -> None:
    shown = _text(name)

    assert "<" not in shown
    assert not any(shown[i] in "|[]" and shown[i - 1] != "\\" for i in range(1, len(shown)))
    assert html.unescape(shown.replace("\\", "")) == name


def test_code_has_more_backticks_than_it_holds() -> None:
    assert _code("plain") == "`plain`"
    assert _code("a``b") == "``` a``b ```"
