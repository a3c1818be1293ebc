"""Laws of a result's values: what is not measured is not kept, and reading inverts writing."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.record.measured import Measured

NAMES = ("top1", "correct", "total", "score", "seconds", "latency_ms", "latency_low_ms", "kl")
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.dictionaries(st.sampled_from(NAMES), NUMBERS)
LOSSES = st.dictionaries(st.integers(1, 300), st.floats(0, 10))


@given(VALUES, LOSSES)
def test_reading_inverts_writing(values: dict[str, float], losses: dict[int, float]) -> None:
    found = Measured(**values, losses=losses)

    written = found.to_json()
    assert written == values | {f"loss@{epoch}": loss for epoch, loss in losses.items()}
    read = Measured.from_json(written)
    assert read == found
    assert list(read.losses) == sorted(losses)
    assert all(found.value(name) == value for name, value in values.items())
    assert {name for name in NAMES if found.has(name)} == set(values)


def test_an_accuracy_is_the_percentage_of_what_is_right() -> None:
    found = Measured.judged(3, 8)

    assert found.to_json() == {"top1": 37.5, "correct": 3, "total": 8}
    assert math.isnan(found.memory_mib)


def test_unknown_values_are_passed_over_when_read_and_refused_when_made() -> None:
    assert not Measured.from_json({"average_precision": 40.0, "loss": 3.0})
    with pytest.raises(TypeError, match="average_precision"):
        Measured(average_precision=40.0)  # type: ignore[call-arg]


@given(VALUES, VALUES, LOSSES, LOSSES)
def test_of_two_that_measured_the_same_the_second_counts(
    first: dict[str, float],
    second: dict[str, float],
    losses: dict[int, float],
    more: dict[int, float],
) -> None:
    joined = Measured(**first, losses=losses) | Measured(**second, losses=more)
    assert joined == Measured(**(first | second), losses=losses | more)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Measured(), False),
        (Measured(top1=math.nan), False),
        (Measured(seconds=0.0), True),
        (Measured(losses={1: 0.5}), True),
    ],
)
def test_it_is_true_where_anything_was_measured(found: Measured, expected: bool) -> None:
    assert bool(found) is expected


@pytest.mark.parametrize(
    ("found", "measure", "quality"),
    [
        (Measured(top1=50.0, kl=0.5), "top1", 50.0),
        (Measured(ap_box=30.0, ap_mask=20.0), "ap_mask", 20.0),
        (Measured(ap_box=30.0), "ap_box", 30.0),
        (Measured(miou=0.0, pixel_accuracy=9.0), "miou", 0.0),
    ],
)
def test_the_quality_is_that_of_the_task(found: Measured, measure: str, quality: float) -> None:
    assert (found.measure, found.quality) == (measure, quality)
    assert Measured(score=1.0).measure is None
    assert math.isnan(Measured(score=1.0).quality)
