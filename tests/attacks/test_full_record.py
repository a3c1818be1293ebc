"""A disk that is full when the record is made: one message, and nothing is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.record.record import Record
from search.record.schema import RefusedError
from search.run_folder import create_run
from search.run_folder.settings import RunSettings


@pytest.mark.parametrize("fails", ["create", "claim", "set_meta"])
def test_a_record_that_does_not_fit_is_one_message_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def full(*_: object) -> None:
        raise RefusedError("database or disk is full")

    folder = tmp_path / "run"
    settings = RunSettings(data="digits", budget="1cpu-minute")
    with monkeypatch.context() as patch:
        patch.setattr(Record, fails, full)
        with (
            pytest.raises(ValueError, match=r"run cannot be written \(.*disk is full\). Free some"),
            create_run(folder, settings),
        ):
            raise AssertionError("it began")
    assert not list(tmp_path.rglob("*"))
    with create_run(folder, settings) as run:
        assert run.record.get_meta("settings")


def test_a_mistake_of_ours_in_the_record_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: object) -> None:
        raise RefusedError('near "SELEC": syntax error')

    monkeypatch.setattr(Record, "create", wrong)
    with (
        pytest.raises(RefusedError),
        create_run(tmp_path / "run", RunSettings(data="digits", budget="1cpu-minute")),
    ):
        raise AssertionError("it began")
    assert not list(tmp_path.rglob("*"))
