"""Files shared through a storage: whole or absent, one copy a node, the newest for everybody."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import known_implementations

from search.run_folder.files import Owner, SharedFolder, StorageError
from search.run_folder.settings import RunSettings
from search.run_folder.storage import CACHE_VARIABLE, Storage, open_files, storage_url
from tests.object_store import object_store

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def on_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Go to a node: to a cache folder of its own."""

    def go(name: str) -> None:
        monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / f"cache-{name}"))

    go("a")
    return go


@pytest.fixture(params=["file", "memory", "s3"])
def storage(
    request: pytest.FixtureRequest, tmp_path: Path, on_node: Callable[[str], None]
) -> Iterator[Storage]:
    if request.param == "file":
        yield Storage(storage_url(str(tmp_path / "storage")))
        return
    if request.param == "s3":
        with object_store() as url:
            yield Storage(url)
        return
    yield Storage("memory://bucket/run")
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def write(folder: Path, files: dict[str, str]) -> Path:
    """Write a folder anew."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    for file, text in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    return folder


def read(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def stored(storage: Storage) -> list[str]:
    """List all files of a storage, without the numbers that are drawn."""
    fs, root = fsspec.core.url_to_fs(storage.url)
    names = [path.removeprefix(root).lstrip("/") for path in fs.find(root)]
    return sorted(
        name.replace(name.split("-")[1][:8], "*") if "-" in name else name for name in names
    )


FIRST = {"index.json": "1", "deep/down/weights.bin": "one"}
SECOND = {"index.json": "2", "weights.bin": "two"}


def test_another_node_reads_what_was_published(
    storage: Storage, tmp_path: Path, on_node: Callable[[str], None]
) -> None:
    storage.publish("supernet", write(tmp_path / "here", FIRST))
    on_node("b")
    folder = storage.fetch("supernet")
    assert read(folder) == FIRST
    assert folder.is_relative_to(tmp_path / "cache-b")


def test_what_was_never_published_is_not_there(storage: Storage) -> None:
    assert not storage.fetch("trials/7").exists()
    assert not storage.has("trials/7")


def test_one_version_is_kept_and_the_newest_is_read_by_all(
    storage: Storage, tmp_path: Path, on_node: Callable[[str], None]
) -> None:
    source = tmp_path / "here"
    for node, files in (("a", FIRST), ("b", SECOND), ("a", FIRST), ("b", SECOND)):
        on_node(node)
        storage.publish("supernet", write(source, files))
        assert read(storage.fetch("supernet")) == files
    on_node("a")
    assert read(storage.fetch("supernet")) == SECOND
    kept = ["supernet/00000004-*.json", "supernet/00000004-*/index.json"]
    assert stored(storage) == [*kept, "supernet/00000004-*/weights.bin"]


def test_a_copy_that_was_written_to_but_not_published_is_replaced(
    storage: Storage, tmp_path: Path
) -> None:
    storage.publish("trials/7", write(tmp_path / "here", FIRST))
    copy = storage.fetch("trials/7")
    write(copy, SECOND)
    assert read(storage.fetch("trials/7")) == FIRST
    storage.publish("trials/7", write(copy, SECOND))
    assert read(storage.fetch("trials/7")) == SECOND


def test_what_is_up_to_date_is_not_copied_again(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.publish("data", write(tmp_path / "here", FIRST))
    storage.fetch("data")
    fs, _ = storage._connect()
    monkeypatch.setattr(fs, "get", refuse)
    assert read(storage.fetch("data")) == FIRST


def test_a_writer_needs_no_copy_of_what_it_published(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = storage.fetch("supernet")
    folder.mkdir(parents=True)
    storage.publish("supernet", write(folder, FIRST))
    fs, _ = storage._connect()
    monkeypatch.setattr(fs, "get", refuse)
    assert read(storage.fetch("supernet")) == FIRST


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("asked the storage")


@pytest.mark.parametrize("killed_in", ["put", "pipe_file", "rm"])
def test_an_interrupted_upload_leaves_the_version_before_or_the_new_one(
    storage: Storage,
    tmp_path: Path,
    on_node: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    killed_in: str,
) -> None:
    storage.publish("supernet", write(tmp_path / "here", FIRST))
    fs, _ = storage._connect()
    real = getattr(fs, killed_in)

    def killed(*arguments: Any, **options: Any) -> None:
        if killed_in == "put":  # one of the files is there
            real(arguments[0][:1], arguments[1][:1])
        raise KeyboardInterrupt

    write(tmp_path / "here", SECOND)
    with monkeypatch.context() as patch:
        patch.setattr(fs, killed_in, killed)
        with pytest.raises(KeyboardInterrupt):
            storage.publish("supernet", tmp_path / "here")
    on_node("b")
    assert read(storage.fetch("supernet")) == (SECOND if killed_in == "rm" else FIRST)
    # And the next one removes what is left of it.
    storage.publish("supernet", write(tmp_path / "here", FIRST))
    assert len(stored(storage)) == 1 + len(FIRST)
    assert read(storage.fetch("supernet")) == FIRST


def test_an_index_that_is_half_written_does_not_count(storage: Storage, tmp_path: Path) -> None:
    storage.publish("supernet", write(tmp_path / "here", FIRST))
    fs, root = fsspec.core.url_to_fs(storage.url)
    fs.pipe_file(f"{root}/supernet/00000002-0123abcd.json", b'{"index.js')
    assert read(storage.fetch("supernet")) == FIRST


def test_a_version_that_is_replaced_while_it_is_read_gives_the_newer_one(
    tmp_path: Path, on_node: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(storage_url(str(tmp_path / "storage")))
    storage.publish("supernet", write(tmp_path / "here", FIRST))
    real, times = LocalFileSystem.get, iter(range(9))

    def overtaken(self: Any, *arguments: Any, **options: Any) -> None:
        if next(times) == 0:
            storage.publish("supernet", write(tmp_path / "here", SECOND))
        real(self, *arguments, **options)

    monkeypatch.setattr(LocalFileSystem, "get", overtaken)
    on_node("b")
    assert read(storage.fetch("supernet")) == SECOND


def test_a_version_that_is_replaced_while_it_is_looked_for_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(storage_url(str(tmp_path / "storage")))
    storage.publish("supernet", write(tmp_path / "here", FIRST))
    real, times = LocalFileSystem.cat_file, iter(range(9))

    def overtaken(self: Any, *arguments: Any, **options: Any) -> Any:
        if next(times) == 0:
            storage.publish("supernet", write(tmp_path / "here", SECOND))
        return real(self, *arguments, **options)

    monkeypatch.setattr(LocalFileSystem, "cat_file", overtaken)
    assert storage.has("supernet")


def test_files_that_are_gone_or_shorter_are_said(
    tmp_path: Path, on_node: Callable[[str], None]
) -> None:
    storage = Storage(storage_url(str(tmp_path / "storage")))
    storage.publish("supernet", write(tmp_path / "here", FIRST))
    (weights,) = (tmp_path / "storage").rglob("weights.bin")
    weights.write_text("o")
    with pytest.raises(StorageError, match=r"weights.bin has 1 bytes, 3 were written"):
        storage.fetch("supernet")
    weights.unlink()
    with pytest.raises(StorageError, match="lacks files of supernet"):
        storage.fetch("supernet")


def test_removing_leaves_nothing_there_and_forgetting_nothing_here(
    storage: Storage, tmp_path: Path
) -> None:
    storage.publish("trials/7", write(tmp_path / "here", FIRST))
    storage.publish("trials/71", write(tmp_path / "here", SECOND))
    copy = storage.fetch("trials/7")
    storage.forget("trials/7")
    assert not copy.exists()
    assert storage.has("trials/7")
    storage.remove("trials/7")
    storage.remove("trials/7")
    assert not storage.has("trials/7")
    assert read(storage.fetch("trials/71")) == SECOND


def fetch_together(url: str, barrier: Any, answers: Any) -> None:
    downloads = 0
    real = LocalFileSystem.get

    def counted(self: Any, *arguments: Any, **options: Any) -> None:
        nonlocal downloads
        downloads += 1
        real(self, *arguments, **options)

    LocalFileSystem.get = counted
    barrier.wait()
    folder = Storage(url).fetch("data")
    answers.put((downloads, {path.name: path.stat().st_size for path in folder.iterdir()}))


def test_two_processes_of_a_node_copy_once_and_read_whole_files(
    tmp_path: Path, on_node: Callable[[str], None]
) -> None:
    storage = Storage(storage_url(str(tmp_path / "storage")))
    sizes = {f"images-{number}.npy": 300_000 + number for number in range(20)}
    here = tmp_path / "here"
    here.mkdir()
    for file, size in sizes.items():
        (here / file).write_bytes(os.urandom(size))
    storage.publish("data", here)
    barrier, answers = FORK.Barrier(2), FORK.Queue()
    processes = [
        FORK.Process(target=fetch_together, args=(storage.url, barrier, answers)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    found = [answers.get(timeout=100) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(downloads for downloads, _ in found) == [0, 1]
    assert [read_sizes for _, read_sizes in found] == [sizes, sizes]


def test_readers_and_a_writer_at_once_see_whole_versions(
    tmp_path: Path, on_node: Callable[[str], None]
) -> None:
    """Versions are published one after the other while a node reads: each has files that agree."""
    storage = Storage(storage_url(str(tmp_path / "storage")))

    def publish(number: int) -> None:
        files = {f"part-{part}": str(number) * 1000 for part in range(5)}
        storage.publish("supernet", write(tmp_path / "here", files))

    publish(1)
    writer = threading.Thread(target=lambda: [publish(number) for number in range(2, 6)])
    writer.start()
    seen = []
    while writer.is_alive() or not seen or seen[-1] != "5":
        (text,) = set(read(storage.fetch("supernet")).values())
        seen.append(text[0])
    writer.join()
    assert seen == sorted(seen)


def test_a_storage_that_works_passes_its_check_and_keeps_nothing_of_it(storage: Storage) -> None:
    storage.check(is_new=True)
    assert stored(storage) == []


def test_a_storage_that_is_in_use_is_refused_to_a_new_run(storage: Storage, tmp_path: Path) -> None:
    storage.publish("data", write(tmp_path / "here", FIRST))
    storage.check(is_new=False)
    with pytest.raises(ValueError, match=r"is in use \(it has data\).*--resume"):
        storage.check(is_new=True)


def test_a_run_that_was_killed_on_the_way_to_its_storage_gets_it(storage: Storage) -> None:
    fs, root = storage._connect()
    token = "5f" * 16
    fs.pipe_file(f"{root}/probe-{token}", b"mixer-search was here")
    fs.pipe_file(f"{root}/asking/{token}-00000000", b"{}")

    storage.check(is_new=True, token=token)
    storage.claim(Owner(token))

    assert storage.owner() == Owner(token)
    assert not fs.exists(f"{root}/asking/{token}-00000000")


def test_a_run_that_asks_is_not_said_to_have_the_storage(storage: Storage) -> None:
    fs, root = storage._connect()
    fs.pipe_file(f"{root}/asking/{'00' * 16}-00000000", b"{}")

    with pytest.raises(ValueError, match=r"^Another run asks for .* or was killed .* remove that"):
        storage.claim(Owner("5f" * 16))

    assert storage.owner() is None


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("nosuch://bucket", "Protocol not known: nosuch"),
        ("file:///dev/null/below", "NotADirectoryError"),
        ("file:///proc/nobody/writes/here", "FileNotFoundError|PermissionError"),
    ],
)
def test_a_storage_that_cannot_be_used_is_one_message(url: str, cause: str) -> None:
    with pytest.raises(ValueError, match=f"The storage {url} cannot be used.*({cause}).*Name a"):
        Storage(url).check(is_new=True)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"class": "no_such_package.FileSystem", "err": "Install s3fs to access S3"}
    monkeypatch.setitem(known_implementations, "missing", missing)
    with pytest.raises(ValueError, match=r"ImportError: Install s3fs to access S3"):
        Storage("missing://bucket/run").check(is_new=True)


def test_the_network_error_of_a_storage_names_it(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs, _ = storage._connect()

    def fail(*_: Any, **__: Any) -> None:
        raise TimeoutError("no answer within 60 s")

    monkeypatch.setattr(fs, "put", fail)
    with pytest.raises(StorageError, match=f"{storage.url}: TimeoutError: no answer within 60 s"):
        storage.publish("supernet", write(tmp_path / "here", FIRST))


def test_a_path_means_the_same_on_all_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = RunSettings(data="digits", budget="1cpu-minute", storage="shared/a")
    assert settings.storage == f"file://{tmp_path}/shared/a"
    assert RunSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert storage_url("s3://bucket/a") == "s3://bucket/a"
    assert storage_url("") == ""


def test_without_a_storage_nothing_is_copied(
    tmp_path: Path, on_node: Callable[[str], None]
) -> None:
    files = open_files("", tmp_path)
    assert files == SharedFolder(tmp_path)
    files.check(is_new=True)
    assert files.fetch("supernet") == tmp_path / "supernet"
    files.publish("trials/7", write(tmp_path / "trials" / "7", FIRST))
    files.forget("trials/7")
    assert files.has("trials/7")
    assert read(files.fetch("trials/7")) == FIRST
    files.remove("trials/7")
    assert not files.has("trials/7")
    assert not (tmp_path / "cache-a").exists()
