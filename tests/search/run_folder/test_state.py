"""What a run knows of itself: what another version wrote is one message."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from search.record import Address, Record
from search.run_folder import RunSettings, open_run
from search.run_folder.folder import RECORD
from search.run_folder.state import RunState


@pytest.mark.parametrize(
    ("key", "stored", "attribute"),
    [
        ("plan", {"until": {"search": 1.0}}, "plan"),
        ("plan", [1], "plan"),
        ("times", {"supernet_step": "fast"}, "times"),
        ("phase", 3, "phase"),
        ("retrainings", {"1 retrain-micro-9e": 3}, "retrainings"),
    ],
)
def test_what_another_version_kept_is_one_message(
    tmp_path: Path, key: str, stored: object, attribute: str
) -> None:
    with Record.create(tmp_path / "record.db") as record:
        record.set_meta(key, stored)
        with pytest.raises(ValueError, match=f"keeps as '{key}' is of another version") as raised:
            getattr(RunState(record), attribute)
    assert "validation error" not in str(raised.value)


@pytest.mark.parametrize("changed", [{"teachers": ["a", "b"]}, {"budget": 5}, {"objectives": 3}])
def test_settings_of_another_version_are_one_message(
    tmp_path: Path, changed: dict[str, object]
) -> None:
    settings = RunSettings(data="digits", budget="1cpu-minute").to_dict()
    with Record.create(tmp_path / RECORD) as record:
        record.set_meta("settings", settings | changed)

    with (
        pytest.raises(ValueError, match="settings of this run are of another version"),
        open_run(tmp_path),
    ):
        pass


def test_of_two_that_measure_at_the_same_time_neither_loses_its_latencies(place: Address) -> None:
    Record.create(place).close()
    both = threading.Barrier(2)

    def measure(first: int) -> None:
        with Record.open(place) as record:
            both.wait(60)
            for number in range(first, first + 40):
                RunState(record).add_latencies_ms({number: 1.0})

    threads = [threading.Thread(target=measure, args=(first,)) for first in (0, 40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    with Record.open(place) as record:
        assert sorted(RunState(record).latencies_ms) == list(range(80))
