"""What a run ends with, on a full disk or beside a damaged copy of the study: nothing is lost."""

from __future__ import annotations

import errno
import io
import os
import random
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import typer
from optuna.storages import RDBStorage
from rich.console import Console
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool
from typer.testing import CliRunner

from search.cli import dense_commands
from search.cli.app import app
from search.report.closing import MIRROR, update_mirror, write_report
from search.retraining import queue
from search.run_folder.folder import RunFolder, own_run
from search.run_folder.settings import RunSettings
from searchspace import durable
from supernet.data import prepare_data
from tests.tiny_run import some_trials, write_run

REPORTS = ("report.html", "front.png")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    with own_run(write_whole_run(tmp_path / "a [red]run")) as opened:
        yield opened


def write_whole_run(folder: Path) -> Path:
    """Write a finished run with its space and images."""
    space = RunSettings(data="digits", budget="1cpu-hour").load_space().replace(num_classes=10)
    rng, trials = random.Random(0), []
    for number, one in enumerate(some_trials()):
        found = space.sample(rng)
        trials.append(replace(one, architecture=found, key=found.key, architecture_id=number))
    write_run(folder, trials)
    (folder / "space.yaml").write_text(space.source)
    prepare_data("digits", img_size=space.img_size, folder=folder / "data")
    return folder


def fills_at(name: str) -> Callable[[Path], None]:
    """Make a disk that has no room for a file of this name."""
    sync = durable.sync

    def full(path: Path) -> None:
        if path.name == f"{name}.partial":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        sync(path)

    return full


def full_database(*_: object) -> None:
    raise OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_that_does_not_fit_leaves_the_older_one_and_says_so(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for old in REPORTS:
        (run.folder / old).write_text("the older one")
    shown = io.StringIO()

    with monkeypatch.context() as patch:
        patch.setattr(durable, "sync", fills_at(name))
        assert not write_report(run, Console(file=shown, width=200))

    assert (run.folder / name).read_text() == "the older one"
    assert not list(run.folder.glob("*.partial"))
    assert (
        f"The report of {run.folder} cannot be written: its disk is full. Free" in shown.getvalue()
    )
    assert write_report(run, Console(file=io.StringIO()))
    assert all(b"older" not in (run.folder / old).read_bytes()[:20] for old in REPORTS)


def test_a_full_disk_in_the_copy_of_the_study_is_said_too(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    update_mirror(run)
    before = (run.folder / MIRROR).read_bytes()
    shown = io.StringIO()
    monkeypatch.setattr("search.sampling.Mirror.add", full_database)

    assert not write_report(run, Console(file=shown, width=200))

    assert "its disk is full" in shown.getvalue()
    # What is there is no worse for it, and is not removed to be made anew.
    assert (run.folder / MIRROR).read_bytes() == before


def test_a_mistake_of_ours_in_the_report_keeps_its_traceback(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.report.page.get_plotlyjs", lambda: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        write_report(run, Console(file=io.StringIO()))


def test_a_retraining_whose_report_does_not_fit_ends_as_stopped_by_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole_run(tmp_path / "run")
    monkeypatch.setattr(queue, "retrain_members", lambda *_, **__: None)
    monkeypatch.setattr(durable, "sync", fills_at("report.html"))

    done = CliRunner().invoke(app, ["retrain", str(tmp_path / "run"), "--arch", "1"])

    assert done.exit_code == 1
    assert "cannot be written: its disk is full. Free some space" in done.output
    assert "Stopped by a full disk. The same command goes on." in done.output
    assert "Report: " not in done.output


def test_a_transfer_whose_report_does_not_fit_ends_in_the_same_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_whole_run(tmp_path / "run")
    monkeypatch.setattr("search.transferring.queue.transfer_members", lambda *_, **__: None)
    monkeypatch.setattr(durable, "sync", fills_at("report.html"))

    with pytest.raises(typer.Exit) as end:
        dense_commands._transfer_members(run, [1], None, None)

    assert end.value.exit_code == 1
    assert "Stopped by a full disk. The same command goes on." in capsys.readouterr().out


def trials_of(run: RunFolder) -> list[tuple[str, list[float]]]:
    """Read the copy as optuna-dashboard does."""
    url = f"sqlite:///{run.folder / MIRROR}"
    storage = RDBStorage(url, engine_kwargs={"poolclass": NullPool})
    study = optuna.load_study(study_name=None, storage=storage)
    try:
        return [(trial.user_attrs["architecture"], trial.values) for trial in study.trials]
    finally:
        storage.remove_session()


@pytest.mark.parametrize("seed", range(6))
def test_a_copy_of_the_study_that_cannot_be_read_is_made_anew(run: RunFolder, seed: int) -> None:
    update_mirror(run)
    expected = trials_of(run)
    rng, path = random.Random(seed), run.folder / MIRROR
    content = bytearray(path.read_bytes())
    # SQLite's head, its pages, or everywhere.
    reach = (100, 4096, len(content))[seed % 3]
    for _ in range(reach // 20):
        content[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    path.write_bytes(content)

    update_mirror(run)

    assert trials_of(run) == expected


def test_a_copy_with_other_tables_or_values_is_made_anew(run: RunFolder) -> None:
    update_mirror(run)
    expected = trials_of(run)
    for change in (
        "DROP TABLE trial_values",
        "UPDATE trial_user_attributes SET value_json = '{'",
        "UPDATE trial_user_attributes SET key = 'other'",
        "UPDATE version_info SET schema_version = 1",
        "UPDATE trial_values SET value = value + 1 WHERE trial_id = 3",
    ):
        with sqlite3.connect(run.folder / MIRROR) as database:
            database.execute(change)
        database.close()

        update_mirror(run)

        assert trials_of(run) == expected
