"""What a graft's search keeps and asks: estimates, scores with their costs, and its limits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from search.grafting import ESTIMATES, KL
from search.phases.grafting import _estimate, _write_scores
from search.phases.promote import promote
from search.record import Measured
from search.record.record import Record
from search.results import ZERO_COST, losses_of
from search.run_folder.state import RunState
from search.scheduling import Promotions
from searchspace.architecture import Architecture, Stage
from searchspace.cost import count
from searchspace.graft_space import Replacement, with_replacements
from searchspace.mixers import NoMixer, WindowAttention
from tests.tiny_graft import add_measured
from tests.tiny_trials import trial

WINDOW = WindowAttention(window_size=4, num_heads=2)
TEACHER = Architecture(
    img_size=32, patch_size=4, num_classes=10, stages=(Stage(dim=16, mixers=(WINDOW,) * 2),)
)
EMPTIED = with_replacements(TEACHER, [Replacement(stage=0, block=0, mixer=NoMixer())])


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    with Record.create(tmp_path / "record.db") as found:
        yield found


def session_of(record: Record) -> Any:
    return SimpleNamespace(
        record=record,
        state=RunState(record),
        run=SimpleNamespace(teacher=SimpleNamespace(architecture=TEACHER)),
        tick=lambda phase, may_stop: lambda: None,
    )


def test_a_score_has_the_costs_that_were_measured(record: Record) -> None:
    """Networks are promoted by them: without its latency none is within a limit of it."""
    judged = Measured.judged(9, 10)
    add_measured(record, EMPTIED, judged | Measured(kl=0.25, latency_ms=2.0, memory_mib=3.0))
    _write_scores(session_of(record), KL)
    (scored,) = record.trials(fidelity=ZERO_COST)
    assert losses_of(scored, ("top1", "latency_ms", "memory_mib")) == (0.25, 2.0, 3.0)


def test_networks_that_a_larger_budget_adds_are_estimated_as_well(record: Record) -> None:
    """Else an estimator that one of them lacks is compared no more."""
    add_measured(record, TEACHER, Measured(kl=0.0))
    add_measured(record, EMPTIED, Measured(kl=0.25))
    session, asked = session_of(record), list[list[Architecture]]()

    def call_split(method: str, networks: list[Architecture], while_waiting: object) -> Any:
        asked.append(networks)
        return [{one.key: {"nwot": 1.0}} for one in networks]

    crew: Any = SimpleNamespace(call_split=call_split)
    _estimate(session, crew, "search", [TEACHER])
    _estimate(session, crew, "search", [TEACHER, EMPTIED])
    assert asked == [[TEACHER], [EMPTIED]]
    scores = session.state.proxy_scores
    assert {*scores[TEACHER.key]} == {*scores[EMPTIED.key]} == {*ESTIMATES, KL, "nwot"}
    assert scores[EMPTIED.key][KL] == -0.25


def test_what_is_beyond_a_limit_of_macs_is_not_promoted() -> None:
    """The teacher and its single replacements are judged, also where they are too dear."""
    found = [trial(number, correct=150, fidelity="supernet") for number in range(4)]
    most = sorted(one.macs for one in found)[1]
    promotions = Promotions(
        found,
        base="supernet",
        rungs=["train-1e"],
        objectives=("top1", "macs"),
        limits={"macs": most, "params": math.inf},
    )
    promoted = []
    while (chosen := promotions.next()) is not None:
        promoted.append(count(chosen[0]).macs)
    assert sorted(promoted) == sorted(one.macs for one in found)[:2]


def test_a_run_that_has_spent_its_budget_decides_nothing() -> None:
    """What it judges by is kept for ever, and a larger budget will know more."""
    session: Any = SimpleNamespace(has_ended=lambda plan, phase: phase == "promote")
    plan: Any = None
    promote(session, plan)
