"""A run that was taught says so wherever its accuracies stand, and a graft's teacher is a star."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search.front import compare_json, compare_table, load_compared
from search.record import Measured
from search.record.record import Record
from search.report import print_closing, write_report
from search.run_folder import open_run
from search.terminal import PlainConsole, status_table
from tests.browser import Page, browse, find_browser
from tests.tiny_graft import TEACHER, write_graft
from tests.tiny_run import write_run

TEACHER_NAME = "runs/[red]large:4"
BROWSER = find_browser()
FRONT = "document.getElementById('front-chart')"


def write_taught(folder: Path) -> Path:
    write_run(folder)
    with Record.open(folder / "record.db") as record:
        settings = record.get_meta("settings")
        record.set_meta("settings", {**settings, "taught_by": TEACHER_NAME, "mentor": "0" * 64})
    return folder


@pytest.fixture(autouse=True)
def no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    """These runs have no space to copy for Optuna."""
    monkeypatch.setattr("search.report.closing.update_mirror", lambda run: None)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("taught")
    return write_run(folder / "plain"), write_taught(folder / "taught")


def text_of(table: Any) -> str:
    console = PlainConsole()
    console.width = 400
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_status_report_and_last_words_name_the_teacher(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, is_taught in zip(runs, (False, True), strict=True):
        capsys.readouterr()
        with open_run(folder, write=True) as run:
            status = text_of(status_table(run))
            assert write_report(run, PlainConsole(stderr=True))
            assert print_closing(run, PlainConsole())
            page = run.report.read_text("utf-8")
        last = capsys.readouterr().out
        for text in (status, last, page):
            assert (TEACHER_NAME in text) == is_taught
        assert ("All trainings of this run learned from" in page) == is_taught
        assert ("<dt>Teacher</dt>" in page) == is_taught
        # What to type next learns from it, too.
        assert (f"--teacher '{TEACHER_NAME}'" in last) == is_taught


def test_comparing_with_a_taught_run_says_so(runs: tuple[Path, Path]) -> None:
    plain, taught = (load_compared(f"{folder}:7") for folder in runs)
    said = text_of(compare_table([plain, taught]))
    assert re.search(rf"taught by\W+-\W+{re.escape(TEACHER_NAME)}", said)
    assert "accuracies with and without a teacher are no comparison" in " ".join(said.split())
    assert [one["taught_by"] for one in compare_json([plain, taught])] == [None, TEACHER_NAME]
    assert "teacher" not in text_of(compare_table([plain, plain]))
    alike = text_of(compare_table([taught, taught]))
    assert "taught by" in alike
    assert "no comparison" not in alike


@pytest.fixture(scope="module")
def graft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graft whose teacher was judged as it is, and not trained on."""
    folder = write_graft(tmp_path_factory.mktemp("graft") / "run")
    with Record.open(folder / "record.db") as record:
        for trial in record.trials()[1:4]:
            number = record.add_trial(
                trial.architecture_id, fidelity="train-2e", seed=0, origin="promote"
            )
            attempt = record.start_attempt("promote", devices=1, trial_id=number)
            measured = Measured(top1=80.0, correct=160.0, total=200.0)
            record.finish_attempt(attempt, outcome="done", measured=measured)
    with open_run(folder, write=True) as run:
        assert write_report(run, PlainConsole(stderr=True))
    return folder


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'id="report-data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    read: dict[str, Any] = json.loads(found[1])
    return read


def test_the_page_knows_where_the_teacher_is(graft: Path, runs: tuple[Path, Path]) -> None:
    with open_run(graft) as run:
        (own,) = [t for t in run.record.trials() if t.key == TEACHER.key]
        data = data_of(run.report.read_text("utf-8"))
    assert data["teacher"] == {
        "id": own.architecture_id,
        "as_it_is": {"top1": 90.0, "macs": own.macs, "params": own.params},
    }
    with open_run(runs[0], write=True) as run:
        assert write_report(run, PlainConsole(stderr=True))
        assert data_of(run.report.read_text("utf-8"))["teacher"] is None


@pytest.fixture(scope="module")
def page(graft: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if BROWSER is None:
        pytest.skip("no Chromium on the PATH; e.g. apt install chromium")
    with browse(BROWSER, tmp_path_factory.mktemp("profile")) as page:
        page.open(graft / "report.html", width=1100, height=900)
        page.settle()
        yield page


def star(page: Page) -> dict[str, Any]:
    found: dict[str, Any] = page.evaluate(
        f"""(() => {{
          const t = {FRONT}.data.find((t) => t.marker?.symbol === "star");
          return {{ name: t.name, x: Array.from(t.x), y: Array.from(t.y), shown: t.showlegend }};
        }})()"""
    )
    return found


def choose(page: Page, element: str, value: str) -> None:
    page.evaluate(
        f"(() => {{ const one = document.getElementById('{element}'); "
        f"one.selectedIndex = [...one.options].findIndex((o) => o.value === '{value}' || "
        f"o.textContent.includes('{value}')); "
        "one.dispatchEvent(new Event('change')); return true; })()"
    )
    page.settle()


def test_the_teacher_is_a_star_on_the_chart(page: Page, graft: Path) -> None:
    with open_run(graft) as run:
        (own,) = [t for t in run.record.trials() if t.key == TEACHER.key]
    # It was not trained on at the fidelity of the front.
    known = {"x": [own.macs], "y": [90.0], "shown": True}
    assert star(page) == {"name": "the teacher, as it is", **known}
    choose(page, "x-axis", "params")
    assert star(page)["x"] == [own.params]
    choose(page, "x-axis", "macs")
    page.evaluate(
        "(() => { const one = document.getElementById('view'); one.selectedIndex = "
        "data.views.findIndex((v) => v.fidelity === 'supernet'); "
        "one.dispatchEvent(new Event('change')); return true; })()"
    )
    page.settle()
    assert star(page) == {"name": "the teacher", **known}
    assert page.problems == []
