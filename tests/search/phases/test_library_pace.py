"""The schedule of a graft's parts follows the pace of the devices, however many there are.

The devices are made up, and so is the clock: a step of a share takes a fiftieth of a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from search.phases import grafting, saves
from search.workers.graft_worker import GraftWorker

STEP, SECONDS = 0.02, 100.0
# So many steps of one share fit.
FITTING = round(SECONDS / STEP)


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


class Device:
    """Trains a share as `GraftWorker` does, and notes the end of the schedule at every step.

    Attributes:
        slow: Seconds that some steps of the first device take, by their numbers.
        starting: Seconds that its start takes.
        saving: Seconds that a checkpoint takes.
        saves: When each was begun.
    """

    def __init__(
        self, clock: Clock, slow: Mapping[int, float], *, starting: float = 0, saving: float = 0
    ) -> None:
        self.clock, self.slow, self.starting, self.saving = clock, slow, starting, saving
        self.step, self.total, self.ends, self.saves = 0, 0, list[int](), list[float]()

    def start(self, number: int, shares: int, total: int) -> int:
        self.clock.now += self.starting
        self.total = total
        return self.step

    def reschedule(self, total: int) -> None:
        self.total = max(total, self.step)

    def train(self, steps: int) -> tuple[int, float]:
        for _ in range(min(steps, self.total - self.step)):
            self.step += 1
            self.clock.now += self.slow.get(self.step, STEP)
            self.ends.append(self.total)
        return self.step, 0.5

    def save(self) -> None:
        self.saves.append(self.clock.now)
        self.clock.now += self.saving


def session_of(
    clock: Clock, devices: list[Device], *, library: tuple[int, int], held: int = 1
) -> Any:
    """A session with so many devices at a time, which are new ones for every share."""
    made = iter(devices)

    @contextmanager
    def actors(worker: type, job: object, count: int) -> Iterator[list[Device]]:
        yield [next(made) for _ in range(count)]

    @contextmanager
    def charged(phase: str, count: int) -> Iterator[None]:
        yield

    nothing: Callable[..., None] = lambda *_, **__: None  # noqa: E731
    return SimpleNamespace(
        state=SimpleNamespace(
            library=library, library_done=0, times=SimpleNamespace(supernet_batch=1)
        ),
        spent=lambda: clock.now * held,
        record=SimpleNamespace(working_time=clock.monotonic),
        wait_for_devices=lambda: held,
        check_start=nothing,
        check_stop=nothing,
        tick=lambda phase: nothing,
        show=nothing,
        stop=SimpleNamespace(requested=None),
        charged=charged,
        cluster=SimpleNamespace(actors=actors),
        work=SimpleNamespace(supernet_worker=None),
        job=None,
    )


def learn(
    patch: pytest.MonkeyPatch,
    *,
    shares: int,
    total: int,
    slow: Mapping[int, float] = {},
    held: int = 1,
    **more: float,
) -> list[Device]:
    """Let as many shares learn in `SECONDS` of each that is held; return their devices."""
    clock = Clock()
    devices = [Device(clock, slow if number == 0 else {}, **more) for number in range(shares)]

    def call_each(several: list[Device], name: str, given: list[Any], **_: Any) -> list[Any]:
        """Let them work at once: what they do takes as long as the slowest of them."""
        began, ended, found = clock.now, clock.now, []
        for one, own in zip(several, given, strict=True):
            clock.now = began
            found.append(getattr(one, name)(*own))
            ended = max(ended, clock.now)
        clock.now = ended
        return found

    def call_all(several: list[Device], name: str, *given: Any, **_: Any) -> list[Any]:
        return call_each(several, name, [given] * len(several))

    patch.setattr(saves, "time", clock)
    patch.setattr(grafting, "call_each", call_each)
    patch.setattr(grafting, "call_all", call_all)
    plan: Any = SimpleNamespace(spent_by_end={"library": SECONDS * held}, train_images=10**6)
    grafting._train_shares(session_of(clock, devices, library=(shares, total), held=held), plan)
    return devices


def test_the_last_steps_do_not_move_the_end_of_the_schedule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the last hundred steps that are asked for there is one left to take.

    That is no sign of a quick device: rates would rise again, and the parts end with them.
    """
    (device,) = learn(monkeypatch, shares=1, total=FITTING - 98)
    assert set(device.ends) == {FITTING - 98}
    assert device.step == FITTING - 98


def test_fewer_devices_than_shares_give_each_share_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that was begun on three devices goes on with one."""
    devices = learn(monkeypatch, shares=3, total=FITTING)
    for device in devices:
        assert device.step == pytest.approx(FITTING / 3, rel=0.15)


def test_a_first_step_that_compiles_kernels_for_long_does_not_end_the_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It takes more than half of the time that there is."""
    (device,) = learn(monkeypatch, shares=1, total=FITTING, slow={1: 60.0})
    assert device.step == pytest.approx((SECONDS - 60.0) / STEP, rel=0.1)


def test_a_step_that_was_held_up_does_not_end_a_share_before_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that was begun on three devices goes on with one, on which others work for a moment."""
    devices = learn(monkeypatch, shares=3, total=FITTING, slow={700: 10.0})
    for device in devices:
        assert device.step == pytest.approx((SECONDS - 10.0) / STEP / 3, rel=0.15)


def test_devices_start_at_once_and_not_after_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them are held and charged, and each reads images when it starts."""
    devices = learn(monkeypatch, shares=4, total=FITTING, held=4, starting=10.0)
    for device in devices:
        assert device.step == pytest.approx((SECONDS - 10.0) / STEP, rel=0.1)


def test_checkpoints_of_parts_cost_a_hundredth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are large, and many devices write theirs into one folder at once."""
    (device,) = learn(monkeypatch, shares=1, total=FITTING, saving=2.0)
    # The first tells what one costs, and the last is the end's.
    assert len(device.saves) == 2


def test_a_schedule_that_was_moved_after_the_checkpoint_ends_where_it_was_moved_to() -> None:
    """Else the worker stops early, and its run waits for steps that never come."""

    class Trainer:
        step, total_steps = 0, 0

        def load(self, folder: Path) -> bool:
            self.step, self.total_steps = 3, 7
            return True

    worker: Any = object.__new__(GraftWorker)
    worker.__dict__["_keys"] = ()
    worker._job = SimpleNamespace(files=SimpleNamespace(fetch=Path))
    trainer = Trainer()
    worker._new_trainer = lambda keys, total_steps: trainer
    assert worker.start(0, 1, 12) == 3
    assert trainer.total_steps == 12
