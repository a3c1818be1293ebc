"""Where a node keeps its copies of a run's files, whatever cache folder the user has."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from search.run_folder.files import StorageError
from search.run_folder.storage import CACHE_VARIABLE, Storage, storage_url


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """A storage for a user whose home is ``home`` and whose temporary files are in ``tmp``."""
    for name in ("home", "tmp", "files"):
        (tmp_path / name).mkdir()
    (tmp_path / "files" / "weights.txt").write_text("1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    storage = Storage(storage_url(str(tmp_path / "storage")))
    with monkeypatch.context() as another_node:
        another_node.setenv(CACHE_VARIABLE, str(tmp_path / "elsewhere"))
        storage.publish("supernet", tmp_path / "files")
    return storage


def unknown(uid: int) -> None:
    raise KeyError(f"getpwuid(): uid not found: {uid}")


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("usual", "home/.cache/mixer-search"),
        ("relative XDG_CACHE_HOME", "home/.cache/mixer-search"),
        ("unknown user without a home", "tmp"),
        ("home that cannot be made", "tmp"),
        ("relative home", "tmp"),
        ("read-only home", "tmp"),
        ("cache that others can write", "tmp"),
        ("cache that is a link", "tmp"),
    ],
)
def test_a_copy_lies_in_a_folder_that_only_the_user_can_write(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, expected: str
) -> None:
    cache = tmp_path / "home" / ".cache" / "mixer-search"
    match case:
        case "relative XDG_CACHE_HOME":
            monkeypatch.setenv("XDG_CACHE_HOME", "here")
        case "unknown user without a home":
            monkeypatch.delenv("HOME")
            monkeypatch.setattr("pwd.getpwuid", unknown)
        case "home that cannot be made":
            monkeypatch.setenv("HOME", "/proc/none")
        case "relative home":
            monkeypatch.setenv("HOME", "here")
        case "read-only home":
            # Root may write wherever there is a disk, so the answer is given for it.
            monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != cache)
        case "cache that others can write":
            cache.mkdir(parents=True)
            cache.chmod(0o777)
        case "cache that is a link":
            (tmp_path / "strangers").mkdir()
            cache.parent.mkdir()
            cache.symlink_to(tmp_path / "strangers")

    copy = storage.fetch("supernet")

    assert (copy / "weights.txt").read_text() == "1"
    assert copy.is_relative_to(tmp_path / expected)
    assert copy == storage.fetch("supernet")  # every process of the node finds the same
    (own,) = (path for path in copy.parents if path.name.startswith("mixer-search"))
    assert own.stat().st_mode & 0o777 == 0o700
    assert not (tmp_path / "here").exists()
    assert not any((tmp_path / "strangers").glob("*"))


@pytest.mark.parametrize("planted", ["link", "writable"])
def test_a_temporary_folder_of_a_stranger_is_not_used(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    monkeypatch.setenv("HOME", "/proc/none")
    place = tmp_path / "tmp" / f"mixer-search-{os.geteuid()}"
    if planted == "link":
        (tmp_path / "strangers").mkdir()
        place.symlink_to(tmp_path / "strangers")
    else:
        place.mkdir()
        place.chmod(0o777)

    with pytest.raises(StorageError, match=f"others can write it.*{CACHE_VARIABLE}"):
        storage.fetch("supernet")
    # Before a run begins, it is a message like any other.
    with pytest.raises(ValueError, match=f"others can write it.*{CACHE_VARIABLE}"):
        storage.check(is_new=False)


def test_a_relative_place_of_the_copies_is_refused_before_anything_is_written(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, "copies")

    with pytest.raises(ValueError, match=f"{CACHE_VARIABLE} must be an absolute.*'copies'"):
        storage.check(is_new=False)

    assert not (tmp_path / "copies").exists()
