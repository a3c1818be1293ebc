"""Compiled code is loaded from the user's own folder alone, and only if it is what was built."""

from __future__ import annotations

import ctypes
import logging
import os
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from supernet.kernels import aggregate, first_use, library
from supernet.kernels.aggregation.naive import aggregate_naive

pytestmark = [
    pytest.mark.skipif(library.find_compiler() is None, reason="this machine has no C compiler"),
    pytest.mark.timeout(300),
]


AGGREGATE = "neighborhood_aggregate"
QUICK: dict[str, Any] = {
    "FLAGS": ("-std=gnu11", "-O0", "-fPIC"),
    "SOURCES": tuple(path for path in library.SOURCES if AGGREGATE in path.read_text()),
    "_FUNCTIONS": {AGGREGATE: library._FUNCTIONS[AGGREGATE]},
}


def forget() -> None:
    for function in (library.load, library._say_once, library._private_folder):
        function.cache_clear()


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache folder, temporary files of our own, and a library that compiles quickly."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(library.tempfile, "tempdir", str(tmp_path / "tmp"))
    for name, value in QUICK.items():
        monkeypatch.setattr(library, name, value)
    # With one of its functions the library is no operator's: nothing is compared with torch's.
    monkeypatch.setattr(first_use, "agrees", lambda *kernel: True)
    forget()
    yield tmp_path
    forget()


def computes_in_c() -> bool:
    """Tell whether the library serves; what it computes is compared with the definition."""
    torch.manual_seed(0)
    filters, values = torch.randn(1, 4, 5, 2, 9), torch.randn(1, 4, 5, 6)
    torch.testing.assert_close(aggregate(filters, values, 3), aggregate_naive(filters, values, 3))
    return library.load(torch.float32) is not None


def test_the_cache_is_the_users_own_and_nobody_else_sees_it(root: Path) -> None:
    before = os.umask(0)
    try:
        path = library.build(torch.float32)
    finally:
        os.umask(before)

    folder = path.parent
    assert folder == root / "cache" / "mixer-search"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert folder.stat().st_uid == os.geteuid()
    assert computes_in_c()


def damage_truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def damage_empty(path: Path) -> None:
    os.truncate(path, 0)


def damage_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_link(path: Path) -> None:
    """A link to a library of somebody else, which is whole."""
    other = path.parent.parent / "other.so"
    path.rename(other)
    path.symlink_to(other)


def damage_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def damage_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def damage_unreadable(path: Path) -> None:
    damage_one_bit(path)
    path.chmod(0)


@pytest.mark.parametrize(
    "damage",
    [
        damage_truncated,
        damage_empty,
        damage_one_bit,
        damage_link,
        damage_pipe,
        damage_folder,
        damage_unreadable,
    ],
)
def test_what_is_not_the_library_that_was_built_is_built_anew(root: Path, damage: Any) -> None:
    path = library.build(torch.float32)
    whole = path.read_bytes()
    damage(path)

    again = library.build(torch.float32)

    assert stat.S_ISREG(again.lstat().st_mode)
    assert again.read_bytes() == whole
    assert computes_in_c()


def test_a_planted_library_is_never_loaded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the name of the right one, and under that name with its own checksum by another."""
    built = library.build(torch.float32)
    source, marker = root / "evil.c", root / "owned"
    source.write_text(
        "#include <stdio.h>\n__attribute__((constructor)) static void run(void)"
        f' {{ FILE *f = fopen("{marker}", "w"); if (f) fclose(f); }}\n',
        encoding="utf-8",
    )
    compiler = library.find_compiler()
    assert compiler is not None
    subprocess.run([*compiler, "-shared", "-fPIC", str(source), "-o", str(built)], check=True)

    assert computes_in_c()
    assert not marker.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_files_and_folders_of_other_users_are_left_alone(root: Path) -> None:
    path = library.build(torch.float32)
    os.chown(path, 12345, 12345)
    assert library.build(torch.float32).stat().st_uid == os.geteuid()

    os.chown(path.parent, 12345, 12345)
    elsewhere = library.build(torch.float32)
    assert elsewhere.is_relative_to(root / "tmp")
    assert stat.S_IMODE(elsewhere.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_cache_that_others_can_write_is_not_used(
    root: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    folder = root / "cache" / "mixer-search"
    folder.mkdir(parents=True)
    folder.chmod(mode)

    with caplog.at_level(logging.WARNING):
        path = library.build(torch.float32)

    assert path.is_relative_to(root / "tmp")
    assert list(folder.iterdir()) == []
    assert "others can write it" in caplog.text
    assert "XDG_CACHE_HOME" in caplog.text
    assert computes_in_c()


def test_a_cache_that_others_can_only_read_is_closed_and_used(root: Path) -> None:
    folder = root / "cache" / "mixer-search"
    folder.mkdir(parents=True)
    folder.chmod(0o755)

    assert library.build(torch.float32).parent == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_nothing_is_written_or_read_through_a_linked_cache(root: Path) -> None:
    other = root / "other"
    other.mkdir(mode=0o700)
    (root / "cache").mkdir()
    (root / "cache" / "mixer-search").symlink_to(other)

    path = library.build(torch.float32)

    assert path.is_relative_to(root / "tmp")
    assert list(other.iterdir()) == []
    assert computes_in_c()


def test_a_cache_whose_parent_is_a_link_is_used(root: Path, monkeypatch: Any) -> None:
    """As homes on clusters have it: ~/.cache lies on another disk."""
    (root / "scratch").mkdir()
    (root / "cache").symlink_to(root / "scratch")

    assert library.build(torch.float32).resolve().is_relative_to(root / "scratch")


@pytest.mark.parametrize("place", ["file", "missing home", "relative", "unknown user", "home rel"])
def test_a_user_without_a_cache_folder_still_has_the_library(
    root: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(root)
    expected = root / "tmp"
    match place:
        case "file":
            (root / "cache").write_text("", encoding="utf-8")
        case "relative":
            monkeypatch.setenv("XDG_CACHE_HOME", "here")
            monkeypatch.setenv("HOME", str(root / "home"))
            expected = root / "home" / ".cache" / "mixer-search"
        case "missing home":
            monkeypatch.delenv("XDG_CACHE_HOME")
            monkeypatch.setenv("HOME", "/proc/none")
        case "unknown user":
            monkeypatch.delenv("XDG_CACHE_HOME")
            monkeypatch.delenv("HOME")
            monkeypatch.setattr("pwd.getpwuid", unknown)
        case "home rel":
            monkeypatch.delenv("XDG_CACHE_HOME")
            monkeypatch.setenv("HOME", "here")

    assert library.build(torch.float32).is_relative_to(expected)
    assert not (root / "here").exists()
    assert computes_in_c()


def unknown(uid: int) -> None:
    raise KeyError(f"getpwuid(): uid not found: {uid}")


def test_two_that_build_at_once_both_have_a_whole_library(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without locks the second builds while the first stands in front of its end."""

    def refuse(*_: int) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(library.fcntl, "flock", refuse)
    replace, second = os.replace, []

    def held(source: Any, target: Any) -> None:
        if not second:
            second.append(None)  # the inner call goes through
            second[0] = library.build(torch.float32)
        replace(source, target)

    monkeypatch.setattr(library.os, "replace", held)
    first = library.build(torch.float32)

    for path in (first, second[0]):
        assert library._is_whole(path, library._recipe(torch.float32).name)
    assert {path.suffix for path in first.parent.iterdir()} == {".so"}


def test_those_that_begin_together_compile_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the workers of a node do; locks of one process's threads are those of processes."""
    compiled: list[object] = []
    run, begin = library._run, threading.Barrier(3)

    def counted(command: list[str]) -> None:
        compiled.append(command)
        run(command)

    def build(_: int) -> Path:
        begin.wait()
        return library.build(torch.float32)

    monkeypatch.setattr(library, "_run", counted)
    with ThreadPoolExecutor(3) as pool:
        (path,) = set(pool.map(build, range(3)))

    assert path.exists()
    assert len(compiled) == len(library.SOURCES) + 1


def test_a_cache_that_code_may_not_be_run_from_is_not_used(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As homes that are mounted with noexec."""
    opened = ctypes.CDLL

    def mounted(path: str) -> ctypes.CDLL:
        if path.startswith(str(root / "cache")):
            raise OSError(f"{path}: failed to map segment from shared object")
        return opened(path)

    monkeypatch.setattr(library.ctypes, "CDLL", mounted)
    with caplog.at_level(logging.WARNING):
        assert computes_in_c()

    (line,) = [record.getMessage() for record in caplog.records]
    assert "failed to map segment" in line
    assert "XDG_CACHE_HOME" in line


def test_a_truncated_library_kills_no_process(tmp_path: Path) -> None:
    """In processes of their own: a library that is loaded while its end is missing is a SIGBUS."""
    code = textwrap.dedent(
        """
        import torch
        from supernet.kernels import aggregate, library
        library.FLAGS = ("-std=gnu11", "-O0", "-fPIC")
        library.SOURCES = tuple(p for p in library.SOURCES if p.name == "aggregate.c")
        library._FUNCTIONS = {n: a for n, a in library._FUNCTIONS.items() if n.endswith("aggregate")
                              and n.startswith("neighborhood")}
        aggregate(torch.ones(1, 3, 3, 1, 9), torch.ones(1, 3, 3, 1), 3)
        assert library.load(torch.float32) is not None
        """
    )
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "MIXER_KERNELS": "c"}
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        for path in (tmp_path / "mixer-search").glob("*.so"):
            damage_truncated(path)
