"""Links in a run's folder and names in index files lead nowhere outside of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search.cli.app import main
from search.record.claim import take_claim
from search.run_folder import create_run, own_run, resume_run
from search.run_folder.files import SharedFolder, StorageError
from search.run_folder.settings import RunSettings
from search.run_folder.storage import CACHE_VARIABLE, Storage, storage_url
from searchspace import durable
from tests.attacks.test_ownership import snapshot
from tests.tiny_run import write_run

SETTINGS = RunSettings(data="digits", budget="10cpu-minutes")
PARTS = [
    "ray/promote",
    "ray",
    "trials/7",
    "trials",
    "data",
    "supernet",
    "retrain",
    "retrain/3-digits-9e-s0/checkpoint-00001",
    "data-16",
    "run.lock",
    "record.db.lock",
    "record.db-wal",
    "study.db",
    "report.html",
    "front.png",
    "space.yaml.partial",
]


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "Documents"
    (folder / "letters").mkdir(parents=True)
    (folder / "letters" / "one.txt").write_text("precious")
    (folder / "data.json").write_text("precious")
    (folder / "train_search_images.npy").write_text("precious")
    return folder


def link(run: Path, part: str, documents: Path) -> None:
    """Put a link in the place of a part of a run: to a folder, or to a file where it is one."""
    place = run / part
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    is_file = "." in place.name
    place.symlink_to(documents / "data.json" if is_file else documents)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_a_link_is_refused_by_name(
    tmp_path: Path, documents: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run")
    link(run, part, documents)
    before = snapshot(tmp_path)

    for opened in (own_run(run), resume_run(run, None), resume_run(run, "20cpu-minutes")):
        with pytest.raises(ValueError, match=f"{part} is a link"), opened:
            pass

    after = snapshot(tmp_path)
    assert after.pop("run/run.lock", None) is not None
    before.pop("run/run.lock", None)
    assert after == before
    assert (run / part).is_symlink()


@pytest.mark.parametrize("words", [("run", "--resume", "--out"), ("retrain", "--arch", "1")])
def test_the_commands_say_which_part_it_is(
    tmp_path: Path,
    documents: Path,
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = write_run(tmp_path / "run")
    link(run, "ray/promote", documents)
    monkeypatch.setattr("sys.argv", ["search", *words, str(run)])

    with pytest.raises(SystemExit) as ended:
        main()

    assert ended.value.code == 2
    assert f"Error: {run}/ray/promote is a link to '{documents}'" in capsys.readouterr().err
    assert (documents / "letters" / "one.txt").read_text() == "precious"


@pytest.mark.parametrize("part", ["data", "run.lock", "record.db.lock", "space.yaml.partial"])
def test_a_new_run_does_not_go_through_links(tmp_path: Path, documents: Path, part: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    claim = take_claim(run / "run.lock")
    assert claim is not None
    claim.release()
    link(run, part, documents)
    before = snapshot(documents)

    with pytest.raises(ValueError, match=r"is a link|is in use"), create_run(run, SETTINGS):
        pass

    assert snapshot(documents) == before


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")

    with create_run(tmp_path / "run", SETTINGS) as run:
        run.record.set_meta("plan", {})
    with resume_run(tmp_path / "run", None):
        pass

    assert (tmp_path / "disk" / "record.db").is_file()


def test_a_lock_is_not_taken_through_a_link(tmp_path: Path, documents: Path) -> None:
    (tmp_path / "run.lock").symlink_to(documents / "data.json")

    with pytest.raises(ValueError, match="is a link"):
        take_claim(tmp_path / "run.lock")

    assert (documents / "data.json").read_text() == "precious"


def test_a_checkpoint_is_not_removed_through_a_link(tmp_path: Path, documents: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "trials").symlink_to(documents)

    SharedFolder(tmp_path / "run").remove("trials/letters")

    assert (documents / "letters" / "one.txt").read_text() == "precious"


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return Storage(storage_url(str(tmp_path / "storage")))


@pytest.mark.parametrize(
    "name",
    [
        "../../../Documents/data.json",
        "/etc/passwd",
        "..",
        ".",
        "",
        "a/../../b",
        "a//b",
        "./a",
        "a\\b",
        "C:\\a",
        "a\0b",
    ],
)
def test_a_name_in_a_storages_index_stays_in_its_folder(
    tmp_path: Path, storage: Storage, documents: Path, name: str
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "weights").write_text("w")
    storage.publish("supernet", tmp_path / "here")
    (index,) = (tmp_path / "storage" / "supernet").glob("*.json")
    index.write_text(json.dumps({name: 1}))
    before = snapshot(documents)

    with pytest.raises(StorageError, match="outside of its folder"):
        storage.fetch("supernet")

    assert snapshot(documents) == before


def test_what_a_link_points_to_is_not_published(
    tmp_path: Path, storage: Storage, documents: Path
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "weights").write_text("w")
    (here / "letter").symlink_to(documents / "letters" / "one.txt")
    (here / "folder").symlink_to(documents)

    storage.publish("supernet", here)

    assert {path.name for path in storage.fetch("supernet").rglob("*")} == {"weights"}


def test_a_copy_that_was_made_a_link_is_not_emptied(
    tmp_path: Path, storage: Storage, documents: Path
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "weights").write_text("w")
    storage.publish("supernet", tmp_path / "here")
    copy = storage._copy("supernet")
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.symlink_to(documents)
    before = snapshot(documents)

    assert {path.name for path in storage.fetch("supernet").iterdir()} == {"weights"}
    storage.forget("supernet")

    assert snapshot(documents) == before


@pytest.mark.parametrize(
    "write",
    [
        lambda path: durable.write_text(path, "new"),
        lambda path: durable.write_bytes(path, b"new"),
    ],
)
def test_a_file_that_is_replaced_is_not_written_through(
    tmp_path: Path, documents: Path, write: Callable[[Path], Any]
) -> None:
    (tmp_path / "note").symlink_to(documents / "data.json")

    write(tmp_path / "note")

    assert (documents / "data.json").read_text() == "precious"
    assert (tmp_path / "note").read_text() == "new"
