"""A run is made whole or not at all: what was cut off is taken up, what is not ours is kept.

Of two processes that make one at once: tests/attacks/test_ownership.py.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import supernet.data
from search.record.claim import take_claim
from search.run_folder import create_run, creation, open_run, resume_run
from search.run_folder.folder import LOCK
from search.run_folder.settings import RunSettings
from search.run_folder.storage import storage_url
from searchspace.cost import count
from searchspace.spec_file import load_space
from tests.attacks.test_ownership import SETTINGS, snapshot, working

ROOT = Path(__file__).parents[3]


def test_a_storage_is_free_again_when_the_run_never_began(tmp_path: Path) -> None:
    settings = RunSettings(
        data="digits", budget="10cpu-minutes", storage=storage_url(str(tmp_path / "storage"))
    )

    def too_small() -> None:
        with create_run(tmp_path / "run", settings) as run:
            run.share_data()
            raise ValueError("the budget is too small")

    for _ in range(2):
        with pytest.raises(ValueError, match="too small"):
            too_small()
    assert snapshot(tmp_path) == {}


def test_a_space_that_limits_leave_next_to_nothing_is_refused_before_a_device_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("searchspace.space.MAX_TRIES", 50)
    least = count(load_space("digits").extreme("macs", largest=False)).macs
    settings = RunSettings(data="digits", budget="1cpu-minute", limits={"macs": 1.05 * least})

    with (
        pytest.raises(ValueError, match=r"'digits' allows too few .* Loosen its limits"),
        create_run(tmp_path / "run", settings),
    ):
        pass
    assert snapshot(tmp_path) == {}


KILLED = """
import os, signal, sys
from pathlib import Path
import supernet.data
from search.run_folder import creation
from search.run_folder.settings import RunSettings
step = sys.argv[3]
def killed(*arguments, **options):
    if step == "after":
        real(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)
holder = {"create": creation.Record, "prepare_data": supernet.data}.get(sys.argv[2], creation)
real = getattr(holder, sys.argv[2])
setattr(holder, sys.argv[2], killed)
settings = RunSettings(data="digits", budget="10cpu-minutes")
with creation.create_run(Path(sys.argv[1]), settings):
    pass
"""


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("refuse_links", "after"),
        ("prepare_data", "before"),
        ("prepare_data", "after"),
        ("_keep_recipe", "after"),
        ("create", "after"),
    ],
)
def test_the_same_command_takes_up_what_was_killed_on_the_way(
    tmp_path: Path, name: str, step: str
) -> None:
    out = tmp_path / "run"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(out), name, step], cwd=ROOT, check=False
    )
    assert killed.returncode == -signal.SIGKILL

    with pytest.raises(ValueError, match="without --resume"), resume_run(out, None):
        pass
    with pytest.raises(ValueError, match="without --resume"), open_run(out):
        pass
    with create_run(out, SETTINGS) as run:
        assert run.data().num_classes == 10
        run.record.set_meta("plan", {})
    with resume_run(out, None) as run:
        assert run.space().num_classes == 10


@pytest.mark.parametrize("left", ["record.db.partial", "space.yaml.partial"])
def test_what_was_cut_off_is_made_anew(tmp_path: Path, left: str) -> None:
    out = tmp_path / "run"
    out.mkdir()
    claim = take_claim(out / LOCK)
    assert claim is not None
    claim.release()
    (out / left).write_bytes(b"cut off")

    with create_run(out, SETTINGS) as run:
        run.record.set_meta("plan", {})

    with open_run(out) as run:
        assert run.settings == SETTINGS


@pytest.mark.parametrize("where", ["sqlite", "postgresql"])
def test_a_run_that_lost_its_space_is_not_made_anew(
    tmp_path: Path, request: pytest.FixtureRequest, where: str
) -> None:
    server = request.getfixturevalue("postgres") if where == "postgresql" else None
    with working(tmp_path / "run", database=server and server.url):
        pass
    (tmp_path / "run" / "space.yaml").unlink()
    before = snapshot(tmp_path)

    with pytest.raises(ValueError, match="is in use"), create_run(tmp_path / "run", SETTINGS):
        pass

    assert snapshot(tmp_path) == before
    with (
        pytest.raises(ValueError, match=r"has lost its space\.yaml"),
        resume_run(tmp_path / "run", None),
    ):
        pass


def test_a_run_that_lost_its_record_says_so(tmp_path: Path) -> None:
    with create_run(tmp_path / "run", SETTINGS) as run:
        run.record.set_meta("plan", {})
    (tmp_path / "run" / "record.db").unlink()

    for opened in (open_run(tmp_path / "run"), resume_run(tmp_path / "run", None)):
        with pytest.raises(ValueError, match=r"has lost its record \(record\.db\)"), opened:
            pass


def test_a_run_that_was_killed_before_its_space_is_begun_again(tmp_path: Path) -> None:
    with create_run(tmp_path / "run", SETTINGS):
        pass
    (tmp_path / "run" / "space.yaml").unlink()

    with pytest.raises(ValueError, match="without --resume"), resume_run(tmp_path / "run", None):
        pass

    with create_run(tmp_path / "run", SETTINGS) as run:
        run.record.set_meta("plan", {})


MAKES_RECORD = """
import os, signal, sys
from pathlib import Path
from search.record import Record, take_claim
from search.record.schema import SqliteDatabase
execute = SqliteDatabase.execute
def killed(database, statement, values=()):
    found = execute(database, statement, values)
    if "CREATE TABLE trials" in statement:
        os.kill(os.getpid(), signal.SIGKILL)
    return found
SqliteDatabase.execute = killed
out = Path(sys.argv[1])
out.mkdir()
take_claim(out / "run.lock")
Record.create(out / "record.db")
"""


def test_a_record_that_was_cut_off_between_its_tables_is_made_anew(tmp_path: Path) -> None:
    out = tmp_path / "run"
    killed = subprocess.run([sys.executable, "-c", MAKES_RECORD, str(out)], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (out / "record.db.partial-journal").is_file()

    with create_run(out, SETTINGS) as run:
        run.record.set_meta("plan", {})

    assert not list(out.glob("*.partial*"))


def test_a_lock_that_was_cut_off_before_its_token_is_taken_up(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / LOCK).touch()

    with pytest.raises(ValueError, match="without --resume"), resume_run(out, None):
        pass
    with create_run(out, SETTINGS) as run:
        run.record.set_meta("plan", {})


def test_a_lock_that_does_not_fit_on_the_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space"), create_run(tmp_path / "run", SETTINGS):
            pass
    assert not list(tmp_path.iterdir())


def test_the_network_of_a_graft_is_on_the_disk_when_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"architecture.json", "model.safetensors", "teacher.json"}
    (tmp_path / "source").mkdir()
    for name in names:
        (tmp_path / "source" / name).write_text(name)
    synced: set[str] = set()
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.add(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    creation._keep_teacher(tmp_path / "source", tmp_path / "teacher")

    assert synced == {*names, "teacher"}
    assert {path.name for path in (tmp_path / "teacher").iterdir()} == names


def test_what_is_not_a_half_made_run_is_not_taken_up(tmp_path: Path) -> None:
    for name in ("data", "record.db", "run.lock"):
        out = tmp_path / f"with {name}"
        out.mkdir()
        (out / name).write_text("mine")
        with pytest.raises(ValueError, match="is in use"), create_run(out, SETTINGS):
            pass
        assert snapshot(out) == {name: b"mine"}
    # An empty lock is the first thing that is made; what lies beside it was there before.
    out = tmp_path / "with an empty lock"
    (out / "data").mkdir(parents=True)
    (out / LOCK).touch()
    with pytest.raises(ValueError, match="is in use"), create_run(out, SETTINGS):
        pass


def test_a_space_whose_networks_cannot_share_weights_is_refused_at_once(tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(
        "name: mine\nimg_size: 16\npatch_size: 2\nstages: [{dim: 12, depth: 1}]\n"
        "mixers: {elsa: {kernel_size: 3, num_heads: 2, group_width: [2, 3]}}\n"
    )
    settings = dataclasses.replace(SETTINGS, space=str(space))

    refused = pytest.raises(ValueError, match="every group_width of a block must divide")
    with refused, create_run(tmp_path / "run", settings):
        pass

    assert snapshot(tmp_path).keys() == {"space.yaml"}
    # Networks that are trained alone share nothing.
    with create_run(tmp_path / "run", dataclasses.replace(settings, strategy="proxy")) as run:
        run.record.set_meta("plan", {})


def test_a_recipe_that_shared_weights_cannot_follow_is_refused_at_once(tmp_path: Path) -> None:
    """Its worker said so, when all devices had been held for as long as measuring takes."""
    recipe = tmp_path / "mine.yaml"
    shipped = (ROOT / "configs" / "recipes" / "supernet.yaml").read_text()
    recipe.write_text(shipped.replace("optimizer: adamw", "optimizer: lion"))
    settings = dataclasses.replace(SETTINGS, supernet_recipe=str(recipe))

    refused = pytest.raises(ValueError, match=r"trained with adamw.*'lion'")
    with refused, create_run(tmp_path / "run", settings):
        pass

    assert snapshot(tmp_path).keys() == {"mine.yaml"}


def test_only_what_was_written_is_removed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    prepare = supernet.data.prepare_data

    def disturbed(*arguments: Any, **options: Any) -> Any:
        prepare(*arguments, **options)
        (out / "data" / "notes.txt").write_text("mine")
        (out / "space.yaml.bak").write_text("mine")
        raise ValueError("an image is damaged")

    monkeypatch.setattr(supernet.data, "prepare_data", disturbed)
    with pytest.raises(ValueError, match="damaged"), create_run(out, SETTINGS):
        pass

    assert snapshot(out) == {"data/notes.txt": b"mine", "space.yaml.bak": b"mine"}
