"""What a run says of itself at its end, in the report and in its status is the same, and true."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from rich.console import Console

from search.front import FrontQuery, judged_by
from search.record.record import Record
from search.report import closing
from search.report.closing import export_front, print_closing
from search.run_folder.folder import RunFolder, open_run
from search.terminal.run_tables import status_table
from search.trust import KendallTau, TrustReport
from search.trust.ranking import EstimatorTrust
from searchspace.architecture import Architecture, Stage
from searchspace.cost import count
from searchspace.mixers import DepthwiseConv
from tests.tiny_run import write_run
from tests.tiny_trials import trial


@pytest.mark.parametrize(
    ("command", "options", "budget", "shown"),
    [
        ("search run --budget 10cpu-minutes --out run", None, "10cpu-minutes", False),
        ("search run --budget=10cpu-minutes --out run", None, "10cpu-minutes", False),
        ("search run --budget 10cpu-minutes --out run", None, "20cpu-minutes", True),
        ("search run --budget 10cpu-minutes --out r20cpu-minutes", None, "20cpu-minutes", True),
        # The budget stood in a file.
        ("search run --config flowers", "budget: 10cpu-minutes", "10cpu-minutes", False),
        ("search run --config flowers", "budget: 10cpu-minutes", "20cpu-minutes", True),
        ("search run --config flowers", "budget: [", "10cpu-minutes", False),
    ],
)
def test_a_larger_budget_is_said_where_there_was_one(
    tmp_path: Path, command: str, options: str | None, budget: str, shown: bool
) -> None:
    folder = write_run(tmp_path / "run")
    if options is not None:
        (folder / "search.yaml").write_text(options, encoding="utf-8")
    with Record.open(folder / "record.db") as record:
        settings = record.get_meta("settings")
        record.set_meta("settings", {**settings, "command": command, "budget": budget})
    with open_run(folder) as run:
        page = command_of(run)
    assert ("--resume" in page) == shown


def command_of(run: RunFolder) -> str:
    """Return the fact of the report that says what was typed."""
    page = written(run)
    return page[page.index("<dt>Command</dt>") :].partition("</dd>")[0]


def written(run: RunFolder) -> str:
    export_front(run, found=judged_by(run, FrontQuery()), html=run.report, png=None)
    return run.report.read_text(encoding="utf-8")


def test_status_names_no_network_beyond_the_limits(tmp_path: Path) -> None:
    limits = {"latency_ms": 4.0}
    trials = [trial(n, correct=100 + 9 * n, latency_ms=float(n)) for n in range(1, 8)]
    folder = write_run(tmp_path / "run", trials)
    with Record.open(folder / "record.db") as record:
        settings = record.get_meta("settings")
        settings |= {"limits": limits, "objectives": ["top1", "latency_ms"]}
        record.set_meta("settings", settings)
    with open_run(folder) as run:
        Console(file=(shown := StringIO()), width=200).print(status_table(run))
        page = written(run)
    assert "network 4: 68.0 %" in shown.getvalue()
    assert "within the limits (latency of 4 ms)" in page


def test_that_mixing_paid_is_said_with_its_luck(tmp_path: Path) -> None:
    said = {}
    for name, correct in (("paid", 195), ("noise", 120)):
        alone = Stage(dim=400, mixers=(DepthwiseConv(kernel_size=3),) * 2)
        last = Stage(dim=16, mixers=(DepthwiseConv(kernel_size=3),))
        one = Architecture(img_size=16, patch_size=2, num_classes=10, stages=(alone, last))
        cost = count(one)
        named = {"architecture_id": 50, "key": one.key, "macs": cost.macs, "params": cost.params}
        single = replace(trial(9, correct=110), architecture=one, **named)  # type: ignore[arg-type]
        mixes = [trial(n, correct=correct - n) for n in (1, 2, 3)]
        shown = StringIO()
        with open_run(write_run(tmp_path / name, [*mixes, single])) as run:
            assert print_closing(run, Console(file=shown, width=400))
        said[name] = shown.getvalue()
    assert "Mixing paid: beside the best network" in said["paid"]
    assert "the best mix with no more MACs" in said["paid"]
    assert "Of many mixes the best has had some luck" in said["paid"]
    assert "Whether mixing paid is within noise" in said["noise"]
    assert "some luck" not in said["noise"]


@pytest.mark.parametrize(
    ("teacher", "said"),
    [("", "Ranking by supernet against training alone"), ("t", "as assembled against healing")],
)
def test_a_graft_is_ranked_against_healing(
    monkeypatch: pytest.MonkeyPatch, teacher: str, said: str
) -> None:
    tau = KendallTau(tau=0.5, low=0.1, high=0.8, num_points=8)
    found = EstimatorTrust(name="supernet", tau=tau, top_tau=tau, estimates=(1.0,) * 8)
    report = TrustReport(points=(), estimators=(found,), chosen="supernet", verdict="It is.")
    monkeypatch.setattr(closing, "report_of", lambda *_, **__: report)
    settings = SimpleNamespace(seed=0, strategy="supernet", teacher=teacher)
    run = cast(RunFolder, SimpleNamespace(record=None, settings=settings))

    ranking, verdict = closing._trust_lines(run)

    assert said in ranking
    assert verdict == "It is."
