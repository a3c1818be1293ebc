"""Seconds and bytes of the report of a large search, and how long a browser takes to show it.

Run with ``python benchmarks/bench_report.py [--networks 50000] [--out FOLDER]``. The networks are
random ones of the space ``swin_t`` with made-up accuracies; nothing is trained. The browser's part
needs a Chromium on the PATH.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from search.budget import parse_budget
from search.record import Measured
from search.record.record import Trial
from search.report.page import ReportData, write_report
from search.trust.ranking import trust_points, trust_report
from searchspace.architecture import Architecture
from searchspace.cost import count
from searchspace.mixers import DepthwiseConv, Elsa
from searchspace.spec_file import load_space
from tests.browser import Page, browse, find_browser

NUM_IMAGES = 10_000


def main() -> None:
    """Write the report, measure it, and show it in a browser."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=50_000)
    parser.add_argument("--out", type=Path, default=Path(tempfile.mkdtemp()))
    arguments = parser.parse_args()
    arguments.out.mkdir(exist_ok=True)
    trials = make_trials(arguments.networks)
    path = arguments.out / "report.html"
    started = time.perf_counter()
    write_report(path, _report(trials))
    seconds = time.perf_counter() - started
    size = path.stat().st_size
    print(f"{arguments.networks:,} networks: written in {seconds:.1f} s, {size:,} bytes")
    browser = find_browser()
    if browser is None:
        print("No Chromium here: the browser's part is left out.")
        return
    with browse(browser, arguments.out / "profile") as page:
        _measure(page, path)


def make_trials(number: int) -> tuple[Trial, ...]:
    """Make random networks judged with inherited weights, some of them trained alone as well."""
    rng, space = random.Random(0), load_space("swin_t")
    networks: dict[str, Architecture] = {}
    while len(networks) < number:
        architecture = space.sample(rng)
        networks[architecture.key] = architecture
    trials = []
    for index, architecture in enumerate(networks.values()):
        true = _made_up_accuracy(architecture, rng)
        trials.append(_trial(index, architecture, true - 4 + rng.gauss(0, 1), "supernet", "search"))
        if index % max(number // 120, 1) == 0:
            origin = "trust" if index % 3 else "promote"
            trials.append(_trial(index, architecture, true, "train-9e", origin))
    return tuple(trials)


def _made_up_accuracy(architecture: Architecture, rng: random.Random) -> float:
    gains = [
        0.6 * isinstance(mixer, Elsa) - 0.4 * isinstance(mixer, DepthwiseConv)
        for stage in architecture.stages
        for mixer in stage.mixers[:1]
    ]
    return 74 + sum(gains) + 0.8 * count(architecture).macs / 1e9 + rng.gauss(0, 0.4)


def _trial(
    index: int, architecture: Architecture, top1: float, fidelity: str, origin: str
) -> Trial:
    cost = count(architecture)
    correct = round(top1 / 100 * NUM_IMAGES)
    return Trial(
        id=2 * index + (fidelity != "supernet"),
        architecture_id=index + 1,
        key=architecture.key,
        architecture=architecture,
        params=cost.params,
        macs=cost.macs,
        fidelity=fidelity,
        seed=0,
        origin=origin,
        state="done",
        measured=Measured(top1=100 * correct / NUM_IMAGES, correct=correct, total=NUM_IMAGES),
        cause=None,
        seconds=1.0,
        num_attempts=1,
        finished=float(index),
    )


def _report(trials: tuple[Trial, ...]) -> ReportData:
    last = max(trial.finished or 0.0 for trial in trials)
    return ReportData(
        name="synthetic",
        run="runs/synthetic",
        command="python benchmarks/bench_report.py",
        space="swin_t",
        data="none: accuracies are made up",
        seed=0,
        objectives=("top1", "macs"),
        budget=parse_budget("50gpu-days"),
        spent_seconds=50 * 86_400.0,
        spent_by_phase={"supernet": 20 * 86_400.0, "search": 30 * 86_400.0},
        trials=trials,
        charges=((0.0, last, 8.0),),
        trust=trust_report(trust_points(trials), rng=np.random.default_rng(0)),
    )


def _measure(page: Page, path: Path) -> None:
    started = time.perf_counter()
    page.open(path, width=1200, height=900)
    print(f"open to drawn: {time.perf_counter() - started:.1f} s")
    started = time.perf_counter()
    page.evaluate(
        "(() => { const view = document.getElementById('view'); "
        "view.selectedIndex = view.options.length - 1; drawFront(); return true; })()"
    )
    page.settle()
    print(f"the view with all networks: {time.perf_counter() - started:.1f} s")
    started = time.perf_counter()
    page.evaluate("Plotly.relayout('front-chart', {'xaxis.range': [4e9, 5e9]}).then(() => true)")
    page.settle()
    print(f"zoom: {time.perf_counter() - started:.1f} s")
    memory = page.evaluate("performance.memory.usedJSHeapSize")
    print(f"memory of the page: {memory / 2**20:.0f} MiB; problems: {page.problems or 'none'}")


if __name__ == "__main__":
    main()
