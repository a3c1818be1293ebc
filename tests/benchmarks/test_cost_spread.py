"""The table of how far spaces spread cost."""

from __future__ import annotations

import pytest

from benchmarks.cost_spread import Spread, main


def test_both_factors_are_of_the_dear_over_the_cheap() -> None:
    spread = Spread(cheap=(1, 2, 3), dear=(12, 15, 18))
    assert spread.edges == pytest.approx(12 / 3)
    assert spread.means == pytest.approx(15 / 2)


def test_every_space_that_is_asked_for_has_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    main(["digits", "micro"])
    *_, first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("| digits | 32 | ")
    assert second.startswith("| micro | 32 | ")
