"""A folder for one seed, and the commands of a user in it, each in a forked child."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults import one_process
from benchmarks.faults.one_process import Counter

LIMIT_SECONDS = 300.0


class FailedError(Exception):
    """What must never happen has happened."""


@dataclass(frozen=True, slots=True)
class End:
    """How a command ended: its status (negative: the signal), and what it printed."""

    status: int
    text: str
    num_events: int


@dataclass(slots=True)
class Scene:
    """A folder of its own for one seed: ``run`` in it, and ``outside`` that nobody may touch."""

    root: Path
    rng: random.Random
    told: list[str] = field(default_factory=list)
    place: str = "run"

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.root / self.place

    def start(
        self, *words: str, at: int | None = None, trouble: Callable[[], None] = lambda: None
    ) -> Child:
        """Start a command in the scene; ``RUN`` stands for the run's folder."""
        named = [self.place if word == "RUN" else word for word in words]
        return Child(self.root, self.run, named, at, trouble)

    def call(self, *words: str, **more: Any) -> End:
        """Run a command to its end."""
        return self.start(*words, **more).wait()

    def checked(self, *words: str, may: tuple[int, ...] = (0,)) -> End:
        """Run a command that ends in order: with one of the statuses, or one message."""
        end = self.call(*words)
        check_words(end, words)
        if end.status not in (*may, 2):
            raise FailedError(f"{' '.join(words)} ended with {end.status}: {end.text[-600:]}")
        self.told.append(f"{end.status}")
        return end


class Child:
    """A command that runs in a forked child."""

    def __init__(
        self,
        root: Path,
        run: Path,
        words: list[str],
        at: int | None,
        trouble: Callable[[], None],
    ) -> None:
        self.out = root / f"out-{random.SystemRandom().getrandbits(40)}.txt"
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _be_the_child(root, words, self.out, Counter(run, at, trouble))

    def stopped(self) -> bool:
        """Wait until it stops itself (True) or has ended."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            return True
        self._status = status
        return False

    def go_on(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def wait(self) -> End:
        """Wait for its end."""
        status = getattr(self, "_status", None)
        deadline = time.perf_counter() + LIMIT_SECONDS
        while status is None:
            done, found = os.waitpid(self.pid, os.WNOHANG)
            if done:
                status = found
            elif time.perf_counter() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise FailedError(f"no end within {LIMIT_SECONDS:.0f} s: {_read(self.out)[-500:]}")
            else:
                time.sleep(0.01)
        text = _read(self.out)
        self.out.unlink(missing_ok=True)
        events = re.findall(r"^events (\d+)$", text, re.MULTILINE)
        text = re.sub(r"^events \d+\n", "", text, flags=re.MULTILINE)
        code = os.waitstatus_to_exitcode(status)
        return End(code, text, int(events[-1]) if events else 0)


def _be_the_child(root: Path, words: list[str], out: Path, counter: Counter) -> None:
    log = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number in (1, 2):
        os.dup2(log, number)
    os.chdir(root)
    status: int | str | None = 3
    try:
        one_process.command(words, counter)
        status = 0
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os.write(log, f"\nevents {counter.number}\n".encode())
        os._exit(status if isinstance(status, int) else 0 if status is None else 1)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="backslashreplace") if path.exists() else ""


def check_words(end: End, words: tuple[str, ...]) -> None:
    """Refuse tracebacks."""
    if "Traceback (most recent call last)" in end.text:
        raise FailedError(f"{' '.join(words)}: a traceback: {end.text[-1500:]}")
