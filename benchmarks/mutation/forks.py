"""Runs of tests in forks of a process that has collected them once, which saves seconds a change.

A change inside a function needs no new import: its code takes the place of the function's, whoever
has imported it. Changes outside of functions are for `trial.Copy.run`.
"""

from __future__ import annotations

import ast
import gc
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType

import pytest

from benchmarks.mutation.trial import PYTEST, Copy

# A change may let a test run on for ever: by the processor's time, because a busy machine is no
# change, and by the clock, because a test may wait. The seconds of tests are those under a tracer.
LEAST_SECONDS, TIMES_SLOWER, WAITS = 30, 3, 10
PACKAGES = ("benchmarks", "tests", "search", "supernet", "searchspace", "configs")
UNCHANGED = 77  # exit status of a child that found nothing to change


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """A changed module and the tests that may notice it.

    Attributes:
        name: Of the change.
        module: Its path in the tree.
        pristine, source: Its text before and after.
        tests: Ids of tests, in the order in which they are run.
        seconds: That they took.
    """

    name: str
    module: str
    pristine: str
    source: str
    tests: Sequence[str]
    seconds: float


def is_inside_function(source: str, line: int, column: int) -> bool:
    """Tell whether a place, from line 1 and byte 0, is in the body of a function."""
    return any(
        isinstance(node, ast.FunctionDef)
        and (node.body[0].lineno, node.body[0].col_offset) <= (line, column)
        and line <= (node.end_lineno or 0)
        for node in ast.walk(ast.parse(source))
    )


def run_forks(
    copy: Copy,
    tests: Sequence[str],
    works: Iterable[Work],
    on_end: Callable[[Work, str], None],
    *,
    jobs: int,
) -> None:
    """Collect all tests in a child that lies in the copy, and let its forks run those of each work.

    Args:
        on_end: Called in that child with each work and ``noticed``, ``survived`` or ``timed out``.
        jobs: Forks at a time.
    """
    there = [test for test in tests if (copy.folder / test).exists()]

    def collect_and_run() -> int:
        # Packages of this process are those of another tree.
        for name in [n for n in sys.modules if n.split(".")[0] in PACKAGES]:
            del sys.modules[name]
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(copy.folder)
        loop = _Loop(copy.folder, works, on_end, jobs)
        return int(pytest.main([*PYTEST, *there], plugins=[loop]))

    copy.fork(collect_and_run, float("inf"))


class _Loop:
    """A pytest plugin that takes the place of the running of tests."""

    def __init__(
        self,
        folder: Path,
        works: Iterable[Work],
        on_end: Callable[[Work, str], None],
        jobs: int,
    ) -> None:
        self._folder, self._works, self._on_end, self._jobs = folder, works, on_end, jobs
        self._functions: dict[str, list[FunctionType]] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run all works, so many at a time."""
        self._find_functions()
        items = {item.nodeid: item for item in session.items}
        running: dict[int, tuple[Work, float]] = {}
        for work in self._works:
            while len(running) >= self._jobs:
                self._take_ended(running)
            limit = LEAST_SECONDS + TIMES_SLOWER * work.seconds
            child = os.fork()
            if child == 0:
                self._be_child(session, [items[t] for t in work.tests if t in items], work, limit)
            running[child] = work, time.monotonic() + WAITS * limit
        while running:
            self._take_ended(running)
        return True

    def _find_functions(self) -> None:
        """Find the functions of the tree; what is there is nothing for the children's collector."""
        gc.collect()
        for found in gc.get_objects():
            # Some libraries' objects warn when they are asked what they are.
            if type(found) is FunctionType and found.__code__.co_filename.startswith(
                str(self._folder)
            ):
                self._functions.setdefault(found.__code__.co_filename, []).append(found)
        gc.freeze()

    def _take_ended(self, running: dict[int, tuple[Work, float]]) -> None:
        time.sleep(0.02)
        for child, (work, deadline) in list(running.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            if not ended and time.monotonic() > deadline:
                os.killpg(child, signal.SIGKILL)
                ended, status = os.waitpid(child, 0)
            if ended:
                del running[child]
                self._on_end(work, _end_of(os.waitstatus_to_exitcode(status)))

    def _be_child(
        self, session: pytest.Session, items: list[pytest.Item], work: Work, limit: float
    ) -> None:
        """Change the program, run the tests, and end this process."""
        status = 1
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 5))
            status = _run(session, items) if self._change(work) else UNCHANGED
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def _change(self, work: Work) -> bool:
        """Give the functions of a module the code that they have in its other text."""
        path = str(self._folder / work.module)
        before, after = (_functions_of(text, path) for text in (work.pristine, work.source))
        codes = {
            (old.co_qualname, old.co_firstlineno): new
            for old, new in zip(before, after, strict=True)
        }
        for function in self._functions.get(path, ()):
            key = function.__code__.co_qualname, function.__code__.co_firstlineno
            if key in codes:
                function.__code__ = codes[key]
        return path in self._functions


def _run(session: pytest.Session, items: Sequence[pytest.Item]) -> int:
    """Run tests up to the first that fails; tell whether one did."""
    for item, following in zip(items, [*items[1:], None], strict=True):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed or session.shouldfail or session.shouldstop:
            return 1
    return 0


def _end_of(status: int) -> str:
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
        return "timed out"
    # A module that no test has imported is unnoticed as well.
    return "survived" if status in (0, UNCHANGED) else "noticed"


def _functions_of(source: str, path: str) -> list[CodeType]:
    """Return the code of a module's functions and methods, not of functions in them, in order."""

    def inside(code: CodeType) -> list[CodeType]:
        found = []
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                # A class's body has names of its own, a function's local variables.
                is_function = constant.co_flags & 0x1
                found += [constant] if is_function else inside(constant)
        return found

    return inside(compile(source, path, "exec", dont_inherit=True))
