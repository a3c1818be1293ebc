"""A trial's training where its devices are: in one process, or in a group with one a device."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from search.record import Measured
from search.scheduling import (
    Outcome,
    TrialTask,
    end_if_spoilt,
    is_of_others,
    last_line,
    outcome_of_error,
)

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
# How long the others may take to say why, once one of a group has failed.
NEWS_SECONDS = 10.0
# Of what the processes of a group say, the first of these tells what has happened: when one dies,
# the others' errors follow from that.
_TELLING = ("full disk", "no storage", "out of memory", "died", "failed", "lost")


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What came of a training.

    Attributes:
        measured: By one that is done, in the first process of its group.
        cause: Why there is no result.
        has_died: Whether its process has; it could not say why.
    """

    outcome: Outcome
    measured: Measured | None = None
    cause: str | None = None
    has_died: bool = False

    def to_text(self) -> str:
        """Write it for Tune, which would flatten a nested result; `from_text` inverts it."""
        values = None if self.measured is None else self.measured.to_json()
        return json.dumps({"outcome": self.outcome, "values": values, "cause": self.cause})

    @classmethod
    def from_text(cls, text: str) -> Report:
        """Read what `to_text` wrote."""
        found = json.loads(text)
        values = found["values"]
        measured = None if values is None else Measured.from_json(values)
        return cls(outcome=found["outcome"], measured=measured, cause=found["cause"])


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialWork:
    """How trials are trained.

    Attributes:
        train: Of `search.scheduling.Work`.
        meet: Likewise.
        folder: Of the run, to tell whether its disk is full.
        threads: Of a process.
        needs: What Ray must reserve for a process.
    """

    train: Callable[[Any, TrialTask, int, Callable[[int], None]], Measured | None]
    meet: Callable[[str], Any] | None
    folder: Path
    threads: int
    needs: dict[str, int]


def report_of(
    task: TrialTask, job: Any, work: TrialWork, on_epoch: Callable[[int], None]
) -> Report:
    """Train in this process; return what came of it."""
    try:
        measured = work.train(job, task, work.threads, on_epoch)
    except Exception as error:
        end_if_spoilt(error)
        # Whatever it is, it is recorded with its cause; nothing goes on as if it were well.
        logger.error("Trial %d failed:\n%s", task.trial_id, traceback.format_exc())
        outcome = outcome_of_error(error, work.folder)
        if outcome == "failed" and task.group is not None and is_of_others(error):
            outcome = "lost"
        return Report(outcome=outcome, cause=f"{type(error).__name__}: {last_line(str(error))}")
    return Report(outcome="done", measured=measured)


def train_together(
    task: TrialTask,
    job: Any,
    work: TrialWork,
    *,
    place: str | None,
    on_epoch: Callable[[int], None],
) -> Report:
    """Train in a process a device of this process's placement group; return what came of it.

    They end with this process, whatever ends it.

    Args:
        place: A file where they meet; None lets the first of them open a place at its machine.
        on_epoch: Called with what the first of them has told.
    """
    bundles = ray.util.get_current_placement_group()
    assert bundles is not None  # Tune has made it.
    here = PlacementGroupSchedulingStrategy(bundles)
    options: dict[str, Any] = {
        **work.needs,
        "max_restarts": 0,
        "max_concurrency": 2,  # it trains, and tells how far it is
        "scheduling_strategy": here,
    }
    member_class: Any = ray.remote(_Member)
    members: list[Any] = [member_class.options(**options).remote() for _ in range(task.devices)]
    try:
        if place is None:
            place = str(ray.get(members[0].meet.remote(work.meet)))
        groups = [(place, task.devices, rank) for rank in range(task.devices)]
        pending = [
            member.train.remote(replace(task, group=group), job, work)
            for member, group in zip(members, groups, strict=True)
        ]
        return _wait_for(pending, members[0], on_epoch)
    except RayActorError as error:
        return Report(outcome="lost", cause=last_line(str(error)))
    finally:
        for member in members:
            ray.kill(member)


def _wait_for(pending: list[Any], first: Any, on_epoch: Callable[[int], None]) -> Report:
    """Wait for all of a group, or for the first that fails; return what tells most."""
    results, told, waiting = pending[:1], 0, pending
    while waiting:
        done, waiting = ray.wait(waiting, num_returns=1, timeout=LOOK_SECONDS)
        reports = [_result(reference) for reference in done]
        if any(report.outcome != "done" for report in reports):
            others: list[Any] = []
            if waiting:
                others, _ = ray.wait(waiting, num_returns=len(waiting), timeout=NEWS_SECONDS)
            return _most_telling(reports + [_result(reference) for reference in others])
        for epoch in ray.get(first.told.remote(told)):
            told += 1
            on_epoch(epoch)
    return _result(results[0])


def _result(reference: Any) -> Report:
    try:
        report: Report = ray.get(reference)
    except RayActorError as error:
        return Report(outcome="lost", cause=last_line(str(error)), has_died=True)
    return report


def _most_telling(reports: list[Report]) -> Report:
    """Choose what has happened from what the processes of a group say of it."""
    bad = [report for report in reports if report.outcome != "done"]
    return min(bad, key=lambda one: _TELLING.index("died" if one.has_died else one.outcome))


class _Member:
    """One of the processes that train a network together; an actor, which ends with its owner."""

    def __init__(self) -> None:
        self._epochs: list[int] = []
        self._meeting: Any = None

    def meet(self, meet: Callable[[str], Any] | None) -> str:
        """Open the place where the others meet this one; return its address."""
        if meet is None:
            return "nowhere"
        # Kept: the place is open for as long as this is there.
        self._meeting = meet(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
        return str(self._meeting.address)

    def train(self, task: TrialTask, job: Any, work: TrialWork) -> Report:
        """Train its part."""
        return report_of(task, job, work, self._epochs.append)

    def told(self, since: int) -> list[int]:
        """Return what the training has told after its first ``since`` words."""
        return self._epochs[since:]
