"""The whole program in one process: its commands, record and networks, with devices that are local.

Time is real, and jumps ahead by `PASS_SECONDS` whenever images pass through a network: minutes of
device time last seconds, and what is charged can be foretold. What happens to the run's folder is
counted, so that trouble can come at a chosen place. Everything is switched on in a child that is
forked for one command, after `install_time`, which must come before the program is imported.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PASS_SECONDS = 1.0
# What a worker finds when it measures, on this clock.
STEP_SECONDS = 2.0
# Audit events of Python that touch a file, with a name as the first argument.
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink"}


@dataclass
class Times:
    """How far the clocks are ahead of the machine's.

    Attributes:
        passed: Seconds of work that did not really last.
        jumped: Seconds that somebody has set the wall clock forward.
    """

    passed: float = 0.0
    jumped: float = 0.0


TIMES = Times()


def install_time() -> None:
    """Replace the clocks that the program will import."""
    wall, monotonic = time.time, time.monotonic
    time.time = lambda: wall() + TIMES.passed + TIMES.jumped
    time.monotonic = lambda: monotonic() + TIMES.passed


@dataclass
class Counter:
    """Counts what is done to a folder, and makes trouble at one place.

    Attributes:
        folder: Of the run.
        at: The number of the event at which the trouble comes.
        trouble: What to do then.
    """

    folder: Path
    at: int | None = None
    trouble: Callable[[], None] = lambda: None
    number: int = field(default=0, init=False)

    def install(self) -> None:
        """Listen to this process from now on."""
        sys.addaudithook(self._audit)

    def count(self) -> None:
        """Take note of one more event."""
        self.number += 1
        if self.number == self.at:
            self.trouble()

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        if os.path.abspath(os.fsdecode(arguments[0])).startswith(str(self.folder)):
            self.count()


class LocalDevices:
    """One device, in the place of `search.cluster.connection.Cluster`."""

    devices, free, threads, node_devices = 1, 1, 1, 1
    meeting_place = None

    def __init__(self, **_: Any) -> None:
        pass

    def __enter__(self) -> LocalDevices:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @contextmanager
    def actors(self, worker: type, job: Any, count: int) -> Iterator[list[Any]]:
        """Make the objects."""
        yield [worker(job, threads=1) for _ in range(count)]

    def on_each_node(self, function: Callable[[], None], **_: Any) -> None:
        """Run it here."""
        function()

    def reserve(self, devices: int, *, threads: int) -> SimpleNamespace:
        """Give what is asked for."""
        return SimpleNamespace(is_held=True)

    def release(self, place: SimpleNamespace) -> None:
        """There is nothing to give back."""

    def submit(self, function: Any, *arguments: Any, place: SimpleNamespace) -> Any:
        """Return what will be worked off by `take_one`."""
        return lambda: function(*arguments)


def take_one(pending: list[Any]) -> list[tuple[Any, Any, str | None]]:
    """Work off the first of what was submitted, as `connection.take_finished` waits for one."""
    if not pending:
        return []
    try:
        return [(pending[0], pending[0](), None)]
    except Exception as error:
        return [(pending[0], None, f"{type(error).__name__}: {error}")]


def use_local_devices(counter: Counter) -> None:
    """Take Ray out of the program, and let time pass with the work."""
    from torch import nn

    from search import run
    from search.phases import alone, measure, session, supernet
    from search.plan import StepTimes
    from search.retraining import training_queue
    from search.workers.supernet_worker import WORK, SupernetWorker
    from supernet.network.supernet import Supernet
    from tests import local_run

    class Foretold(SupernetWorker):
        def measure(self) -> StepTimes:
            points = ((10_000, STEP_SECONDS), (20_000, STEP_SECONDS))
            return StepTimes(
                supernet_step=STEP_SECONDS,
                trial_steps=points,
                judge=STEP_SECONDS,
                steps_per_epoch=1,
                device_name="a clock",
            )

        def measure_supernet(self) -> float:
            return STEP_SECONDS

    def passes(network: nn.Module, _: Any) -> None:
        if isinstance(network, Supernet):
            TIMES.passed += PASS_SECONDS
            counter.count()

    nn.modules.module.register_module_forward_pre_hook(passes)
    work = importlib.import_module("dataclasses").replace(WORK, supernet_worker=Foretold)
    run.run_search.__kwdefaults__["work"] = work  # type: ignore[index]
    for module, name, value in (
        (run, "Cluster", LocalDevices),
        (training_queue, "Cluster", LocalDevices),
        (training_queue, "take_finished", take_one),
        (alone, "run_trials", local_run._run_trials),
        (session.Session, "crew", local_run._crew),
        (measure, "call", local_run._call),
        (supernet, "call", local_run._call),
        (supernet, "call_all", lambda actors, *rest, **more: [local_run._call(*actors, *rest)]),
        (supernet, "form_group", lambda actors, **more: None),
    ):
        if not hasattr(module, name):
            raise AttributeError(f"{module} has no {name} to take the place of")
        setattr(module, name, value)


def command(words: list[str], counter: Counter) -> None:
    """Run one command of the program in this process, and end it with the command's status."""
    use_local_devices(counter)
    counter.install()
    from search.cli.app import main

    sys.argv = ["search", *words]
    main()
