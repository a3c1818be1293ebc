"""Promotion leaves no budget because too few networks were judged."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from search.phases import promote as promoting
from search.phases.promote import ALL_PROMOTED, promote
from search.record import Trial
from search.record.record import Record
from search.run_folder.settings import RunSettings
from search.scheduling import Choice
from searchspace.architecture import Architecture
from tests.tiny_engine import SPACE, VALUES, plan_of
from tests.tiny_graft import add_measured


def session_of(record: Record, say: Callable[[str], None]) -> Any:
    """A session whose supernet judges, at the start of its promotion."""
    return SimpleNamespace(
        has_ended=lambda plan, phase: False,
        estimator=lambda: "supernet",
        record=record,
        space=SPACE,
        settings=RunSettings(data="digits", budget="1cpu-minute"),
        run=SimpleNamespace(limits={}),
        view=SimpleNamespace(say=say),
    )


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
        promote(session_of(record, said.append), plan_of())
    if num_trained == 2:
        assert (len(trained), climbed, said) == (2, [], [])
    else:
        assert len({one.key for one in trained}) == 3
        assert (climbed, said) == (["promote"], [ALL_PROMOTED])


def test_what_was_under_way_when_all_had_entered_goes_up_before_others_are_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many devices all that were judged are under way at once, and nothing can go up yet."""
    plan, events = replace(plan_of(), rungs=(1, 2), num_promoted=0), list[int | str]()

    with Record.create(tmp_path / "record.db") as record:
        for seed in range(5):
            add_measured(record, SPACE.sample(random.Random(seed)), VALUES)

        def train_alone(
            session: Any,
            plan: Any,
            phase: str,
            choose: Callable[[], Choice | None],
            on_end: Callable[[Trial], None],
        ) -> None:
            begun = []
            while (choice := choose()) is not None:
                number = record.add_architecture(choice.architecture, params=1, macs=1)
                trial = record.add_trial(
                    number, fidelity=f"train-{choice.epochs}e", seed=0, origin=phase
                )
                begun.append((trial, record.start_attempt(phase, devices=1, trial_id=trial)))
                events.append(choice.epochs)
            for trial, attempt in begun:  # none ends before all have begun
                record.finish_attempt(attempt, outcome="done", measured=VALUES)
                on_end(record.trial(trial))

        monkeypatch.setattr(promoting, "train_alone", train_alone)
        monkeypatch.setattr(promoting, "climb", lambda *_, **__: events.append("others"))
        promote(session_of(record, lambda _: None), plan)
    assert events == [1] * 5 + [2] * 5 + ["others"]
