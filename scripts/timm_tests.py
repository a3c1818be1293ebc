"""Run timm's own tests of models on ours: ``python scripts/timm_tests.py TESTS [OPTIONS]``.

``TESTS`` is ``tests/test_models.py`` of a clone of timm's repository, ``OPTIONS`` are pytest's.
What it chooses by `timm.list_models` are our presets here (those that timm has under the same name
stay timm's, and are left out). A table of the tests' names follows: passed, failed, skipped.
"""

from __future__ import annotations

import fnmatch
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import timm

import supernet
from searchspace import PRESETS

KINDS = ("passed", "failed", "skipped")


def names(
    filter: str | Sequence[str] = "",
    module: object = "",
    pretrained: bool = False,
    exclude_filters: str | Sequence[str] = "",
    name_matches_cfg: bool = False,
    include_tags: bool | None = None,
) -> list[str]:
    """Stand in for `timm.list_models`: its arguments, our networks. No weights are published."""
    ours = [] if pretrained else [name for name in PRESETS if _is_ours(name)]
    wanted, unwanted = _listed(filter), _listed(exclude_filters)
    ours = [n for n in ours if not wanted or any(fnmatch.fnmatch(n, w) for w in wanted)]
    return [n for n in ours if not any(fnmatch.fnmatch(n, pattern) for pattern in unwanted)]


def _listed(patterns: str | Sequence[str]) -> Sequence[str]:
    return [patterns] * bool(patterns) if isinstance(patterns, str) else patterns


def _is_ours(name: str) -> bool:
    return timm.model_entrypoint(name).__module__.split(".")[0] == supernet.__name__


class Table:
    """A plugin of pytest that counts the ends of each test."""

    def __init__(self) -> None:
        self.ends: dict[str, Counter[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take in the end of a test."""
        if report.when == "call" or report.outcome != "passed":
            test = report.nodeid.rpartition("::")[2].partition("[")[0]
            self.ends.setdefault(test, Counter())[report.outcome] += 1

    def __str__(self) -> str:
        lines = [f"| test | {' | '.join(KINDS)} |", "|---|---|---|---|"]
        for test, ends in self.ends.items():
            lines.append(f"| {test} | {' | '.join(str(ends[kind]) for kind in KINDS)} |")
        return "\n".join(lines)


def main() -> None:
    """Run the tests in a process whose timm lists our networks."""
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    timm.list_models = names  # type: ignore[assignment]
    timm.list_pretrained = _none
    table = Table()
    status = pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[1:]], plugins=[table])
    print(f"timm {timm.__version__}\n\n{table}")
    raise SystemExit(status)


def _none(*_: Any, **__: Any) -> list[str]:
    return []


if __name__ == "__main__":
    main()
