"""The record: what it takes, keeps and refuses; on both databases."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.record.record import Record
from search.record.schema import Address
from tests.tiny_record import add_trial, make_architecture


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "record.sqlite"


def test_an_existing_file_is_not_overwritten(path: Path) -> None:
    path.write_text("precious")

    with pytest.raises(ValueError, match="never overwritten"):
        Record.create(path)

    assert path.read_text() == "precious"


def test_a_missing_file_is_refused_and_not_made(path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        Record.open(path)

    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"no database at all, just some text"])
def test_a_file_that_is_no_record_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)

    with pytest.raises(ValueError, match="cannot be read as the record of a run"):
        Record.open(path)


def test_a_record_of_another_schema_version_is_refused(record: Record, place: Address) -> None:
    record.set_meta("schema_version", 99)

    with pytest.raises(ValueError, match="schema version 99"):
        Record.open(place)


def test_meta_values_survive_reopening(record: Record, place: Address) -> None:
    record.set_meta("plan", {"phases": ["supernet"], "share": 0.5})
    record.set_meta("plan", {"phases": ["supernet", "search"], "share": 0.25})

    with Record.open(place) as reader:
        assert reader.get_meta("plan") == {"phases": ["supernet", "search"], "share": 0.25}
        assert reader.get_meta("absent") is None


def test_an_architecture_keeps_its_first_id_and_costs(record: Record) -> None:
    first = record.add_architecture(make_architecture(10), params=5, macs=7)
    other = record.add_architecture(make_architecture(11), params=6, macs=8)

    assert record.add_architecture(make_architecture(10), params=50, macs=70) == first != other
    assert record.architecture(first) == make_architecture(10)
    assert record.architecture_id(make_architecture(11).key) == other
    assert record.architecture_id("unknown") is None
    trial = record.trial(add_trial(record))
    assert (trial.key, trial.params, trial.macs) == (make_architecture(10).key, 5, 7)


def test_a_trial_is_one_for_each_architecture_fidelity_and_seed(record: Record) -> None:
    first = add_trial(record)

    assert add_trial(record) == first
    assert len({first, add_trial(record, seed=1), add_trial(record, fidelity="short")}) == 3
    assert [trial.id for trial in record.trials(fidelity="short")] == [3]
    assert [trial.seed for trial in record.trials(fidelity="inherited")] == [0, 1]


def test_what_the_record_does_not_have_is_refused(record: Record) -> None:
    with pytest.raises(ValueError, match="no architecture 7"):
        record.architecture(7)
    with pytest.raises(ValueError, match="no architecture 7"):
        record.add_trial(7, fidelity="short", seed=0, origin="test")
    with pytest.raises(ValueError, match="no trial 7"):
        record.trial(7)
    with pytest.raises(ValueError, match="trial 7 is unknown"):
        record.start_attempt("search", devices=1, trial_id=7)
    with pytest.raises(ValueError, match="no attempt 7"):
        record.finish_attempt(7, outcome="lost")


def test_an_architecture_is_parsed_once(record: Record) -> None:
    add_trial(record, seed=0)
    add_trial(record, seed=1)

    first, second = record.trials()

    assert first.architecture is second.architecture is record.trials()[0].architecture
