"""Amounts such as 5G are read as they are meant, or refused."""

from __future__ import annotations

import pytest

from searchspace.quantity import parse_quantity


@pytest.mark.parametrize(
    ("text", "amount"),
    [("5G", 5e9), ("2.5M", 2.5e6), ("300 K", 3e5), ("1e9", 1e9), ("17", 17), (" 4.5G ", 4.5e9)],
)
def test_amounts_are_scaled_by_their_letter(text: str, amount: float) -> None:
    assert parse_quantity(text) == amount


@pytest.mark.parametrize(
    "text", ["", "G", "5T", "5g", "-5G", "0", "0G", "nan", "inf", "1e999", "5 G G", "True"]
)
def test_other_amounts_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"Cannot read the amount .*e.g. '5G'"):
        parse_quantity(text)
