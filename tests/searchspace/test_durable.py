"""What is written is on the disk before its name is, and its name before anything else goes on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from searchspace import durable


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Note, in order, what is synced and renamed, by the name that it has then."""
    noted: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        noted.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def note_rename(old: Path, new: Path) -> None:
        noted.append(("rename", Path(new).name))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_rename)
    return noted


def test_a_file_is_synced_then_renamed_then_its_folder_is_synced(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    durable.write_text(tmp_path / "note", "größer")

    assert (tmp_path / "note").read_bytes() == "größer".encode()
    assert calls == [("sync", "note.partial"), ("rename", "note"), ("sync", tmp_path.name)]


def test_everything_in_a_folder_is_synced_before_it_is_renamed(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    (tmp_path / "new" / "deep").mkdir(parents=True)
    (tmp_path / "new" / "a").write_text("a")
    (tmp_path / "new" / "deep" / "b").write_text("b")

    durable.replace(tmp_path / "new", tmp_path / "whole")

    renamed = calls.index(("rename", "whole"))
    assert set(calls[:renamed]) == {("sync", name) for name in ("a", "b", "deep", "new")}
    assert calls[renamed + 1 :] == [("sync", tmp_path.name)]


def test_a_link_in_the_way_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run" / "note.partial").symlink_to(tmp_path / "mine")

    durable.write_text(tmp_path / "run" / "note", "new")

    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "run" / "note").read_text() == "new"
