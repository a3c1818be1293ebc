"""Budgets: what is accepted, what is refused with a remedy, and how amounts are written."""

from __future__ import annotations

import math
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search import budget
from search.budget import Budget, Device, format_seconds, parse_budget

MINUTE, HOUR, DAY = 60, 60 * 60, 24 * 60 * 60

devices = st.sampled_from(("cpu", "gpu"))


@pytest.mark.parametrize(
    ("text", "seconds", "device"),
    [
        ("50gpu-days", 50 * DAY, "gpu"),
        ("12gpu-hours", 12 * HOUR, "gpu"),
        ("10cpu-minutes", 10 * MINUTE, "cpu"),
        ("90cpu-seconds", 90, "cpu"),
        ("1gpu-day", DAY, "gpu"),
        ("1.5 cpu-hours", 90 * MINUTE, "cpu"),
        (".5gpu-minutes", 30, "gpu"),
        ("0.7gpu-days", 60_480, "gpu"),
        ("  3 GPU-Hours ", 3 * HOUR, "gpu"),
    ],
)
def test_an_amount_and_a_unit_are_read(text: str, seconds: float, device: Device) -> None:
    assert parse_budget(text) == Budget(amount_seconds=seconds, device=device)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10",
        "gpu-days",
        "10gpu",
        "10days",
        "10tpu-days",
        "10gpu-weeks",
        "10gpu_days",
        "ten gpu-days",
        "10  gpu-days",
        "10gpu-dayss",
        "10gpu-days and more",
        "0gpu-days",
        "0.0cpu-minutes",
        "-1gpu-days",
        "nangpu-days",
        "infgpu-days",
        "1,000gpu-days",
        "1e3gpu-days",
        "\N{ARABIC-INDIC DIGIT THREE}gpu-days",
        "9" * 400 + "gpu-days",
        "9" * 5_000 + "gpu-days",
        "0." + "0" * 400 + "1cpu-seconds",
    ],
)
def test_anything_else_is_refused_with_the_rule_the_value_and_the_remedy(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"positive amount and a unit, e\.g\. '50gpu-days'"
    ) as error:
        parse_budget(text)

    assert repr(text) in str(error.value)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_budget_that_is_not_positive_and_finite_cannot_be_made(seconds: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        Budget(amount_seconds=seconds, device="gpu")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("50gpu-days", "50gpu-days"),
        ("24 cpu-hours", "1cpu-day"),
        ("90 cpu-minutes", "90cpu-minutes"),
        ("0.5gpu-days", "12gpu-hours"),
        ("0.1cpu-seconds", "0.1cpu-seconds"),
        ("0.0000001cpu-seconds", "0.0000001cpu-seconds"),
    ],
)
def test_equal_budgets_have_one_canonical_text(text: str, canonical: str) -> None:
    assert str(parse_budget(text)) == canonical


@given(
    seconds=st.sampled_from((sys.float_info.max, 5e-324))
    | st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False),
    device=devices,
)
def test_the_canonical_text_says_the_budget_exactly(seconds: float, device: Device) -> None:
    budget = Budget(amount_seconds=seconds, device=device)

    assert parse_budget(str(budget)) == budget


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 cpu-seconds"),
        (0.04, "0 cpu-seconds"),
        (1, "1 cpu-second"),
        (59.94, "59.9 cpu-seconds"),
        (59.97, "1 cpu-minute"),
        (498, "8.3 cpu-minutes"),
        (600, "10 cpu-minutes"),
        (3_599, "1 cpu-hour"),
        (5_400, "1.5 cpu-hours"),
        (DAY, "1 cpu-day"),
        (5_000 * DAY, "5,000 cpu-days"),
        (-90, "-1.5 cpu-minutes"),
        (-0.01, "0 cpu-seconds"),
    ],
)
def test_amounts_are_written_for_people(seconds: float, text: str) -> None:
    assert format_seconds(seconds, "cpu") == text


@pytest.mark.parametrize(("cores", "expected"), [(6, 6), (1, 1), (None, 1)])
def test_where_processes_have_no_affinity_all_cores_count(
    monkeypatch: pytest.MonkeyPatch, cores: int | None, expected: int
) -> None:
    """As on macOS, which has no control groups either."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(budget, "cgroup_quota", lambda: math.inf)
    assert budget.count_cores() == expected


@pytest.mark.parametrize(("quota", "expected"), [(0.5, 1), (2.9, 2), (4.0, 4), (99.0, 8)])
def test_a_part_of_a_core_is_no_device(
    monkeypatch: pytest.MonkeyPatch, quota: float, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(budget, "cgroup_quota", lambda: quota)
    assert budget.count_cores() == expected
