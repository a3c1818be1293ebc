"""Options in a file: read like the command line, which wins; kept with the run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from configs import config_names
from search.cli.config_file import keep_options
from search.run_folder import settings as names
from search.run_folder.folder import OPTIONS
from search.run_folder.settings import RunSettings
from tests.search.cli.test_app import search
from tests.tiny_graft import write_graft


class Begun(Exception):
    """A run would begin here."""


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Path, RunSettings]]:
    """Collect what runs would be begun with, instead of beginning them."""
    found: list[tuple[Path, RunSettings]] = []

    def create(folder: Path, settings: RunSettings, **more: object) -> None:
        found.append((folder, settings))
        raise Begun

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("search.run_folder.create_run", create)
    monkeypatch.setattr("search.cluster.check_devices", lambda *words: None)
    return found


def begin(*words: str) -> None:
    with pytest.raises(Begun):
        search("run", *words)


@pytest.mark.parametrize("name", config_names("searches"))
def test_shipped_files_are_sound(name: str, begun: list[tuple[Path, RunSettings]]) -> None:
    begin("--config", name)

    assert begun[0][1].load_space().first()


def test_the_command_line_wins(begun: list[tuple[Path, RunSettings]]) -> None:
    Path("mine.yaml").write_text(
        "budget: 2cpu-minutes\nseed: 3\nshare: [supernet=.5]\nout: here\nmax_macs: 5M\n"
    )
    begin("--config", "mine.yaml", "--seed", "7")

    folder, settings = begun[0]
    assert folder == Path("here")
    assert (settings.budget, settings.seed) == ("2cpu-minutes", 7)
    assert settings.shares == {"supernet": 0.5}
    assert settings.limits == {"macs": 5e6}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bugdet: 1cpu-minute\n", "Did you mean 'budget'?"),
        ("seed: 1.5\n", "seed"),
        ("seed: true\n", "seed"),
        ("seed: [1]\n", "one value"),
        ("share: supernet=.5\n", "a list"),
        ("data: {a: b}\n", "data"),
        ("data: null\n", "data"),
        ("resume: true\n", "unknown option 'resume'"),
        ("config: digits\n", "unknown option 'config'"),
        ("- budget\n", "must map options to values"),
        ("budget: 1cpu-minute\nbudget: 2cpu-minutes\n", "twice"),
        ("img_size: 0\n", "img_size"),
    ],
)
def test_a_wrong_file_is_named(
    text: str,
    message: str,
    begun: list[tuple[Path, RunSettings]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("mine.yaml").write_text(text)

    assert search("run", "--budget", "1cpu-minute", "--config", "mine.yaml") == 2
    error = capsys.readouterr().err

    assert error.startswith("Error: mine.yaml")
    assert message in error
    assert begun == []


def test_what_a_run_keeps_begins_the_same_run(begun: list[tuple[Path, RunSettings]]) -> None:
    settings = RunSettings(
        data="digits",
        budget="3cpu-minutes",
        sampler="tpe",
        objectives=("top1", "macs", "latency_ms"),
        shares={"supernet": 0.25},
        latency_of="onnxruntime",
        precision="int8",
        batch=4,
        limits={"macs": 2.5e6, "latency_ms": 4.0},
        img_size=16,
        seed=5,
        command="x",
    )
    keep_options(Path(), settings)
    assert set(yaml.safe_load(Path(OPTIONS).read_text())) >= {"strategy", "kernels", "recipe"}
    begin("--config", OPTIONS)

    again = begun[0][1].to_dict()
    again["command"] = "x"
    assert again == settings.to_dict()


def test_a_graft_can_be_begun_again_from_its_file(begun: list[tuple[Path, RunSettings]]) -> None:
    folder = write_graft(Path("graft"))
    (folder / "teacher" / "teacher.json").unlink()  # now it is as `search import` leaves one
    begin("--from", "graft/teacher", "--budget", "1cpu-minute", "--out", "one")
    settings = begun[0][1]
    assert (settings.strategy, settings.space, settings.img_size) == ("graft", "usual", 32)
    assert settings.retrain_recipe == "heal"
    keep_options(Path(), settings)
    begin("--config", OPTIONS, "--out", "two")

    again = begun[1][1].to_dict()
    # Each time the network is laid in a new place, from which the run copies it.
    again |= {"command": settings.command, "teacher": settings.teacher}
    assert again == settings.to_dict()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--strategy", "proxy"), "has its own strategy, got --strategy proxy"),
        (("--img-size", "64"), "keeps the size of its network, 32 pixels, got --img-size 64"),
        (("--task", "semantic", "--data", "x"), "A graft replaces blocks of a trained classifier"),
    ],
)
def test_what_a_graft_has_no_use_for_is_refused(
    words: tuple[str, ...],
    said: str,
    begun: list[tuple[Path, RunSettings]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (write_graft(Path("graft")) / "teacher" / "teacher.json").unlink()
    code = search("run", "--from", "graft/teacher", "--budget", "1cpu-minute", *words)
    assert code == 2
    assert said in capsys.readouterr().err
    assert not begun


def test_the_names_of_settings_are_those_of_the_rooms_that_mean_them() -> None:
    from search.sampling.asking import SAMPLERS
    from supernet.mixers.weight_sharing import KERNELS, PROJECTIONS
    from supernet.shared_weights.strategies import STRATEGIES

    assert set(names.SAMPLERS) == set(SAMPLERS)
    assert set(names.SUPERNET_STRATEGIES) == set(STRATEGIES)
    assert (names.PROJECTIONS, names.KERNELS) == (PROJECTIONS, KERNELS)
