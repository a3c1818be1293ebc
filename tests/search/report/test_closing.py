"""The end of a run that judged nothing: it says so, how to go on, and that it is no success."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from search import load_run, run
from search.cli import app as cli
from search.front.query import FrontQuery, front_view
from search.plan import MorePlan
from search.record import Measured
from search.record.record import AttemptOutcome, Record
from search.report.closing import print_closing, write_report
from search.run_folder import create_run, own_run
from search.run_folder.settings import RunSettings
from searchspace.cost import count
from tests.search.plan.test_large_plans import plan_of
from tests.search.test_run import SPACE
from tests.tiny_run import write_run
from tests.tiny_trials import network, trial


def test_a_run_without_a_front_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(SPACE)
    settings = RunSettings(space=str(tmp_path / "tiny.yaml"), data="digits", budget="60cpu-seconds")
    shown = StringIO()
    with create_run(tmp_path / "run", settings) as opened:
        attempt = opened.record.start_attempt("measure", devices=1)
        opened.record.finish_attempt(attempt, outcome="done")

        assert not print_closing(opened, Console(file=shown, width=200))
        # One that was stopped has budget left: its command says how it goes on.
        stopped = Console(file=(after := StringIO()), width=200)
        assert not print_closing(opened, stopped, is_stopped=True)

    assert "of 60.0 device-seconds spent" in after.getvalue()
    assert "--budget" not in after.getvalue()
    assert "of 60.0 device-seconds spent" in shown.getvalue()
    assert f"search run --resume --out {tmp_path / 'run'} --budget AMOUNT" in shown.getvalue()


def test_the_command_fails_where_no_network_was_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "run_search", lambda *arguments, **options: None)
    words = ["run", "--budget", "60cpu-seconds", "--out", str(tmp_path / "run")]

    result = CliRunner().invoke(cli.app, words)

    assert result.exit_code == 1
    assert "No network has been judged: 0.0 of 60.0 device-seconds" in result.output


def fill(record: Record, *, fidelity: str, origin: str, results: dict[int, float | None]) -> None:
    """Add trials of `network(number)` with their accuracies; None: it waits."""
    for number, top1 in results.items():
        cost = count(network(number))
        known = record.add_architecture(network(number), params=cost.params, macs=cost.macs)
        one = record.add_trial(known, fidelity=fidelity, seed=0, origin=origin)
        attempt = record.start_attempt(origin, devices=0, trial_id=one)
        values = Measured(top1=top1, correct=2 * top1, total=200.0, seconds=1.0) if top1 else None
        outcome: AttemptOutcome = "done" if top1 else "interrupted"
        record.finish_attempt(attempt, outcome=outcome, measured=values)


def test_the_report_says_what_more_budget_would_buy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The networks are of no space, and Optuna's copy would refuse them.
    monkeypatch.setattr("search.report.closing.update_mirror", lambda run: None)
    (tmp_path / "tiny.yaml").write_text(SPACE)
    settings = RunSettings(space=str(tmp_path / "tiny.yaml"), data="digits", budget="60cpu-seconds")
    plan, more = plan_of(50), plan_of(60)
    with create_run(tmp_path / "run", settings) as opened:
        judged = {number: 30.0 + 5 * number for number in range(1, 10)}
        fill(opened.record, fidelity="supernet", origin="search", results=dict(judged))
        write_report(opened, Console(file=StringIO()))
        assert "more would buy" not in opened.report.read_text(encoding="utf-8")

        opened.state.more_plan = MorePlan(budget="10 gpu-days", plan=plan, more=more)
        write_report(opened, Console(file=StringIO()))
        page = opened.report.read_text(encoding="utf-8")

    assert "10 gpu-days more would buy" in page
    # A number that only the larger plan has.
    assert f"{more.num_promoted} for {more.trial_epochs} epochs" in page


def test_promotions_that_did_not_arrive_leave_the_front_below(tmp_path: Path) -> None:
    """One network of the trust set at 56 % is no answer where hundreds were judged."""
    (tmp_path / "tiny.yaml").write_text(SPACE)
    settings = RunSettings(space=str(tmp_path / "tiny.yaml"), data="digits", budget="60cpu-seconds")
    shown = StringIO()
    with create_run(tmp_path / "run", settings) as opened:
        trust = {1: 56.0, 2: 50.0}
        judged = {number: 30.0 + 5 * number for number in range(1, 10)}
        fill(opened.record, fidelity="train-2e", origin="trust", results=dict(trust))
        fill(opened.record, fidelity="supernet", origin="search", results=dict(judged))
        fill(opened.record, fidelity="train-2e", origin="promote", results={8: None, 9: None})

        assert print_closing(opened, Console(file=shown, width=200))
        listed = Console(file=(table := StringIO()), width=200)
        listed.print(front_view(opened, FrontQuery()))
        listed.print(front_view(opened, FrontQuery(fidelity="train-2e")))

    text = shown.getvalue()
    assert "Pareto front (supernet)" in text
    assert "The front is that of the networks judged at supernet" in text
    assert "of 2 promoted to it none arrived" in text
    assert "--arch 9" in text
    # Nothing is said about the order of two networks.
    assert "tau" not in text.lower()
    first, second = table.getvalue().split("Pareto front (train-2e)")
    assert "none arrived" in first
    assert "none arrived" not in second


def test_a_run_with_nothing_within_its_limits_ends_with_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The networks are of no space, and Optuna's copy would refuse them.
    monkeypatch.setattr("search.report.closing.update_mirror", lambda run: None)
    trials = [trial(n, correct=100 + 9 * n, latency_ms=0.3 * n) for n in range(1, 8)]
    folder = write_run(tmp_path / "run", trials)
    with Record.open(folder / "record.db") as record:
        settings = record.get_meta("settings")
        settings |= {"limits": {"latency_ms": 0.25}, "objectives": ["top1", "latency_ms"]}
        record.set_meta("settings", settings)
    shown = StringIO()
    with own_run(folder) as opened:
        assert write_report(opened, Console(file=shown))
        assert not print_closing(opened, Console(file=shown, width=400))
    said = " ".join(shown.getvalue().split())
    assert "within latency_ms <= 0.25; the least is latency_ms 0.3: 7.0 of 600.0" in said
    assert "--budget AMOUNT" in said
    assert load_run(folder).front.empty
    # What is retrained of it is; there is no report to name.
    monkeypatch.setattr("search.retraining.queue.retrain_members", lambda *_, **__: None)
    done = CliRunner().invoke(cli.app, ["retrain", str(folder), "--arch", "1"])
    assert (done.exit_code, "Report: " in done.output) == (0, False)
