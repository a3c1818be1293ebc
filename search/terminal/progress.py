"""What a user sees while a run works: a progress bar, or log lines where there is no terminal."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn

from search.budget import Device, format_seconds

LOG_EVERY_SECONDS = 15.0


class ProgressView:
    """Shows the phase, the budget spent and left, and the expected end.

    Args:
        console: Where to write; a console without a terminal gets lines.
        budget_seconds: Device-seconds of the whole run.
        devices: Devices that work at the same time.
        device: The budget's unit.
        clock: Seconds; for the pace of the log lines.
    """

    def __init__(
        self,
        console: Console,
        *,
        budget_seconds: float,
        devices: int,
        device: Device,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._budget, self._devices = console, budget_seconds, devices
        self._device, self._clock, self._logged = device, clock, -LOG_EVERY_SECONDS
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
        self._bar = Progress(*columns, console=console, transient=True)
        self._task = self._bar.add_task("", total=budget_seconds, text="")

    def __enter__(self) -> ProgressView:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, phase: str, spent: float, detail: str = "") -> None:
        """Show the state; without a terminal, write a line every 15 seconds."""
        left = max(self._budget - spent, 0.0)
        text = (
            f"{format_seconds(spent, self._device)} spent, "
            f"{format_seconds(left, self._device)} left, end in "
            f"{clock_text(left / self._devices)}  {detail}"
        )
        if self._console.is_terminal:
            self._bar.update(self._task, description=phase, completed=spent, text=text)
        elif self._clock() - self._logged >= LOG_EVERY_SECONDS:
            self._logged = self._clock()
            self._console.print(f"{phase}: {text}".strip(), highlight=False, soft_wrap=True)

    def say(self, text: RenderableType) -> None:
        """Write a line (or a table) that stays."""
        self._console.print(text, highlight=False, soft_wrap=isinstance(text, str))

    @contextmanager
    def ticking(self, show: Callable[[], None]) -> Iterator[None]:
        """Call ``show`` about once a second from a thread while the block runs."""
        done = threading.Event()

        def tick() -> None:
            while not done.wait(1.0):
                show()

        thread = threading.Thread(target=tick, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


class StopSignals:
    """Turns SIGINT, SIGTERM and SIGHUP (a terminal that was closed) into a request that the run
    honours; a second SIGINT interrupts.

    Where nohup has it ignore SIGHUP, it goes on doing so.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            leave_closed_terminals()
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = self.requested or signal.Signals(number).name


def leave_closed_terminals() -> None:
    """Send what is written from now on nowhere, where nobody can read it any more.

    Writing to a terminal that was closed, or into a pipe whose reader has gone with it, is an
    error, and the report is still to be written.
    """
    for descriptor in (1, 2):
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        with suppress(OSError):
            if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


def clock_text(seconds: float) -> str:
    """Write a duration like ``1:02:03``, or ``3 d 4 h``."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
