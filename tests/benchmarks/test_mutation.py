"""The mutation study: its named changes are changes of today's program, and so are the others."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from benchmarks.mutate import named, read_equivalent
from benchmarks.mutation.changes import changes_of, is_python
from benchmarks.mutation.forks import is_inside_function
from benchmarks.mutation.named import NAMED
from benchmarks.mutation.scope import MODULES, TESTS

ROOT = Path(__file__).parents[2]
SOURCE = '''LIMIT = 3


def larger(value: int, other: int = 1) -> bool:
    """Tell whether it is."""
    if value < 0:
        raise ValueError(f"{value + 1} is too small")
    return value > other + LIMIT
'''


def test_every_named_change_finds_its_lines() -> None:
    found = named()
    assert [mutant.name for mutant in found] == [one.name for one in NAMED]
    for one, mutant in zip(NAMED, found, strict=True):
        assert mutant.source != (ROOT / one.module).read_text(encoding="utf-8")
        ast.parse(mutant.source)
        assert (ROOT / one.tests).exists()


def test_modules_and_tests_are_there() -> None:
    for path in (*MODULES, *TESTS):
        assert (ROOT / path).exists(), path


def test_changes_are_of_what_is_run_and_not_of_words() -> None:
    texts = {change.apply(SOURCE) for change in changes_of(SOURCE)}
    assert SOURCE not in texts
    assert all(map(is_python, texts))
    assert SOURCE.replace("value > other", "value >= other") not in texts  # it is in parentheses
    assert SOURCE.replace("value > other + LIMIT", "(value >= other + LIMIT)") in texts
    assert SOURCE.replace("LIMIT = 3", "LIMIT = 4") in texts
    assert SOURCE.replace("if value < 0", "if False") in texts
    # Messages, docstrings and annotations say something about the code.
    assert all("value + 1} is too small" in text for text in texts)


@pytest.mark.parametrize(
    ("line", "column", "expected"), [(1, 8, False), (4, 37, False), (6, 7, True), (8, 4, True)]
)
def test_a_default_is_outside_of_its_function(line: int, column: int, expected: bool) -> None:
    assert is_inside_function(SOURCE, line, column) == expected


def test_a_change_that_changes_nothing_is_named_with_its_reason(tmp_path: Path) -> None:
    file = tmp_path / "equivalent.txt"
    file.write_text("a.py: number: 1 -> 2  # it is only a message\\n\\n")
    assert read_equivalent(file) == {"a.py: number: 1 -> 2"}
