"""Laws of a result's values: what is not measured is not kept, and reading inverts writing."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.record.measured import Measured, curve_values, learning_curve

NAMES = ("top1", "correct", "total", "score", "seconds", "latency_ms", "latency_low_ms")
VALUES = st.dictionaries(st.sampled_from(NAMES), st.floats(allow_nan=False, allow_infinity=False))


@given(VALUES)
def test_reading_inverts_writing(values: dict[str, float]) -> None:
    found = Measured.read(values)

    assert found.values() == values
    assert all(getattr(found, name) == value for name, value in values.items())


def test_an_accuracy_is_the_percentage_of_what_is_right() -> None:
    found = Measured.judged(3, 8, {"latency_ms": 2.5})

    assert found.values() == {"top1": 37.5, "correct": 3, "total": 8, "latency_ms": 2.5}
    assert math.isnan(found.memory_mib)


def test_values_of_other_tasks_are_passed_over_when_read_and_refused_when_made() -> None:
    assert Measured.read({"average_precision": 40.0}).values() == {}
    with pytest.raises(TypeError, match="average_precision"):
        Measured.judged(1, 2, {"average_precision": 40.0})


@given(st.dictionaries(st.integers(1, 300), st.floats(0, 10)))
def test_a_learning_curve_is_read_as_it_was_kept_beside_other_values(
    losses: dict[int, float],
) -> None:
    kept = {"top1": 50.0, "loss": 3.0} | curve_values(losses)
    assert learning_curve(kept) == losses
    assert list(learning_curve(kept)) == sorted(losses)
