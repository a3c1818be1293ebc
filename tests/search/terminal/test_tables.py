"""Tables fit a terminal of 80 columns and lose nothing."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from search.results.candidates import Candidate, candidates, front, retrained
from search.terminal.tables import (
    architecture_json,
    architecture_table,
    describe_stages,
    format_count,
    format_interval,
    format_measured,
    front_table,
)
from searchspace.architecture import Architecture, describe
from searchspace.cost import count, count_parts
from searchspace.presets import PRESETS, preset
from tests.strategies import architectures
from tests.tiny_trials import trial


def render(table: Table) -> str:
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def make_candidate(
    architecture: Architecture, *, number: int = 12_345, latency_ms: float | None = 123.456
) -> Candidate:
    cost = count(architecture)
    return Candidate(
        id=number,
        key=architecture.key,
        architecture=architecture,
        fidelity="train-300e",
        top1=100.0,
        low=87.6,
        high=100.0,
        num_seeds=1,
        params=cost.params,
        macs=cost.macs,
        latency_ms=latency_ms,
        images=50.0,
        near_front=True,
    )


def letters(text: str) -> str:
    """Leave out all spaces and lines, where a cell may be folded."""
    return "".join(char for char in text if char.isalnum())


@given(st.lists(architectures(), min_size=1, max_size=3))
def test_the_front_table_fits_80_columns_with_all_its_columns(found: list[Architecture]) -> None:
    rows = [make_candidate(architecture) for architecture in found]

    text = render(front_table(rows, retrained=rows))

    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


@given(architectures())
def test_the_front_table_folds_architectures_instead_of_cutting_them(
    architecture: Architecture,
) -> None:
    text = render(front_table([make_candidate(architecture)]))

    column = [line.split("│")[-2] for line in text.splitlines() if line.startswith("│")]
    assert letters("".join(column)) == letters(describe(architecture))


def test_the_front_table_shows_every_member_and_its_fidelity() -> None:
    trials = [trial(1, correct=150), trial(2, correct=190)]
    trials.append(trial(2, correct=195, fidelity="retrain-micro-9e"))
    members = front(trials)

    text = render(front_table(members, retrained=retrained(trials)))

    assert "train-3e" in text
    for member in members:
        assert f"{member.id} │ {format_interval(member)}" in text
    assert format_interval(retrained(trials)[0]) in text


def test_a_latency_that_was_not_measured_has_no_column() -> None:
    measured = make_candidate(trial(1, correct=1).architecture)
    missing = make_candidate(trial(1, correct=1).architecture, latency_ms=None)

    assert " ms " in render(front_table([measured, missing]))
    assert " ms " not in render(front_table([missing]))


@pytest.mark.parametrize("name", PRESETS)
def test_the_architecture_table_of_every_preset_fits_80_columns(name: str) -> None:
    text = render(architecture_table(preset(name)))

    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for part in count_parts(preset(name)):
        assert f"│ {part} " in text


@given(architectures())
def test_the_architecture_as_json_adds_up_and_gives_it_back(architecture: Architecture) -> None:
    data = json.loads(json.dumps(architecture_json(architecture)))

    assert {"key", "params", "macs", "img_size", "stages"} <= set(data)
    assert Architecture.from_dict(data["architecture"]) == architecture
    parts = count_parts(architecture)
    ends = parts["stem"].params + parts["head"].params
    assert sum(stage["params"] for stage in data["stages"]) + ends == data["params"]
    assert [stage["map_size"] for stage in data["stages"]] == list(architecture.resolutions)


@given(architectures())
def test_every_stage_is_described(architecture: Architecture) -> None:
    assert len(describe_stages(architecture)) == len(architecture.stages)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, "0"),
        (640, "640"),
        (999, "999"),
        (1_000, "1.00K"),
        (334_900, "335K"),
        (999_499, "999K"),
        (999_960, "1.00M"),
        (28_288_354, "28.3M"),
        (4_509_000_000, "4.51G"),
        (7.2e12, "7.20T"),
    ],
)
def test_counts_have_three_digits_and_a_unit(number: float, expected: str) -> None:
    assert format_count(number) == expected


def test_a_cost_with_noise_is_said_to_be_taken_as_exact() -> None:
    for low, is_said in ((None, False), (1.0, True)):
        (one,) = candidates([trial(1, correct=90, latency_ms=2.0)], fidelity="train-3e")
        found = replace(one, front_probability=1.0, latency_low_ms=low)
        caption = str(front_table([found]).caption)
        assert ("costs taken as exact" in caption) == is_said


@pytest.mark.parametrize(
    ("cost", "expected"),
    [(None, ""), (0.98712, "0.987"), (12.94, "12.9"), (999.7, "1,000"), (1031.2, "1,031")],
)
def test_what_is_measured_has_no_exponent(cost: float | None, expected: str) -> None:
    assert format_measured(cost) == expected


def test_an_interval_is_written_with_its_longer_half() -> None:
    (candidate,) = candidates([trial(1, correct=10, total=10)], fidelity="train-3e")

    assert format_interval(candidate) == f"100.0 ±{100 - candidate.low:.1f}"
