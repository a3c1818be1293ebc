"""Latency: of every part in the order of the forward pass, with the interval of the median."""

from __future__ import annotations

from itertools import count
from math import comb

import pytest
import torch

from searchspace.architecture import Architecture, Stage
from searchspace.cost import count_parts
from searchspace.latency_table import latency_of, median_interval
from searchspace.mixers import DepthwiseConv
from supernet.measuring.latency import (
    TIMED_RUNS,
    time_parts,
    time_runs,
)
from supernet.network.supernet import build_subnet

MIXER = DepthwiseConv(kernel_size=3)
NETWORK = Architecture(
    img_size=8,
    patch_size=2,
    num_classes=3,
    stages=(Stage(dim=4, mixers=(MIXER,)), Stage(dim=8, mixers=(MIXER, MIXER))),
)


def ticking() -> float:
    return float(next(TICKS))


TICKS = count()


def test_every_part_is_timed_and_they_make_the_whole() -> None:
    found = time_parts(
        build_subnet(NETWORK), NETWORK, torch.zeros(1, 3, 8, 8), runs=4, clock=ticking
    )

    # Between two looks at this clock lies one second.
    parts = list(count_parts(NETWORK))
    assert found == {**{part: [1.0] * 4 for part in parts}, "all": [float(len(parts))] * 4}


def test_runs_that_warm_up_do_not_count() -> None:
    calls = []
    network = torch.nn.Identity()
    network.register_forward_hook(lambda *_: calls.append(1))

    assert time_runs(network, torch.zeros(1), runs=5, clock=ticking) == [1.0] * 5
    assert len(calls) > 5


@pytest.mark.parametrize("runs", [6, 15, TIMED_RUNS, 51])
def test_the_interval_holds_the_median_with_95_percent_and_is_the_shortest(runs: int) -> None:
    low, high = median_interval(range(runs))

    def chance(low: int, high: int) -> float:
        # The median lies between the order statistics low and high (from 0) when more than `low`
        # and at most `high` of the runs are below it, each with a half.
        return sum(comb(runs, below) for below in range(low + 1, high + 1)) / 2**runs

    # Symmetric: as many runs are left out on either side.
    assert low == runs - 1 - high
    assert chance(int(low), int(high)) >= 0.95
    assert chance(int(low) + 1, int(high) - 1) < 0.95


def test_a_latency_is_the_median_and_its_interval_in_milliseconds() -> None:
    found = latency_of([0.001 * (index + 1) for index in range(TIMED_RUNS)])
    assert (found.median_ms, found.low_ms, found.high_ms) == pytest.approx((15.5, 10.0, 21.0))
