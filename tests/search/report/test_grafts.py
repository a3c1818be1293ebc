"""The section of a graft: the teacher, what was replaced, what was lost and saved, the picture."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from search.cli.app import app
from search.front import FrontQuery, judged_by
from search.grafting import KL, SUM
from search.report import export_front, print_closing, write_report
from search.report.closing import story_of
from search.report.findings import trust_content
from search.report.grafts import _grid, attention_line, blocks_png, graft_content
from search.results import SUPERNET, front
from search.run_folder import open_run
from search.terminal import PlainConsole
from search.trust import TrustReport
from searchspace.cost import count
from searchspace.graft_space import replacements
from tests.search.trust.test_graft_choice import estimator
from tests.tiny_graft import TEACHER, made_up_score, write_graft


@pytest.fixture(scope="module")
def graft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_graft(tmp_path_factory.mktemp("graft") / "run")


def test_members_say_what_was_replaced_lost_and_saved(graft: Path) -> None:
    with open_run(graft) as run:
        trials = run.record.trials()
        content = graft_content(story_of(run, trials), front(trials, objectives=("top1", "macs")))
    assert content is not None
    for number, replaced, lost, saved, kl in content["rows"]:
        (trial,) = [one for one in trials if one.architecture_id == number]
        found = replacements(TEACHER, trial.architecture)
        if not found:
            assert (replaced, lost, saved, kl) == ("nothing: the teacher", "0.0", "0 %", "0.000")
            continue
        assert replaced.startswith(f"{found[0].stage}.{found[0].block} ")
        assert float(lost) == pytest.approx(90.0 - trial.measured.top1, abs=0.05)
        share = 1 - count(trial.architecture).macs / count(TEACHER).macs
        assert saved == f"{100 * share:.0f} %"
        assert float(kl) == pytest.approx(sum(map(made_up_score, found)), abs=5e-4)


def test_sums_that_rank_better_are_no_word_against_what_was_assembled() -> None:
    """A run with a supernet warns where size ranks as well as it does; a graft has its verdict."""
    taus = {SUPERNET: 0.6, SUM: 0.8, KL: 0.7, "macs": 0.1}
    found = tuple(estimator(name, tau) for name, tau in taus.items())
    report = TrustReport(points=(), estimators=found, chosen=SUM, verdict="by the sum")
    content = trust_content(report)
    assert content is not None
    assert (content["verdict"], content["warning"]) == ("by the sum", "")


def test_blocks_that_need_attention_are_those_without_a_cheap_replacement(
    graft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made up: the best mixer without attention costs 0.1 in block 0.0, 0.2 in 0.1, 0.3 in 1.0."""
    with open_run(graft) as run:
        story = story_of(run, run.record.trials())
    assert story is not None
    monkeypatch.setattr("search.report.grafts.SMALL_KL", 0.25)
    said = attention_line(story)
    assert "at a KL below 0.25: 0.0, 0.1." in said
    assert "need it: 1.0." in said


def test_the_picture_is_drawn(graft: Path, tmp_path: Path) -> None:
    with open_run(graft) as run:
        story = story_of(run, run.record.trials())
    assert story is not None
    assert _grid(story)[1][-4:] == ["MLP 75 %", "MLP 50 %", "MLP 25 %", "no MLP"]
    (tmp_path / "blocks.png").write_bytes(blocks_png(story))
    with Image.open(tmp_path / "blocks.png") as picture:
        assert min(picture.size) > 300


def test_the_page_has_the_section_and_others_have_none(graft: Path) -> None:
    with open_run(graft, write=True) as run:
        assert write_report(run, PlainConsole(stderr=True))
        page = run.report.read_text("utf-8")
    assert "What was replaced" in page
    assert "cheaper or faster" in page
    # Its networks of one mixer are the teacher and what is narrower: they are no rivals of mixes.
    assert "Did mixing pay?" not in page
    assert graft_content(None, []) is None


def test_what_to_type_next_names_another_network_than_the_teacher(graft: Path) -> None:
    shown = StringIO()
    with open_run(graft) as run:
        trials = run.record.trials()
        members = front(trials, objectives=("top1", "macs"))
        # The teacher, trained on, is the most accurate of the front; it is there already.
        assert max(members, key=lambda one: one.top1).key == TEACHER.key
        assert print_closing(run, Console(file=shown, width=200))
    assert "ixing " not in shown.getvalue()
    named = int(shown.getvalue().rpartition("--arch ")[2])
    assert named in {one.id for one in members if one.key != TEACHER.key}


def test_the_teacher_is_not_worth_a_retraining(graft: Path) -> None:
    with open_run(graft) as run:
        members = front(run.record.trials(), objectives=("top1", "macs"))
        teacher = next(one.id for one in members if one.key == TEACHER.key)
    words = ["select", str(graft), "--top", str(len(members)), "--json"]
    chosen = json.loads(CliRunner().invoke(app, words, catch_exceptions=False).stdout)
    assert chosen[1]["reason"] == "the most accurate, but for the teacher"
    assert teacher not in {one["id"] for one in chosen}


def test_a_graft_has_no_inherited_weights(graft: Path) -> None:
    with open_run(graft) as run:
        export_front(run, found=judged_by(run, FrontQuery()), html=run.report, png=None)
        page = run.report.read_text("utf-8")
    body = page[page.index("<body>") : page.index('<script type="application/json"')]
    assert "<b>supernet</b> (as assembled)" in body
    assert "inherited weights" not in body
