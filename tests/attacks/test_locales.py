"""Terminals that are not UTF-8, files that say their encoding, and containers with fewer cores."""

from __future__ import annotations

import ast
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from search import budget
from tests.tiny_run import write_run

ROOT = Path(__file__).parents[2]
PRODUCT = ("searchspace", "supernet", "search", "configs")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
@pytest.mark.parametrize("command", ["pareto run", "status run", "show run:1", "presets"])
def test_a_terminal_without_a_character_gets_its_escape(
    encoding: str, command: str, tmp_path: Path
) -> None:
    write_run(tmp_path / "run")

    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-m", "search", *command.split()],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.decode(encoding)


def opened_as_text(file: Path) -> Iterator[int]:
    """Yield the lines of a module that read or write text without saying the encoding."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        words = {keyword.arg for keyword in node.keywords}
        texts = [one.value for one in node.args if isinstance(one, ast.Constant)]
        is_binary = any(isinstance(text, str) and "b" in text for text in texts)
        needs = {"read_text": 1, "write_text": 2}.get(name)
        if needs is not None and "encoding" not in words and len(node.args) < needs:
            # `durable.write_text(path, text)` writes UTF-8 and has two arguments.
            yield node.lineno
        if name == "open" and "encoding" not in words and not is_binary:
            of = getattr(getattr(node.func, "value", None), "id", "")
            has_mode = any(isinstance(t, str) and t[:1] in "rwax" for t in texts)
            if isinstance(node.func, ast.Name) or (has_mode and of != "tarfile"):
                yield node.lineno


def test_every_text_file_is_read_and_written_as_utf_8() -> None:
    offences = [
        f"{file.relative_to(ROOT)}:{line}"
        for package in PRODUCT
        for file in sorted((ROOT / package).rglob("*.py"))
        for line in opened_as_text(file)
    ]

    assert offences == []


def groups(root: Path, own: str, files: dict[str, str]) -> Path:
    """Write a tree of control groups as Linux shows it."""
    for name, text in {"proc/self/cgroup": own, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000\n"}, math.inf),
        ("0::/a/b\n", {"sys/fs/cgroup/a/cpu.max": "150000 100000\n"}, 1.5),
        (
            "0::/a/b\n",
            {
                "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n",
            },
            3.0,
        ),
        (
            "5:memory:/x\n4:cpu,cpuacct:/docker/1\n",
            {
                "sys/fs/cgroup/cpu/docker/1/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/docker/1/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            "4:cpu,cpuacct:/\n",
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            math.inf,
        ),
        ("4:memory:/\n", {}, math.inf),
    ],
)
def test_the_quota_is_the_least_of_all_groups(
    own: str, files: dict[str, str], cores: float, tmp_path: Path
) -> None:
    assert budget.cgroup_quota(groups(tmp_path, own, files)) == cores


def test_a_machine_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert budget.cgroup_quota(tmp_path) == math.inf


@pytest.mark.parametrize(
    ("quota", "cores"), [(0.5, 1), (1.0, 1), (2.9, 2), (8.0, 8), (64.0, 8), (math.inf, 8)]
)
def test_devices_are_the_whole_cores_of_the_quota(
    quota: float, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "cgroup_quota", lambda: quota)
    monkeypatch.setattr(budget.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)

    assert budget.count_cores() == cores
