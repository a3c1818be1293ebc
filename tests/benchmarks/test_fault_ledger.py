"""The fault suite's rule for the time in which nobody knows what a dead node holds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.faults.scene import forgiven

Spans = list[tuple[float, float, float]]


def scene(charges: Spans, held: list[tuple[float, float]], dead: list[tuple[float, float]]) -> Any:
    stopwatch = SimpleNamespace(changes=held)
    return SimpleNamespace(query=lambda text: charges, stopwatch=stopwatch, unnoticed=dead)


@pytest.mark.parametrize(
    ("charges", "held", "expected"),
    [
        pytest.param([(0, 30, 2.0)], [(0, 2), (30, 0)], 0, id="charged as held"),
        pytest.param([(0, 30, 2.0)], [(0, 2), (15, 1), (30, 0)], 5, id="charged longer"),
        pytest.param([(0, 12, 2.0), (12, 30, 1.0)], [(0, 2), (30, 0)], -8, id="charged shorter"),
        pytest.param([(0, 30, 3.0)], [(0, 1), (30, 0)], 10, id="no more than that node's device"),
        pytest.param([(0, 10, 2.0), (20, 30, 2.0)], [(0, 2), (30, 0)], -10, id="nor less"),
    ],
)
def test_only_a_dead_nodes_device_is_forgiven_and_only_until_ray_has_noticed(
    charges: Spans, held: list[tuple[float, float]], expected: float
) -> None:
    assert forgiven(scene(charges, held, [(10, 20)])) == pytest.approx(expected)
    assert forgiven(scene(charges, held, [])) == 0
