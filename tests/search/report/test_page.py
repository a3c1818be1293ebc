"""The report is one safe file that works offline and shows what the trials say."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from decimal import ROUND_HALF_UP, Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from search.budget import parse_budget
from search.record.record import Trial
from search.report.page import ReportData, best_in_plane, front_png, write_report
from search.report.payload import hypervolume_payload, spent_at, view_payload
from search.results.candidates import candidates, front
from search.terminal import format_chance, format_count, format_interval
from search.trust.ranking import trust_points, trust_report
from tests.tiny_trials import trial

SCRIPTS = Path(__file__).parents[3] / "search" / "report" / "assets"
HOSTILE = "</script><img src=x onerror=alert(1)>\"'&<b>"


class Page(HTMLParser):
    """Collects the tags, the texts and the embedded data of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._script: str | None = None
        self.data: Any = None
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._script = dict(attrs).get("id") if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        self._script = None

    def handle_data(self, data: str) -> None:
        if self._script == "report-data":
            self.data = json.loads(data)
        elif self.tags and self.tags[-1][0] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        """What is on the page before its script runs."""
        return " ".join(" ".join(self.texts).split())

    def ids(self) -> set[str | None]:
        """List the ids of elements."""
        return {attributes.get("id") for _, attributes in self.tags}


def make_trials() -> tuple[Trial, ...]:
    numbers = range(1, 8)
    return (
        *(
            trial(n, correct=100 + 5 * n, fidelity="supernet", origin="search", finished=n)
            for n in numbers
        ),
        *(trial(n, correct=120 + 9 * n, origin="trust", finished=10.0 + n) for n in numbers),
        trial(3, correct=196, fidelity="retrain-micro-9e", origin="retrain", finished=30),
    )


def make_report(trials: tuple[Trial, ...]) -> ReportData:
    return ReportData(
        name="digits",
        run="runs/digits",
        command="search run --budget 10cpu-minutes",
        space="micro",
        data="digits",
        seed=5,
        objectives=("top1", "macs"),
        budget=parse_budget("10cpu-minutes"),
        spent_seconds=594.0,
        spent_by_phase={"supernet": 300.0, "trust": 294.0},
        trials=trials,
        charges=((0.0, 20.0, 2.0),),
        trust=trust_report(trust_points(trials), rng=np.random.default_rng(0)),
        notes=("A check found nothing.",),
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, make_report(make_trials()))
    return Page(path)


def test_nothing_in_the_report_comes_from_elsewhere(page: Page) -> None:
    loading = [
        attributes
        for tag, attributes in page.tags
        if tag in ("link", "iframe", "img", "object") or "src" in attributes
    ]

    assert loading == []
    policy = next(a["content"] for _, a in page.tags if "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_plotly_is_in_the_file_once(page: Page) -> None:
    assert len(re.findall(r"^\* plotly\.js v|^ ?\* ?plotly\.js v", page.source, re.M)) == 1


def test_the_members_stand_in_the_text_with_their_command(page: Page) -> None:
    members = front(make_trials(), objectives=("top1", "macs"))

    assert len(members) == 7
    for member in members:
        assert f"search retrain runs/digits --arch {member.id}" in page.text


def test_the_headline_says_what_was_asked_and_spent(page: Page) -> None:
    for fact in (
        "micro",
        "10 cpu-minutes",
        "9.9 cpu-minutes (99.0%)",
        "search run --budget 10cpu-minutes",
        "A check found nothing.",
    ):
        assert fact in page.text


def test_the_front_comes_first(page: Page) -> None:
    places = [page.source.index(f'id="{name}"') for name in ("front-chart", "limit")]
    facts = page.source.index('class="facts"')

    assert [*places, facts] == sorted([*places, facts])
    assert page.text.index("The front") < page.text.index("Which network to take?")


def test_fidelities_are_views_of_their_own(page: Page) -> None:
    views = page.data["views"]

    assert [view["fidelity"] for view in views] == ["train-3e", "supernet"]
    assert views[0]["top1"] == [64.5, 69.0, 73.5, 78.0, 82.5, 87.0, 91.5]
    assert views[1]["top1"] == [52.5, 55.0, 57.5, 60.0, 62.5, 65.0, 67.5]


def test_the_page_opens_with_the_front_that_the_run_shows(tmp_path: Path) -> None:
    """Two networks of the trust set, trained longer, are no answer where seven were promoted."""
    longer = [trial(n, correct=150, fidelity="train-9e", origin="trust") for n in (1, 2)]
    promoted = [trial(n, correct=100 + 9 * n, origin="promote") for n in range(1, 8)]
    write_report(tmp_path / "report.html", make_report((*longer, *promoted)))

    page = Page(tmp_path / "report.html")

    assert [view["fidelity"] for view in page.data["views"]] == ["train-3e", "train-9e"]
    assert "7 networks were judged at train-3e (trained alone for 3 epochs). 7 of them" in page.text
    assert "The front is that of the networks judged at train-3e: too few" in page.text
    # The limits are answered by the same networks.
    assert len(page.data["best"]["macs"]["limit"]) == 7
    assert "search retrain runs/digits --arch 7" in page.text


def test_a_front_of_one_is_no_choice_between_two(tmp_path: Path) -> None:
    one = (trial(1, correct=150, fidelity="supernet"), trial(2, correct=90, fidelity="supernet"))
    write_report(tmp_path / "report.html", make_report(one))

    text = Page(tmp_path / "report.html").text

    assert "None is on the front by top-1 accuracy and MACs but network 1 (75.0" in text
    assert "the smallest is" not in text
    assert "0 more" not in text


def test_retrained_accuracy_stands_beside_the_searched_one(page: Page) -> None:
    (row,) = page.data["retrained"]

    assert (row["id"], row["recipe"]) == (3, "micro-9e")
    assert (row["searched"]["top1"], row["final"]["top1"]) == (73.5, 98.0)
    assert "98.0 ±" in page.text


def test_each_limit_has_its_answer_and_no_other_certainty_than_the_front(page: Page) -> None:
    view, answers = page.data["views"][0], page.data["best"]["macs"]
    macs = [page.data["networks"]["macs"][row] for row in view["rows"]]

    # Every larger network of these is more accurate: each is the best up to its own cost.
    assert answers["limit"] == sorted(macs)
    assert [macs[index] for index in answers["best"]] == answers["limit"]
    for index, chance in zip(answers["best"], answers["chance"], strict=True):
        assert chance == pytest.approx(view["sure"][index], abs=2e-3)
    assert "random" not in Path(SCRIPTS / "choose.js").read_text(encoding="utf-8").lower()


def test_two_networks_say_nothing_about_rankings(tmp_path: Path) -> None:
    few = tuple(t for t in make_trials() if t.architecture_id <= 2)
    write_report(tmp_path / "report.html", make_report(few))

    page = Page(tmp_path / "report.html")
    assert "trust-chart" not in page.ids()
    assert "tau" not in page.text.lower()


def test_hostile_names_of_papers_and_values_stay_text(tmp_path: Path) -> None:
    """Every place that shows text escapes it, whatever it is and wherever it comes from."""
    hostile = tuple(
        replace(t, fidelity=f"retrain-{HOSTILE}") if t.fidelity.startswith("retrain") else t
        for t in make_trials()
    )
    write_report(tmp_path / "report.html", make_report(hostile))

    page = Page(tmp_path / "report.html")
    assert not any(tag == "img" for tag, _ in page.tags)
    assert HOSTILE in page.text


def test_parts_without_data_are_left_out(tmp_path: Path) -> None:
    only = make_report((trial(1, correct=150, fidelity="supernet"),))
    write_report(tmp_path / "report.html", replace(only, charges=(), trust=None))

    shown = Page(tmp_path / "report.html").ids()

    assert "front-chart" in shown
    assert shown.isdisjoint({"retrained-chart", "hypervolume-chart", "trust-chart"})


def test_too_few_networks_for_trust_is_said(tmp_path: Path) -> None:
    few = tuple(t for t in make_trials() if t.architecture_id <= 3)
    write_report(tmp_path / "report.html", make_report(few))

    assert "Too few networks to say: 3" in Page(tmp_path / "report.html").text


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    report = replace(
        make_report(make_trials()),
        name=HOSTILE,
        run=HOSTILE,
        command=HOSTILE,
        space=HOSTILE,
        data=HOSTILE,
        spent_by_phase={HOSTILE: 1.0},
        notes=(HOSTILE,),
        # $ is special to the page's template.
        trials=tuple(replace(t, origin="$plotly") for t in make_trials()),
    )
    write_report(tmp_path / "report.html", report)

    hostile = Page(tmp_path / "report.html")

    assert not any(tag == "img" for tag, _ in hostile.tags)
    assert [tag for tag, _ in hostile.tags].count("script") == 3
    assert hostile.data["phases"][0]["name"] == HOSTILE
    assert HOSTILE in hostile.text


def test_a_run_without_results_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No network has been judged yet"):
        write_report(tmp_path / "report.html", make_report(()))

    assert not (tmp_path / "report.html").exists()


def test_what_was_spent_is_the_overlap_of_charges_and_time() -> None:
    charges = ((10.0, 20.0, 2.0), (15.0, 16.0, 4.0))

    spent = spent_at(charges, np.array([5.0, 15.0, 15.5, 99.0]))

    assert spent.tolist() == [0.0, 10.0, 13.0, 24.0]


def test_hypervolume_grows_with_the_budget() -> None:
    curve = hypervolume_payload(
        make_trials(),
        ((0.0, 20.0, 2.0),),
        fidelity="supernet",
        objectives=("top1", "macs"),
        unit_seconds=60,
    )

    first = trial(1, correct=105)
    largest = 1.1 * trial(7, correct=1).macs
    assert curve["volume"][0] == pytest.approx(0.525 * (1 - first.macs / largest), abs=1e-6)
    assert curve["volume"] == sorted(curve["volume"])
    assert curve["spent"] == pytest.approx([2 * n / 60 for n in range(1, 8)], abs=1e-6)


def test_the_page_keeps_to_the_limits_that_the_table_keeps_to(tmp_path: Path) -> None:
    """What is slower than the run's limit is on no front, however accurate."""
    limits = {"latency_ms": 4.0}
    trials = [trial(n, correct=100 + 9 * n, latency_ms=float(n)) for n in range(1, 8)]
    # Where nothing is within the limits there is no view.
    trials += [
        trial(n, correct=50 + n, latency_ms=9.0, fidelity="supernet", origin="search")
        for n in range(1, 8)
    ]
    members = front(trials, objectives=("top1", "macs"), limits=limits)
    assert [member.id for member in members] == [1, 2, 3, 4]

    write_report(tmp_path / "report.html", replace(make_report(tuple(trials)), limits=limits))
    page = Page(tmp_path / "report.html")

    assert [view["fidelity"] for view in page.data["views"]] == ["train-3e"]
    assert page.data["networks"]["ids"] == [1, 2, 3, 4]
    assert page.data["best"]["latency_ms"]["limit"] == [1.0, 2.0, 3.0, 4.0]
    assert "4 networks were judged at train-3e" in page.text
    assert "within the limits (latency of 4 ms)" in page.text
    assert len(page.data["hypervolume"][0]["volume"]) == 4


def test_limits_of_what_is_counted_hold_on_the_page_of_a_graft(tmp_path: Path) -> None:
    """Its run judges networks beyond them, to learn what parts are worth."""
    trials = [trial(n, correct=100 + 9 * n) for n in range(1, 8)]
    most = float(sorted(one.macs for one in trials)[3])
    limits = {"macs": most}
    write_report(tmp_path / "report.html", replace(make_report(tuple(trials)), limits=limits))
    page = Page(tmp_path / "report.html")
    assert max(page.data["networks"]["macs"]) == most
    assert f"within the limits ({format_count(int(most))} MACs)" in page.text


@pytest.mark.parametrize(
    "chance",
    [0.0, 1e-9, 4e-4, 0.0099, 0.125, 0.5, 0.7449, 0.8249, 0.8251, 0.991, 0.99951, 1 - 1e-8, 1.0],
)
def test_a_chance_is_no_surer_in_the_page_than_in_the_table(chance: float) -> None:
    one = replace(candidates([trial(1, correct=90)], fidelity="train-3e")[0])
    sure = replace(one, front_probability=chance)

    (sent,) = view_payload("train-3e", [sure], {1: 0})["sure"]

    # As base.js writes shares.
    shown = (
        "<1%"
        if 0 < sent < 0.01
        else ">99%"
        if 0.99 < sent < 1
        else f"{math.floor(100 * sent + 0.5)}%"
    )
    assert shown == format_chance(chance)


@pytest.mark.parametrize(
    ("correct", "total"),
    # 37.75 % is half-way; 45.249 and 15.151 % become so when they are rounded to two digits.
    [(151, 400), (45_249, 100_000), (15_151, 100_000), (1, 3), (0, 9), (9, 9)],
)
def test_an_accuracy_is_the_same_in_the_page_and_in_the_table(correct: int, total: int) -> None:
    (one,) = candidates([trial(1, correct=correct, total=total)], fidelity="train-3e")
    view = view_payload("train-3e", [one], {1: 0})
    # As JavaScript's toFixed: half-way is up.
    shown = Decimal(view["top1"][0]).quantize(Decimal("0.1"), ROUND_HALF_UP)
    assert str(shown) == format_interval(one).split()[0]
    assert view["top1"][0] == pytest.approx(one.top1, abs=0.0101)


def test_the_line_of_the_picture_never_falls() -> None:
    """A front by latency has members that others beat in accuracy and MACs."""
    trials = [
        trial(n, correct=right, latency_ms=ms)
        for n, right, ms in ((1, 100, 5.0), (2, 90, 1.0), (3, 120, 9.0), (4, 110, 2.0))
    ]
    judged = candidates(trials, fidelity="train-3e", objectives=("top1", "latency_ms"))
    assert [c.id for c in judged if c.on_front] == [2, 3, 4]
    assert [c.id for c in best_in_plane(judged)] == [1, 3]


def test_the_picture_shows_the_front_in_its_colour(tmp_path: Path) -> None:
    judged = candidates(make_trials(), fidelity="train-3e", objectives=("top1", "macs"))
    front_png(tmp_path / "front.png", judged, title="runs/$digits_1$")

    pixels = (imread(tmp_path / "front.png")[..., :3] * 255).round().astype(int)

    blue = (pixels == (0x00, 0x72, 0xB2)).all(axis=-1)
    assert blue.sum() > 100
