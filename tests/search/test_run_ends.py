"""How a run ends where something breaks at the last moment; without Ray."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from search import run as run_module
from search.record import DatabaseLostError, Record, RefusedError
from search.run import FULL_DISK, NO_DATABASE, run_search
from search.run_folder.settings import RunSettings
from search.scheduling import BudgetSpent


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RefusedError("database or disk is full"), FULL_DISK),
        (DatabaseLostError("It broke off. Go on with the run."), NO_DATABASE),
    ],
)
@pytest.mark.parametrize("is_spent", [False, True])
def test_what_breaks_while_the_end_is_written_down_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    expected: str,
    is_spent: bool,
) -> None:
    class State:
        @property
        def phase(self) -> str:
            return "finish"

        @phase.setter
        def phase(self, phase: str) -> None:
            raise error

    def search(session: Any) -> None:
        if is_spent:
            raise BudgetSpent("The budget was spent in the phase finish; it ends here.")

    cluster = SimpleNamespace(devices=1)
    monkeypatch.setattr(run_module, "Cluster", lambda **given: nullcontext(cluster))
    monkeypatch.setattr(run_module, "Session", lambda *given: None)
    monkeypatch.setattr(run_module, "prepare_nodes", lambda session: None)
    monkeypatch.setattr(run_module, "search_with", search)
    with Record.create(tmp_path / "record.db") as record:
        run: Any = SimpleNamespace(
            folder=tmp_path,
            record=record,
            settings=RunSettings(data="digits", budget="1cpu-minute"),
            state=State(),
            mend_data=lambda: SimpleNamespace(lines=list),
            share_data=lambda: None,
        )
        assert run_search(run, Console(quiet=True)) == expected
