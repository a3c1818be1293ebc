"""A run keeps whom its networks learn from: a copy, by its fingerprint, whatever becomes of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from search.retraining.teachers import look_for_teacher
from search.run_folder import MENTOR, RunSettings, create_run, open_run, resume_run
from search.run_folder.folder import RunFolder
from searchspace.spec_file import load_space
from supernet.data import prepare_data
from supernet.training import read_teacher_files, write_teacher_files
from tests.tiny_data import noise, write_images
from tests.tiny_job import SPACE
from tests.tiny_teachers import retrained_teacher, tiny_teacher


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """The folder of a retraining on the images in ``images``."""
    source = write_images(tmp_path / "images", *noise(60, 8), num_test=6)
    (tmp_path / "tiny.yaml").write_text(SPACE)
    load_space(str(tmp_path / "tiny.yaml"))
    data = prepare_data(source, img_size=8, folder=tmp_path / "prepared")
    return retrained_teacher(data, tmp_path / "teacher")


def settings_of(tmp_path: Path, **more: str) -> RunSettings:
    given = {
        "data": str(tmp_path / "images"),
        "space": str(tmp_path / "tiny.yaml"),
        "taught_by": str(tmp_path / "teacher"),
        "budget": "1cpu-minute",
    }
    return RunSettings(**(given | more))  # type: ignore[arg-type]


def begin(tmp_path: Path, **more: str) -> RunFolder:
    settings = settings_of(tmp_path, **more)
    build = look_for_teacher(settings.taught_by)
    with create_run(tmp_path / "run", settings, teacher=build) as run:
        run.record.set_meta("plan", {})
        return run


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file() and "record" not in p.name
    }


def test_a_run_goes_on_with_its_copy_of_the_teacher(tmp_path: Path, teacher: Path) -> None:
    run = begin(tmp_path)
    assert len(run.settings.mentor) == 64
    shutil.rmtree(teacher)
    with open_run(tmp_path / "run") as again:
        assert again.settings == run.settings
    with resume_run(tmp_path / "run", None) as again:
        found = read_teacher_files(again.folder / MENTOR, run.settings.mentor)
    assert (found.name, found.num_classes) == (str(teacher), 2)


@pytest.mark.parametrize("spoilt", ["gone", "other", "flipped"])
def test_a_run_with_another_teacher_is_not_gone_on_with(
    tmp_path: Path, teacher: Path, spoilt: str
) -> None:
    begin(tmp_path)
    mentor = tmp_path / "run" / MENTOR
    if spoilt == "gone":
        shutil.rmtree(mentor)
    elif spoilt == "other":
        write_teacher_files(mentor, tiny_teacher())
    else:
        weights = mentor / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    before = contents(tmp_path / "run")
    with (
        pytest.raises(ValueError, match="keeps the teacher that it began with"),
        resume_run(tmp_path / "run", "2cpu-minutes"),
    ):
        pass
    assert contents(tmp_path / "run") == before
    with open_run(tmp_path / "run") as run:
        assert run.settings.budget == "1cpu-minute"


def test_a_teacher_of_other_images_leaves_no_folder(tmp_path: Path, teacher: Path) -> None:
    write_images(tmp_path / "more", *noise(60, 8, num_classes=3), num_test=6)
    with pytest.raises(ValueError, match="learnt other classes"):
        begin(tmp_path, data=str(tmp_path / "more"))
    assert not (tmp_path / "run").exists()


def test_what_was_killed_while_it_was_made_is_taken_up(tmp_path: Path, teacher: Path) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    settings = settings_of(tmp_path)
    build = look_for_teacher(settings.taught_by)
    with pytest.MonkeyPatch.context() as patch:
        # A kill undoes nothing.
        patch.setattr("search.run_folder.creation._NewRun.undo", lambda self: None)
        patch.setattr("search.run_folder.creation.Record.create", killed)
        with pytest.raises(Killed), create_run(tmp_path / "run", settings, teacher=build):
            pass
    assert (tmp_path / "run" / MENTOR).is_dir()
    assert begin(tmp_path).settings.mentor


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ("trial_recipe", "has no distillation"),
        ("supernet_recipe", "has no distillation"),
    ],
)
def test_a_recipe_that_takes_no_teacher_is_refused_before_images_are_read(
    tmp_path: Path, teacher: Path, recipe: str, why: str
) -> None:
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(ValueError, match=why):
        begin(tmp_path, **{recipe: "swin_300e:tiny"})
    assert not (tmp_path / "run").exists()


def test_who_has_a_teacher_already_takes_no_other() -> None:
    with pytest.raises(ValueError, match=r"learns from the network that it begins with \(--from\)"):
        RunSettings(
            data="digits",
            budget="1cpu-minute",
            strategy="graft",
            teacher="x",
            graft_from="x",
            taught_by="y",
            img_size=8,
        )


def test_a_teacher_has_a_name_and_a_name_a_teacher(tmp_path: Path, teacher: Path) -> None:
    for settings, build in (
        (settings_of(tmp_path), None),
        (settings_of(tmp_path, taught_by=""), look_for_teacher(str(teacher))),
    ):
        with (
            pytest.raises(ValueError, match="goes with its name"),
            create_run(tmp_path / "run", settings, teacher=build),
        ):
            pass
