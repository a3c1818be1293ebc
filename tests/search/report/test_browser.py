"""The report in a real browser: drawn, hovered, clicked, other axes, a limit, on a phone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from search.report.page import write_report
from searchspace.spec_file import load_space
from tests.browser import Page, browse, find_browser
from tests.search.report.test_page import make_report
from tests.tiny_run import some_trials
from tests.tiny_trials import trial

BROWSER = find_browser()
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium on the PATH; e.g. apt install chromium"
)
FRONT = "document.getElementById('front-chart')"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    rng, space = random.Random(0), load_space("micro")
    # Enough different networks for the chart of importance.
    more = [
        replace(
            trial(n, correct=60 + n, fidelity="supernet"),
            architecture=space.sample(rng),
            macs=20_000_000 + n,
        )
        for n in range(20, 60)
    ]
    # Three were promoted and arrived, so that the front of what was trained alone comes first.
    alone = [
        replace(one, origin="promote") if one.architecture_id <= 2 else one for one in some_trials()
    ]
    write_report(path, make_report((*alone, *more)))
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    assert BROWSER is not None
    with browse(BROWSER, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser: Page, file: Path) -> Page:
    browser.open(file, width=1100, height=900)
    browser.evaluate(f"{FRONT}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    browser.settle()
    return browser


def place_of(page: Page, number: int) -> tuple[float, float]:
    """Return where a member of the front is drawn, in pixels of the window."""
    x, y = page.evaluate(
        f"""(() => {{
          const chart = {FRONT}, box = chart.getBoundingClientRect();
          const trace = chart.data.find((t) => t.name.startsWith("on the front"));
          const view = currentView();
          const i = trace.customdata.findIndex((index) => idOf(view, index) === {number});
          const {{ xaxis, yaxis }} = chart._fullLayout;
          return [box.left + xaxis._offset + xaxis.d2p(trace.x[i]),
                  box.top + yaxis._offset + yaxis.d2p(trace.y[i])];
        }})()"""
    )
    return x, y


def text_of(page: Page, element: str) -> str:
    return " ".join(page.evaluate(f"document.getElementById('{element}').innerText").split())


def select(page: Page, element: str, value: str) -> None:
    page.evaluate(
        f"(() => {{ const select = document.getElementById('{element}'); select.value = "
        f"'{value}'; select.dispatchEvent(new Event('change')); return true; }})()"
    )
    page.settle()


def test_everything_is_drawn_without_a_complaint_or_a_request(page: Page, file: Path) -> None:
    charts = page.evaluate("document.querySelectorAll('.js-plotly-plot').length")

    assert charts == 7
    assert page.problems == []
    elsewhere = [url for url in page.requests if not url.startswith(("data:", "blob:"))]
    assert set(elsewhere) == {file.resolve().as_uri()}


def test_hovering_shows_the_network_stage_by_stage(page: Page) -> None:
    assert page.evaluate("document.getElementById('tip').hidden")

    page.move(*place_of(page, 7))

    page.wait_for("!document.getElementById('tip').hidden")
    shown = text_of(page, "tip")
    assert shown.startswith("network 7 77.0 %")
    for text in ("8x8, 64", "dw3", "elsa5 h2 l1 g1", "4x4, 16", "win2 h4 qr+rk"):
        assert text in shown
    page.move(5, 5)
    page.wait_for("document.getElementById('tip').hidden")


def test_a_clicked_network_is_shown_with_its_command(page: Page) -> None:
    page.click(*place_of(page, 3))

    page.wait_for("document.getElementById('chosen').innerText.includes('network 3')")
    assert "search retrain runs/digits --arch 3" in text_of(page, "chosen")
    assert "chance that it truly belongs there" in text_of(page, "chosen")


def test_other_axes_move_the_points(page: Page) -> None:
    xs = f"{FRONT}.data.find((t) => t.name.startsWith('on the front')).x"
    before = page.evaluate(xs)

    select(page, "x-axis", "params")

    assert page.evaluate(xs) != before
    assert page.evaluate(f"{FRONT}.layout.xaxis.title.text") == "parameters"


def test_another_fidelity_shows_other_networks(page: Page) -> None:
    def count() -> int:
        groups = f"{FRONT}.data.filter((t) => !t.name.startsWith('one kind of mixer'))"
        return int(page.evaluate(f"{groups}.flatMap((t) => t.customdata ?? []).length"))

    alone = count()
    select(page, "view", "supernet")

    assert (alone, count()) == (9, 49)


def test_labels_of_the_front_do_not_overlap(page: Page) -> None:
    page.wait_for(f"{FRONT}.querySelectorAll('.textpoint text').length > 0")

    boxes = page.evaluate(
        f"[...{FRONT}.querySelectorAll('.textpoint text')].filter((t) => t.textContent.trim())"
        ".map((t) => t.getBoundingClientRect()).map((b) => [b.left, b.top, b.right, b.bottom])"
    )

    assert len(boxes) >= 3
    for index, a in enumerate(boxes):
        for b in boxes[index + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_a_limit_is_answered_with_how_sure_it_is(page: Page) -> None:
    def answer(limit: str) -> str:
        page.evaluate(
            "(() => { const limit = document.getElementById('limit'); limit.value = "
            f"'{limit}'; limit.dispatchEvent(new Event('input')); return true; }})()"
        )
        return text_of(page, "answer")

    third = trial(3, correct=1).macs
    assert answer("").startswith("network 9 89.0 %")
    within = answer(str(third))
    assert within.startswith("network 3 53.0 %")
    assert "How sure? It is truly the most accurate of these 3" in within
    assert "is no number" in answer("many")
    assert "No judged network is that small" in answer("1K")


@pytest.mark.parametrize("width", [1100, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_sticks_out_of_the_window(
    browser: Page, file: Path, width: int, dark: bool
) -> None:
    browser.open(file, width=width, height=844, dark=dark)

    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
    assert browser.problems == []
