"""Sums of parts become networks: a call is counted once, and the line is that of the networks."""

from __future__ import annotations

import pytest

from search.deployed.fitting import Times, fit_line, fit_table
from searchspace.deployment import Deployment
from searchspace.latency_table import LatencyTable, macro_of, parts_of
from tests.tiny_trials import network

CALL = 0.002
EMPTY = LatencyTable(
    macro=macro_of(network(1)),
    deployment=Deployment(target="onnxruntime"),
    device="an abacus",
    threads=1,
    versions="none",
    measured_on="2026-11-29",
    parts={},
)


def test_a_network_has_one_call_and_each_part_had_one() -> None:
    parts = parts_of(network(1))
    seconds = {part: [CALL + 0.001 * (1 + n)] * 5 for n, part in enumerate(dict.fromkeys(parts))}
    times = Times(call=[CALL] * 5, parts=seconds, fitted=[], checked=[(network(1), [1.0] * 5)])

    table, (checked,) = fit_table(EMPTY, times)

    expected = 2.0 + sum(1000 * seconds[part][0] - 2.0 for part in parts)
    assert table.predict(network(1)) == pytest.approx(expected)
    assert checked.measured.median_ms == 1000.0
    assert table.median_error == pytest.approx(abs(expected / 1000 - 1))
    assert (table.num_fitted, table.num_checked) == (0, 1)


def test_a_part_faster_than_a_call_takes_no_time() -> None:
    seconds = dict.fromkeys(parts_of(network(1)), [CALL / 2] * 5)
    table, _ = fit_table(EMPTY, Times(call=[CALL] * 5, parts=seconds, fitted=[], checked=[]))

    assert {part.median_ms for part in table.parts.values()} == {0.0}


def test_the_line_of_networks_is_found() -> None:
    sums = [1.0, 2.0, 4.0, 8.0]

    assert fit_line(sums, [0.5 + 0.75 * one for one in sums]) == pytest.approx((0.75, 0.5))


@pytest.mark.parametrize(
    ("sums", "wholes"),
    [
        ([2.0, 2.0, 2.01], [1.0, 1.1, 0.9]),  # hardly different
        ([1.0, 2.0, 4.0], [4.0, 2.0, 1.0]),  # falling
        ([1.0, 2.0, 4.0], [0.5, 1.5, 3.5]),  # below nothing at 0
        ([3.0], [2.0]),
    ],
)
def test_where_there_is_no_line_there_is_a_scale(sums: list[float], wholes: list[float]) -> None:
    scale, constant = fit_line(sums, wholes)

    assert constant == 0.0
    assert min(w / s for s, w in zip(sums, wholes, strict=True)) <= scale
    assert scale <= max(w / s for s, w in zip(sums, wholes, strict=True))
