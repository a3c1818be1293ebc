"""What a resumed run would ignore is refused; what a run will look up is looked up first."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml

from configs import config_path
from search.cli import app, run_commands
from search.run_folder import create_run, open_run, resume_run
from search.run_folder.settings import SAMPLERS, RunSettings
from search.sampling.asking import SAMPLERS as KNOWN_SAMPLERS
from supernet.recipes.recipe import load_recipe

# Each option of the command with a value that a new run would take.
OPTIONS = {
    "--space": "digits",
    "--data": "digits",
    "--strategy": "supernet",
    "--supernet-strategy": "uniform",
    "--projections": "unshared",
    "--kernels": "centred",
    "--objectives": "top1,macs",
    "--max-macs": "5G",
    "--max-params": "5M",
    "--max-latency": "5",
    "--max-memory": "5",
    "--img-size": "8",
    "--recipe": "digits",
    "--share": "supernet=.5",
    "--seed": "0",
    "--latency-of": "eager",
    "--precision": "fp32",
    "--batch": "2",
    "--latency-table": "table.json",
    "--task": "semantic",
    "--start": "other",
    "--from": "other",
    "--unlabelled": "images",
    "--arch": "swin_t",
    "--teacher": "runs/other:3",
    "--storage": "there",
    "--record": "postgresql://host/db",
}
TAKEN = {"--budget", "--sampler", "--ray-address", "--track"}


def command(patch: pytest.MonkeyPatch, *words: str) -> int:
    patch.setattr("sys.argv", ["search", *words])
    with pytest.raises(SystemExit) as ended:
        app.main()
    return int(ended.value.code or 0)


def run_in(folder: Path, **settings: str) -> Path:
    wanted = {"data": "digits", "budget": "10cpu-minutes", **settings}
    with create_run(folder, RunSettings(**wanted)) as run:  # type: ignore[arg-type]
        run.record.set_meta("plan", None)
    return folder


def test_every_option_is_decided() -> None:
    named = {
        "--" + (name.rstrip("_").replace("_", "-"))
        for name in inspect.signature(run_commands.run).parameters
        if name != "context"
    }
    # A file of options is refused for what it holds.
    assert named == {*OPTIONS, *TAKEN, "--out", "--resume", "--config"}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_that_resuming_ignores_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
) -> None:
    words = ("run", "--resume", "--out", str(tmp_path / "nowhere"), option, OPTIONS[option])

    assert command(monkeypatch, *words) == 2

    printed = capsys.readouterr().err
    assert f"leave {option} out with --resume" in printed
    assert len(printed.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--budget", "--sampler"])
def test_an_option_that_resuming_takes_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    run = run_in(tmp_path / "run")
    monkeypatch.setattr("search.run.run_search", lambda *_, **__: "SIGINT")
    value = {"--budget": "20cpu-minutes", "--sampler": "nsga2"}[option]

    assert command(monkeypatch, "run", "--resume", "--out", str(run), option, value) == 130

    with open_run(run) as opened:
        assert getattr(opened.settings, option.removeprefix("--")) == value
        assert opened.settings.seed == 0


def test_without_options_a_run_keeps_all_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_in(tmp_path / "run", sampler="nsga3")
    with open_run(run) as opened:
        before = opened.settings
    monkeypatch.setattr("search.run.run_search", lambda *_, **__: "SIGINT")

    assert command(monkeypatch, "run", "--resume", "--out", str(run)) == 130

    with open_run(run) as opened:
        assert opened.settings == before


def test_the_names_of_samplers_are_those_that_there_are() -> None:
    assert SAMPLERS == KNOWN_SAMPLERS


WRONG = [
    (("--sampler", "guidd"), "Unknown sampler 'guidd'. Known: guided, nsga2"),
    (("--sampler", ""), "Unknown sampler"),
    (("--sampler", "Guided"), "Unknown sampler 'Guided'"),
    (("--space", "digit"), "Unknown space 'digit'"),
    (("--space", "gone.yaml"), "no space file 'gone.yaml'"),
    (("--recipe", "digit"), "Unknown recipe 'digit'"),
    (("--recipe", "gone.yaml"), "no recipe file 'gone.yaml'"),
    (("--recipe", "digits:huge"), "has no size 'huge'"),
    (("--strategy", "supernett"), "Unknown strategy"),
    (("--supernet-strategy", "faire"), "Unknown supernet strategy"),
    (("--projections", "none"), "Known: unshared, shared"),
    (("--kernels", "none"), "Known: centred, transformed"),
    (("--objectives", "top1"), "at least one of"),
    (("--objectives", "top1,top1"), "at least one of"),
    (("--share", "supernet=2"), "each from 0 to below 1"),
    (("--share", "supernett=.2"), "shares are given to"),
    (("--seed", "-1"), "greater than or equal to 0, got '-1'"),
    (("--seed", str(2**32)), "less than or equal to 4294967295"),
    (("--img-size", "7"), ""),
    (("--img-size", "0"), ""),
    (("--img-size", "-8"), ""),
    (("--max-macs", "0"), ""),
    (("--max-macs", "-5G"), ""),
    (("--max-latency", "nan", "--objectives", "top1,latency"), "is a positive number"),
    (("--max-latency", "-1", "--objectives", "top1,latency"), "is a positive number"),
    (("--max-memory", "inf", "--objectives", "top1,memory"), "is a positive number"),
    (("--storage", "nothing://here"), "cannot be used"),
    (("--record", "sqlite://here"), "An address is like"),
    (("--ray-address", "127.0.0.1:9"), "No cluster answers at 127.0.0.1:9"),
    (("--budget", "1gpu-minute"), "no GPU"),
]


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_what_a_run_would_look_up_later_is_refused_before_images_are_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("images are read")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("supernet.data.image_data.open_source", read)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    budget = () if "--budget" in words else ("--budget", "1cpu-minute")

    assert command(monkeypatch, "run", *budget, "--out", "run", *words) == 2

    printed = capsys.readouterr().err
    assert message in printed
    assert sum(line.startswith("Error: ") for line in printed.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_budget_to_resume_with_is_checked_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_in(tmp_path / "run")
    for words, message in (
        (("--budget", "5parsecs"), "Cannot read the budget"),
        (("--budget", "5cpu-minutes"), "keeps its budget or gets a larger one"),
        (("--budget", "1gpu-day"), "of the same unit"),
        (("--sampler", "guidd"), "Unknown sampler"),
    ):
        assert command(monkeypatch, "run", "--resume", "--out", str(run), *words) == 2
        assert message in capsys.readouterr().err
        with open_run(run) as opened:
            assert opened.settings.budget == "10cpu-minutes"
            assert opened.settings.sampler == "guided"


@pytest.mark.parametrize("field", ["retrain_recipe", "trial_recipe", "supernet_recipe"])
def test_a_recipe_of_ones_own_is_kept_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    monkeypatch.chdir(tmp_path)
    text = config_path("recipes", "digits").read_text()
    mine = yaml.safe_load(text) | {"name": "mine", "sizes": {"small": {"epochs": 5}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine))
    run_in(tmp_path / "run", **{field: "mine.yaml"})
    run_in(tmp_path / "sized", **{field: "mine.yaml:small"})
    whole, small = load_recipe("mine.yaml"), load_recipe("mine.yaml:small")
    assert (whole.epochs, small.epochs) != (5, 5)

    (tmp_path / "mine.yaml").write_text(text)  # changed meanwhile
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    (tmp_path / "run").rename(tmp_path / "moved")

    for folder, recipe in ((tmp_path / "moved", whole), (tmp_path / "sized", small)):
        with open_run(folder) as opened:
            assert load_recipe(getattr(opened.settings, field)) == recipe
        with resume_run(folder, "20cpu-minutes") as opened:
            assert load_recipe(getattr(opened.settings, field)) == recipe
            stored = opened.record.get_meta("settings")
            assert str(tmp_path) not in stored[field]  # the folder may move again


def test_a_shipped_recipe_stays_a_name(tmp_path: Path) -> None:
    run_in(tmp_path / "run")
    with open_run(tmp_path / "run") as opened:
        assert opened.settings.retrain_recipe == "digits"
    assert not list((tmp_path / "run").glob("*_recipe.yaml"))
