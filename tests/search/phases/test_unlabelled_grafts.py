"""A graft that learns on images without classes as well: in its library, and while it heals."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from search.cli.config_file import keep_options, read_options
from search.front import training_command
from search.phases.planning import plan_from_times
from search.plan import PHASES, StepTimes
from search.run_folder import RunSettings, create_run, resume_run
from search.run_folder.creation import keep_unlabelled
from search.run_folder.folder import RunFolder
from search.terminal import plan_table
from search.workers.graft_worker import GraftWorker, make_graft_job
from supernet.data import open_data
from supernet.grafting import load_library
from tests.local_run import LocalRun
from tests.search.phases.test_grafting_phases import graft_of, settings_of

MORE = 40  # two thirds of the 60 images with classes that are no test images


def write_more(folder: Path, number: int = MORE, *, seed: int = 5) -> Path:
    """Write a folder of images without classes, some of them further down."""
    rng = np.random.default_rng(seed)
    for index in range(number):
        place = folder / ("deep/er" if index % 3 == 0 else ".")
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{index}.png")
    return folder


def run_of(folder: Path, patch: pytest.MonkeyPatch, budget: str = "50cpu-seconds") -> LocalRun:
    """Make a graft that learns on `MORE` images without classes."""
    run = graft_of(folder, patch, budget)
    run.settings = replace(run.settings, unlabelled=str(write_more(folder / "more")))
    run.settings = keep_unlabelled(run.settings, run.folder)
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> LocalRun:
    with pytest.MonkeyPatch.context() as patch:
        run = run_of(tmp_path_factory.mktemp("more"), patch)
        assert run.enter() == "done"
        return run


def has_unlabelled(split: Any) -> bool:
    return bool((split.labels < 0).any())


def library_of(run: LocalRun) -> dict[str, Any]:
    return load_library([run.folder / "library" / "0"])


def test_parts_learn_on_the_images_without_classes_too(
    whole: LocalRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = graft_of(tmp_path, monkeypatch)
    assert without.enter() == "done"

    one, two = library_of(whole), library_of(without)
    assert one.keys() == two.keys()
    assert any(not torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize("after", [2.3, 6.0, 17.0])
def test_killed_anywhere_it_goes_on_to_the_same_bits(
    after: float, whole: LocalRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path, monkeypatch)
    assert run.enter(kill_after=after) == "killed"
    shutil.rmtree(tmp_path / "more")  # it goes on where they were
    assert run.enter() == "done"

    one, two = library_of(whole), library_of(run)
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    with run.record() as record:
        assert record.spent(PHASES) <= 50.6
        assert not [row for row in record.ledger() if row[8] is None]


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_networks_are_healed_on_the_same_share_of_both(whole: LocalRun, share: float) -> None:
    data = open_data(whole.folder / "data")
    job = make_graft_job(whole.settings, whole.folder, data)
    split = job.train_split(job.open_data(), share)

    assert has_unlabelled(split)
    assert (split.labels >= 0).sum() == round(share * data.sizes["train"])
    assert (split.labels < 0).sum() == round(share * MORE)
    # What is judged on has classes.
    assert not has_unlabelled(job.open_data().split("search"))


def test_a_worker_learns_on_all_of_them(whole: LocalRun) -> None:
    data = open_data(whole.folder / "data")
    worker = GraftWorker(make_graft_job(whole.settings, whole.folder, data), threads=1)
    trainer = worker._new_trainer((), total_steps=1)
    assert trainer._steps_per_epoch == max((data.sizes["train"] + MORE) // 64, 1)


def test_the_plan_counts_them_in_an_epoch_and_says_so(whole: LocalRun) -> None:
    data = open_data(whole.folder / "data")
    times = StepTimes(
        supernet_step=0.01,
        trial_steps=((100_000, 0.01), (900_000, 0.01)),
        judge=0.1,
        steps_per_epoch=1,
        batch_size=4,
    )
    more, less = (
        plan_from_times(settings, times, data, devices=1, measured_seconds=1.0)
        for settings in (whole.settings, settings_of(whole.folder.parent / "x", "50cpu-seconds"))
    )

    train = data.sizes["train"]
    assert (more.train_images, less.train_images) == (train + MORE, train)
    assert more.trial_steps == more.trial_epochs * ((train + MORE) // 4)
    texts = [str(plan_table(plan, "cpu", twice=plan).columns[3]._cells) for plan in (more, less)]
    assert ["also on 40 images without classes" in text for text in texts] == [True, False]


def graft_settings(folder: Path, **given: Any) -> RunSettings:
    folder.mkdir(exist_ok=True)
    return replace(settings_of(folder, "50cpu-seconds"), **given)


def test_a_run_keeps_them_and_goes_on_without_the_folder(tmp_path: Path) -> None:
    more = write_more(tmp_path / "more")
    tested = next((tmp_path / "of").rglob("test/*/*.png"), None)
    settings = graft_settings(tmp_path / "of", unlabelled=str(more))
    tested = next((tmp_path / "of").rglob("test/*/*.png"))
    shutil.copy(tested, more / "seen.png")

    with create_run(tmp_path / "run", settings) as run:
        kept = run.settings.unlabelled_kept
        assert (run.settings.num_unlabelled, run.settings.num_left_out) == (MORE, 1)
        assert "40 images without classes" in run.settings.unlabelled_line
        assert "1 are judged by, and left out" in run.settings.unlabelled_line
        run.share_data()
    shutil.rmtree(more)

    with resume_run(tmp_path / "run", None) as again:
        assert again.settings.unlabelled_kept == kept
        assert (again.folder / kept).is_dir()


def test_what_networks_are_judged_by_is_not_learned_on(tmp_path: Path) -> None:
    """All images with classes are in the folder again: those of train are learned on."""
    more = write_more(tmp_path / "more")
    settings = graft_settings(tmp_path / "of", unlabelled=str(more))
    for number, path in enumerate(sorted((tmp_path / "of").rglob("*.png"))):
        shutil.copy(path, more / f"known{number}.png")
    with create_run(tmp_path / "run", settings) as run:
        sizes = open_data(run.folder / "data").sizes
        assert run.settings.num_unlabelled == MORE + sizes["train"]
        assert run.settings.num_left_out == sizes["search"] + sizes["test"]


@pytest.mark.parametrize("damage", ["gone", "flipped", "cut"])
def test_a_run_whose_images_are_damaged_is_one_message(tmp_path: Path, damage: str) -> None:
    settings = graft_settings(tmp_path / "of", unlabelled=str(write_more(tmp_path / "more")))
    with create_run(tmp_path / "run", settings) as run:
        folder = run.folder / run.settings.unlabelled_kept
    images = next(folder.glob("*images.npy"))
    if damage == "gone":
        shutil.rmtree(folder)
    elif damage == "cut":
        images.write_bytes(images.read_bytes()[:-3])
    else:
        content = bytearray(images.read_bytes())
        content[-9] ^= 1
        images.write_bytes(content)

    with (
        pytest.raises(ValueError, match=r"keeps the images without classes.*damaged or gone.*copy"),
        resume_run(tmp_path / "run", None),
    ):
        pass


def test_devices_elsewhere_find_them_in_the_storage(tmp_path: Path) -> None:
    storage = str(tmp_path / "storage")
    settings = graft_settings(
        tmp_path / "of", unlabelled=str(write_more(tmp_path / "more")), storage=storage
    )
    with create_run(tmp_path / "run", settings) as run:
        run.share_data()
        assert run.files.has(run.settings.unlabelled_kept)


@pytest.mark.parametrize("case", ["missing", "a file", "empty", "tested", "broken"])
def test_what_cannot_be_learned_on_leaves_nothing_behind(tmp_path: Path, case: str) -> None:
    more = tmp_path / "more"
    settings = graft_settings(tmp_path / "of", unlabelled=str(more))
    if case == "a file":
        more.write_bytes(b"")
    elif case != "missing":
        more.mkdir()
    if case == "tested":
        shutil.copy(next((tmp_path / "of").rglob("test/*/*.png")), more / "seen.png")
    if case == "broken":
        (more / "x.png").write_bytes(b"no image")

    with pytest.raises(ValueError, match="more"), create_run(tmp_path / "run", settings):
        pass

    assert not (tmp_path / "run").exists()


def test_what_was_killed_while_they_were_decoded_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = graft_settings(tmp_path / "of", unlabelled=str(write_more(tmp_path / "more")))
    with monkeypatch.context() as patch:
        patch.setattr("search.run_folder.creation._NewRun.undo", lambda self: None)

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("search.run_folder.creation.Record.create", killed)
        with pytest.raises(KeyboardInterrupt), create_run(tmp_path / "run", settings):
            pass
    assert list((tmp_path / "run").glob("unlabelled-*"))

    with create_run(tmp_path / "run", settings) as run:
        assert run.settings.num_unlabelled == MORE


@pytest.mark.parametrize("given", [{}, {"taught_by": "a teacher"}, {"strategy": "proxy"}])
def test_only_a_graft_takes_them(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"--unlabelled more and no --from\. Add --from"):
        RunSettings(data="digits", budget="1cpu-minute", unlabelled="more", **given)


def test_a_recipe_that_learns_nothing_from_a_teacher_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "alone.yaml"
    heal = (Path(__file__).parents[3] / "configs/recipes/heal.yaml").read_text(encoding="utf-8")
    nothing = "distillation: {weight: 0.0, temperature: 1.0}"
    recipe.write_text(re.sub("distillation: .*", nothing, heal), encoding="utf-8")
    settings = graft_settings(
        tmp_path / "of", unlabelled=str(write_more(tmp_path / "more")), trial_recipe=str(recipe)
    )
    with (
        pytest.raises(ValueError, match="counts for nothing in heal"),
        create_run(tmp_path / "run", settings),
    ):
        pass
    assert not (tmp_path / "run").exists()


def test_a_file_of_options_has_them(tmp_path: Path) -> None:
    from search.cli.app import app

    command = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
    settings = graft_settings(tmp_path / "of", unlabelled="more images")
    keep_options(tmp_path, settings)
    options = {str(option.name).rstrip("_"): option for option in command.params}
    found = read_options(str(tmp_path / "search.yaml"), options, typer.Context(command))
    assert found["unlabelled"] == "more images"


def test_what_to_type_next_learns_on_the_same_images(whole: LocalRun) -> None:
    with whole.record() as record:
        run = RunFolder(whole.folder, record, whole.settings)
        command = training_command(run, "--arch", 3)
    assert command.endswith(f"--arch 3 --unlabelled {whole.settings.unlabelled}")
