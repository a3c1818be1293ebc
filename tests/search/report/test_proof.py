"""What a report says about itself: whether mixing paid, and whether the order lasts."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from search.front import FrontQuery, judged_by
from search.record import Trial
from search.record.record import Record
from search.report.closing import export_front, print_closing
from search.results import trained_alone
from search.run_folder.folder import RunFolder, open_run
from search.run_folder.state import RunState
from searchspace.architecture import Architecture, Stage
from searchspace.cost import count
from searchspace.mixers import DepthwiseConv
from tests.tiny_run import write_run
from tests.tiny_trials import network, trial

RECIPE = 40
# Of 200 images after 3, 10 and 20 epochs; networks 1 to 6 are mixes, 50 has one mixer.
CURVES = {
    1: (60, 80, 90),
    2: (70, 95, 100),
    3: (75, 105, 120),
    4: (90, 120, 125),
    5: (95, 135, 150),
    6: (100, 150, 160),
    50: (60, 90, 95),
}


def single() -> Architecture:
    stages = (
        Stage(dim=24, mixers=(DepthwiseConv(kernel_size=3),) * 2),
        Stage(dim=16, mixers=(DepthwiseConv(kernel_size=3),)),
    )
    return Architecture(img_size=16, patch_size=2, num_classes=10, stages=stages)


def trials() -> list[Trial]:
    found = []
    for number, ends in CURVES.items():
        architecture = single() if number == 50 else network(number)
        cost = count(architecture)
        for epochs, correct in zip((3, 10, 20), ends, strict=True):
            origin = "horizon" if epochs == 20 else "promote"
            one = trial(number % 50, correct=correct, fidelity=trained_alone(epochs), origin=origin)
            found.append(
                replace(
                    one,
                    architecture=architecture,
                    key=architecture.key,
                    architecture_id=number,
                    params=cost.params,
                    macs=cost.macs,
                )
            )
    return found


def page_of(run: RunFolder) -> str:
    """Write the report and the picture; return the page."""
    found = judged_by(run, FrontQuery())
    export_front(run, found=found, html=run.report, png=run.folder / "front.png")
    return run.report.read_text(encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = write_run(tmp_path / "run", trials())
    with Record.open(folder / "record.db") as record:
        state = RunState(record)
        assert state.plan is not None
        state.plan = replace(state.plan, recipe_epochs=RECIPE)
    return folder


def test_the_report_says_whether_the_order_lasts_and_whether_mixing_paid(run: Path) -> None:
    with open_run(run) as opened:
        page = page_of(opened)
    assert "<h2>Does the order last?</h2>" in page
    assert "not chosen by shorter trainings" in page
    assert f"{RECIPE}" in page
    assert "that were held out" in page
    assert "The order of this front is likely to" in page
    assert "<h2>Did mixing pay?</h2>" in page
    assert "in full %" in page


def test_the_closing_says_it_too(run: Path) -> None:
    out = io.StringIO()
    with open_run(run) as opened:
        assert print_closing(opened, Console(file=out, width=200))
    said = " ".join(out.getvalue().split())
    assert "The order after 10 epochs agrees with that after 20 by Kendall tau" in said
    assert "beside the best network of one kind of mixer" in said
    assert "in full: forecast after the recipe's 40 epochs" in said


def test_a_run_of_one_length_says_nothing_of_others(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [one for one in trials() if one.fidelity == "train-10e"])
    with open_run(folder) as opened:
        page = page_of(opened)
    assert "Does the order last?" not in page
    assert "in full %" not in page
    assert "<h2>Did mixing pay?</h2>" in page
