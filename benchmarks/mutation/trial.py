"""Runs of tests in a copy of the tree, in processes that have the large libraries already."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

# Slow to import, and never changed.
LIBRARIES = ("numpy", "scipy.stats", "pandas", "torch", "torchvision", "timm", "optuna", "ray")
PYTEST = (
    *("-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu and not ray"),
    # Plugins of the libraries are there before pytest could rewrite their assertions.
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
)
# A change may let a test run on for ever.
LEAST_SECONDS, TIMES_SLOWER = 60.0, 10.0
# Quick tests are run together before the others: most changes are noticed by them.
QUICK_SECONDS = 1.0


class Copy:
    """A copy of the tree in a temporary folder, whose tests run in forks of this process."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.folder = Path(tempfile.mkdtemp(prefix="mutation-"))

    def __enter__(self) -> Copy:
        command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
        listed = subprocess.run(command, cwd=self._root, check=True, capture_output=True)
        for name in listed.stdout.decode().split("\0"):
            if name and (self._root / name).is_file():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self._root / name, self.folder / name)
        os.environ |= {"PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
        for library in LIBRARIES:
            importlib.import_module(library)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder)

    def compile(self, tests: Sequence[str]) -> None:
        """Compile the program and the tests once, for all the children."""
        there = [test for test in tests if (self.folder / test).exists()]
        arguments = [*PYTEST, "--collect-only", *there]
        self.fork(lambda: _pytest(arguments, compiles=True), 900.0)

    def run(self, module: str, source: str, tests: Sequence[str], seconds: float) -> str:
        """Run tests while a module has another text: ``noticed``, ``survived``, ``timed out``."""
        path = self.folder / module
        pristine = path.read_text(encoding="utf-8")
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
            compiled.unlink()
        path.write_text(source, encoding="utf-8")
        try:
            status = self.fork(lambda: _pytest([*PYTEST, *tests]), seconds)
        finally:
            path.write_text(pristine, encoding="utf-8")
        return {None: "timed out", 0: "survived"}.get(status, "noticed")

    def fork(self, work: Callable[[], int], seconds: float) -> int | None:
        """Do something in a child that lies in the copy; return its exit status, None if late."""
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            os.setsid()
            log = os.open(self.folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.chdir(self.folder)
            sys.path[:] = [str(self.folder), *(p for p in sys.path if p != str(self._root))]
            for name in [n for n in sys.modules if n.split(".")[0] in ("benchmarks", "tests")]:
                del sys.modules[name]
            status = 3
            try:
                status = work()
            except Exception:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        return _wait(child, seconds)


def _pytest(arguments: list[str], plugins: Sequence[object] = (), *, compiles: bool = False) -> int:
    # A changed module of the same length and second would be taken for the one that was compiled.
    sys.dont_write_bytecode = not compiles
    return int(pytest.main(arguments, plugins=list(plugins)))


def _wait(child: int, seconds: float) -> int | None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


@dataclass(frozen=True, slots=True)
class Reach:
    """Which tests enter which function, and how long they take.

    Attributes:
        seconds: Of each test that passes.
        tests: Of each function (``module:qualified name``), those that enter it.
    """

    seconds: dict[str, float]
    tests: dict[str, set[str]]

    @classmethod
    def load(cls, path: Path, copy: Copy, modules: Sequence[str], tests: Sequence[str]) -> Reach:
        """Read what was found before; run the files of tests that are new or have changed."""
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        digests = {
            str(file.relative_to(copy.folder)): hashlib.sha256(file.read_bytes()).hexdigest()
            for test in tests
            for file in _files(copy.folder / test)
        }
        found = {f: row for f, row in known.items() if digests.get(f) == row["digest"]}
        missing = sorted(digests.keys() - found.keys())
        if missing:
            partial = path.with_suffix(".partial").resolve()
            arguments = [word for word in PYTEST if word != "-x"]
            arguments += ["-k", "not postgresql", "--timeout=900", *missing]
            listener = _Listener(copy.folder, modules, partial)
            copy.fork(lambda: _pytest(arguments, [listener]), 7200.0)
            print((copy.folder / "log.txt").read_text(encoding="utf-8")[-1000:])
            entered = json.loads(partial.read_text(encoding="utf-8"))
            found |= {f: {"digest": digests[f], "tests": entered.get(f, {})} for f in missing}
            partial.write_text(json.dumps(found), encoding="utf-8")
            os.replace(partial, path)
        return cls.of(found)

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Reach:
        """Turn it round: the tests of each function."""
        seconds, tests = {}, defaultdict(set)
        for row in found.values():
            for test, (duration, entered) in row["tests"].items():
                seconds[test] = duration
                for function in entered:
                    tests[function].add(test)
        return cls(seconds, dict(tests))

    def batches(
        self, source: str, module: str, line: int, most_seconds: float
    ) -> Iterator[tuple[list[str], float]]:
        """Yield tests that enter the function around a line, the quick ones first.

        Args:
            source: The module's text.
            most_seconds: Stop when so much has been yielded.

        Yields:
            Tests, and the most seconds that they may take.
        """
        function = _function_at(ast.parse(source), line)
        keys = [f"{module}:{function}"]
        if function is None:
            keys = [key for key in self.tests if key.startswith(f"{module}:")]
        entering = {test for key in keys for test in self.tests.get(key, ())}
        own = f"/test_{Path(module).stem}.py::"
        # A minute of the module's own tests must not crowd out the quick ones of others.
        ordered = sorted(entering, key=lambda t: (self.seconds[t] / (5 if own in t else 1), t))
        total, chosen = 0.0, list[str]()
        for test in ordered:
            total += self.seconds[test]
            if chosen and total > most_seconds:
                break
            chosen.append(test)
        quick = [test for test in chosen if self.seconds[test] < QUICK_SECONDS]
        for batch in (quick, [test for test in chosen if test not in set(quick)]):
            if batch:
                yield batch, LEAST_SECONDS + TIMES_SLOWER * sum(self.seconds[t] for t in batch)


def _files(path: Path) -> list[Path]:
    return sorted(path.rglob("test_*.py")) if path.is_dir() else [path] * path.is_file()


def _function_at(tree: ast.AST, line: int, above: str = "") -> str | None:
    """Return the qualified name of the innermost function around a line; None outside of all."""
    for node in ast.iter_child_nodes(tree):
        first, last = getattr(node, "lineno", 0), getattr(node, "end_lineno", 0)
        if isinstance(node, ast.ClassDef) and first <= line <= last:
            return _function_at(node, line, f"{above}{node.name}.")
        # Defaults and decorators are run when the module is read.
        if isinstance(node, ast.FunctionDef) and node.body[0].lineno <= line <= last:
            name = f"{above}{node.name}"
            return _function_at(node, line, f"{name}.<locals>.") or name
        if not isinstance(node, ast.ClassDef | ast.FunctionDef) and first <= line <= last:
            found = _function_at(node, line, above)
            if found is not None:
                return found
    return None


class _Listener:
    """A pytest plugin that writes down which functions each passing test enters."""

    def __init__(self, folder: Path, modules: Sequence[str], out: Path) -> None:
        self._names = {str(folder / module): module for module in modules}
        self._out = out
        self._entered: set[str] = set()
        self._began = 0.0  # in seconds of the processor: a busy machine makes no test slow
        self._shared: dict[str, set[str]] = defaultdict(set)
        self._tests: dict[str, dict[str, tuple[float, set[str]]]] = defaultdict(dict)

    def _trace(self, frame: FrameType, event: str, argument: Any) -> None:
        module = self._names.get(frame.f_code.co_filename)
        if module is not None:
            self._entered.add(f"{module}:{frame.f_code.co_qualname}")

    def pytest_runtest_logstart(self) -> None:
        """Begin to listen before a test's fixtures are made."""
        self._entered, self._began = set(), time.process_time()
        sys.settrace(self._trace)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take in a part of a test: what its fixtures enter may be seen by all of the file."""
        file = report.nodeid.partition("::")[0]
        if report.when == "setup":
            self._shared[file] |= self._entered
        if report.when == "call" and report.outcome == "passed":
            seconds = time.process_time() - self._began
            self._tests[file][report.nodeid] = (seconds, set(self._entered))
        # pytest may have put its own in the place of ours.
        sys.settrace(self._trace)

    def pytest_sessionfinish(self) -> None:
        """Write it all down."""
        sys.settrace(None)
        found = {
            file: {
                test: (seconds, sorted(entered | self._shared[file]))
                for test, (seconds, entered) in tests.items()
            }
            for file, tests in self._tests.items()
        }
        self._out.write_text(json.dumps(found), encoding="utf-8")
