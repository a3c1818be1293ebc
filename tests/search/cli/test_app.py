"""The command line's contract: help, listings, JSON, and one clear message for wrong input."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search.cli.app import main

GOLDEN = Path(__file__).parents[2] / "golden"
COMMANDS = (
    "run",
    "plan",
    "status",
    "pareto",
    "select",
    "compare",
    "latency",
    "show",
    "transfer",
    "predict",
    "retrain",
    "export",
    "eval",
    "presets",
    "spaces",
    "recipes",
    "bench",
    "doctor",
    "ladder",
)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def search(*words: str) -> int:
    """Run the command line in this process; return its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["search", *words])
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_as_recorded(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Rewrite with ``UPDATE_GOLDEN=1 pytest tests/search/cli/test_app.py``."""
    import os

    assert search(*command.split(), "--help") == 0
    printed = capsys.readouterr().out
    path = GOLDEN / f"help{'-' * bool(command)}{command}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(printed)
    assert printed == path.read_text()


def test_the_epochs_of_a_recipe_are_those_that_it_trains(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert search("recipes") == 0
    printed = capsys.readouterr().out
    listed = dict(re.findall(r"^. (\w+) +. (\d+) +.", printed, re.MULTILINE))
    assert listed["elsa_swin_310e"] == listed["volo_310e"] == "310"
    assert listed["swin_300e"] == "300"


@pytest.mark.parametrize("command", ["presets", "spaces", "recipes"])
def test_listings_name_what_there_is(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert search(command) == 0
    expected = {"presets": "elsa_swin_t", "spaces": "micro", "recipes": "quick"}
    assert expected[command] in capsys.readouterr().out


def test_show_prints_the_published_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert search("show", "elsa_swin_t", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert {"key", "params", "macs", "img_size", "stages"} <= set(shown)
    assert round(shown["params"] / 1e6, 1) == 29.1
    assert round(shown["macs"] / 1e9, 1) == 4.8


def test_shown_json_is_a_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search("show", "swin_t", "--json")
    first = capsys.readouterr().out
    (tmp_path / "mine.json").write_text(first)
    assert search("show", "mine.json", "--json") == 0
    assert json.loads(capsys.readouterr().out)["key"] == json.loads(first)["key"]


def test_another_image_size_changes_the_cost(capsys: pytest.CaptureFixture[str]) -> None:
    search("show", "dwconv_t", "--json")
    small = json.loads(capsys.readouterr().out)
    search("show", "dwconv_t", "--img-size", "384", "--json")
    large = json.loads(capsys.readouterr().out)
    assert large["params"] == small["params"]
    assert large["macs"] > 2 * small["macs"]


def write_images(folder: Path, *, classes: tuple[str, ...] = ("a", "b"), number: int = 10) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for index in range(number):
                pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return folder


def corrupt(folder: Path) -> Path:
    (folder / "train" / "a" / "3.png").write_bytes(b"not an image")
    return folder


def empty(folder: Path) -> Path:
    (folder / "train").mkdir(parents=True)
    return folder


SPACE = """
name: mine
img_size: 32
patch_size: 2
stages: [{dim: 8, depth: 1}]
mixers:
  depthwise_conv: {kernel_size: [3, 5]}
"""

BUDGET = ("--budget", "1cpu-minute")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--budget", "5parsecs"), "Cannot read the budget '5parsecs'. Write a positive amount"),
        (("--budget", "0cpu-minutes"), "Write a positive amount"),
        ((), "A run needs a budget: add e.g. --budget"),
        (("--resume",), "--resume needs the folder of the run"),
        (("--resume", "--out", "nowhere"), "nowhere is not the folder of a run"),
        ((*BUDGET, "--space", "macro"), "Unknown space 'macro'"),
        ((*BUDGET, "--data", "nothing/here"), "nothing/here"),
        ((*BUDGET, "--objectives", "top1,speed"), "The objectives are top1 and at least one of"),
        ((*BUDGET, "--max-macs", "many"), "many"),
        ((*BUDGET, "--strategy", "best"), "Unknown strategy 'best'"),
        ((*BUDGET, "--supernet-strategy", "fair", "--max-params", "19.5K"), "no fair cycle"),
        ((*BUDGET, "--projections", "some"), "Unknown projections 'some'. Known: unshared, shared"),
        ((*BUDGET, "--kernels", "round"), "Unknown kernels 'round'. Known: centred, transformed"),
        (
            (*BUDGET, "--max-latency", "5"),
            "Add it to the objectives, e.g. --objectives top1,macs,l",
        ),
        (
            (*BUDGET, "--strategy", "luck"),
            "Unknown strategy 'luck'. Known: supernet, proxy, zero-c",
        ),
        ((*BUDGET, "--strategy", "fair"), "Write --supernet-strategy fair"),
        ((*BUDGET, "--strategy", "proxy", "--share", "trust=.1"), "shares are given to search"),
        ((*BUDGET, "--recipe", "cake"), "Unknown recipe 'cake'"),
        ((*BUDGET, "--space", "unknown_key.yaml"), "colour"),
        ((*BUDGET, "--space", "impossible.yaml"), "elsa"),
        ((*BUDGET, "--data", "empty"), "empty"),
        ((*BUDGET, "--data", "corrupt"), "3.png"),
        ((*BUDGET, "--data", "one_class"), "class"),
    ],
)
def test_wrong_input_gives_one_message_and_leaves_nothing(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "unknown_key.yaml").write_text(SPACE + "colour: red\n")
    (tmp_path / "impossible.yaml").write_text(SPACE + "forbid: [{mixer: elsa}]\n")
    empty(tmp_path / "empty")
    corrupt(write_images(tmp_path / "corrupt"))
    write_images(tmp_path / "one_class", classes=("a",))
    before = sorted(tmp_path.rglob("*"))
    out = () if "--resume" in words else ("--out", "run")
    assert search("run", *words, *out) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith("Error: ")
    assert len(printed.err.strip().splitlines()) == 1
    assert "Traceback" not in printed.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("show", "swin_q"), "swin_q"),
        (("show", "run:1"), "run is not the folder of a run"),
        (("status", "."), "not the folder of a run"),
        (("pareto", "nowhere"), "not the folder of a run"),
        (("retrain", ".", "--arch", "1"), "not the folder of a run"),
    ],
)
def test_unknown_targets_get_one_message(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(*words) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.strip().splitlines()) == 1


TINY = """
name: tiny
img_size: 8
patch_size: 2
mlp_ratio: 1
stages: [{dim: 8, depth: 1}]
mixers:
  depthwise_conv: {kernel_size: [3, 5]}
  elsa: {kernel_size: 3, num_heads: [1, 2]}
"""


def test_a_plan_says_what_a_budget_buys_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    before = sorted(tmp_path.rglob("*"))
    assert search("plan", "--budget", "2cpu-hours", "--space", "tiny.yaml") == 0
    printed = capsys.readouterr().out
    for phase in ("supernet", "trust", "search", "promote", "finish", "2 cpu-hours"):
        assert phase in printed
    for strategy, lacks in (("proxy", "trust"), ("zero-cost", "shared weights")):
        words = ("--space", "tiny.yaml", "--strategy", strategy)
        assert search("plan", "--budget", "2cpu-hours", *words) == 0
        printed = capsys.readouterr().out
        assert f"strategy {strategy}" in printed
        assert lacks not in printed
    assert search("plan", "--budget", "0.001cpu-seconds", "--space", "tiny.yaml") == 2
    assert "too small" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_in_use_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious.txt").write_text("mine")
    assert search("run", *BUDGET, "--out", "run") == 2
    assert "--resume" in capsys.readouterr().err
    assert (tmp_path / "run" / "precious.txt").read_text() == "mine"
