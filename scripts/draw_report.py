"""Take the pictures of a run's report that stand in the documentation.

    python scripts/draw_report.py runs/digits docs/pictures

Needs a Chromium on the PATH, e.g. by ``apt install chromium``. The picture of the front itself is
``front.png`` in the run's folder.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.browser import browse, find_browser


@dataclass(frozen=True, kw_only=True, slots=True)
class Shot:
    """A window on the report.

    Attributes:
        name: Of the file.
        width, height: Of the window in pixels; a narrow one is a phone's.
        dark: Whether the reader prefers dark colours.
        top: Selects what is at the top; None is the beginning of the page.
    """

    name: str
    width: int = 1100
    height: int = 800
    dark: bool = False
    top: str | None = None


SHOTS = (
    Shot(name="report.png"),
    Shot(name="report_dark.png", dark=True),
    Shot(name="report_phone.png", width=390, height=844),
    Shot(name="report_findings.png", height=2000, top="main > h2:nth-of-type(6)"),
)


def main(run: Path, folder: Path) -> None:
    """Write every picture into a folder."""
    browser = find_browser()
    if browser is None:
        raise SystemExit("There is no Chromium on the PATH. On Debian: apt install chromium")
    with tempfile.TemporaryDirectory() as profile, browse(browser, Path(profile)) as page:
        for shot in SHOTS:
            page.open(run / "report.html", width=shot.width, height=shot.height, dark=shot.dark)
            if shot.top:
                page.evaluate(f"document.querySelector('{shot.top}').scrollIntoView()")
                page.settle()
            page.screenshot(folder / shot.name)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
