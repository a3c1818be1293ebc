"""Promotion leaves no budget because too few networks were judged."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from search.phases import promote as promoting
from search.phases.promote import ALL_PROMOTED, promote
from search.record.record import Record
from search.run_folder.settings import RunSettings
from search.scheduling import Choice
from searchspace.architecture import Architecture
from tests.tiny_engine import SPACE, VALUES, plan_of
from tests.tiny_graft import add_measured


@pytest.mark.parametrize("num_trained", [2, 99])
def test_others_are_trained_once_all_that_were_judged_have_gone_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_trained: int
) -> None:
    """A judge that takes the phase's time to start judges next to nothing."""
    said, trained, climbed = list[str](), list[Architecture](), list[str]()

    def train_alone(
        session: Any, plan: Any, phase: str, choose: Callable[[], Choice | None], *_: Any
    ) -> None:
        while len(trained) < num_trained and (choice := choose()) is not None:
            trained.append(choice.architecture)

    def climb(session: Any, plan: Any, phase: str, *, first: Any) -> None:
        climbed.append(phase)

    monkeypatch.setattr(promoting, "train_alone", train_alone)
    monkeypatch.setattr(promoting, "climb", climb)
    with Record.create(tmp_path / "record.db") as record:
        for seed in range(3):
            add_measured(record, SPACE.sample(random.Random(seed)), VALUES)
        session: Any = SimpleNamespace(
            has_ended=lambda plan, phase: False,
            estimator=lambda: "supernet",
            record=record,
            space=SPACE,
            settings=RunSettings(data="digits", budget="1cpu-minute"),
            run=SimpleNamespace(limits={}),
            view=SimpleNamespace(say=said.append),
        )
        promote(session, plan_of())
    if num_trained == 2:
        assert (len(trained), climbed, said) == (2, [], [])
    else:
        assert len({one.key for one in trained}) == 3
        assert (climbed, said) == (["promote"], [ALL_PROMOTED])
