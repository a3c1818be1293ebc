"""Tables about one run: what was planned, and how far it is."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from rich.table import Table

from search.budget import Device, format_seconds
from search.plan import (
    HORIZON,
    Plan,
    StepTimes,
    climbing_phase,
    climbing_text,
    device_rate,
    horizon_text,
    idle_devices,
    library_text,
    more_text,
    plan_warnings,
    supernet_text,
)
from search.terminal.console import shell_command
from search.terminal.tables import format_count

if TYPE_CHECKING:
    from search.run_folder import RunFolder, RunState

_NOUNS: Mapping[Device, str] = {"cpu": "core", "gpu": "GPU"}


def plan_table(plan: Plan, device: Device, *, twice: Plan, times: StepTimes | None = None) -> Table:
    """Show what a budget buys, a row for each phase, and what twice the budget would.

    Args:
        times: By which it was planned, to say what they are of.
    """
    table = Table(title=f"Plan, strategy {plan.strategy}", title_justify="left")
    columns = (("phase", "left"), ("share", "right"), ("time", "right"), ("work", "left"))
    for name, justify in columns:
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    judged_by = "by a zero-cost score" if plan.strategy == "zero-cost" else "with inherited weights"
    epochs = "epoch" if plan.trust_rung == 1 else "epochs"
    work = {
        "library": library_text(plan),
        "score": f"time to judge {plan.num_scored:,} networks: parts alone, pairs, some assemblies",
        "supernet": supernet_text(plan),
        "trust": f"{plan.num_trust} networks alone for {plan.trust_rung} {epochs}",
        HORIZON: horizon_text(plan),
        "search": f"about {plan.num_judged:,} networks {judged_by}",
        climbing_phase(plan.strategy): climbing_text(plan),
        "finish": "check the extraction; judge with what is left",
    }
    before, idle = 0.0, idle_devices(plan)
    for phase, end in plan.spent_by_end.items():
        seconds = end - before
        resting = f"; {_devices(idle[phase], device)} idle" if idle[phase] else ""
        clock = _clock(seconds / plan.devices)
        table.add_row(phase, format_seconds(seconds, device), clock, work[phase] + resting)
        before = end
    table.add_section()
    _add_totals(table, plan, device)
    table.add_row("", "", "", f"twice the budget: {_twice(twice)}")
    if times is not None:
        for line in times_lines(times, plan):
            table.add_row("", "", "", line)
    for warning in plan_warnings(plan, feed_rate=times.feed_rate if times else 0.0):
        table.add_row("note", "", "", warning)
    return table


def _add_totals(table: Table, plan: Plan, device: Device) -> None:
    smallest, largest = (format_seconds(s, device) for s in plan.retrain_seconds)
    clock = _clock(plan.budget_seconds / plan.devices)
    asked = format_seconds(plan.budget_seconds, device)
    table.add_row("all", asked, clock, f"on {_devices(plan.devices, device)}")
    table.add_row("later", "", "", f"retraining a network: {smallest} to {largest}")


def _devices(number: int, device: Device) -> str:
    """Write ``1 core``, ``8 GPUs``."""
    return f"{number} {_NOUNS[device]}{'' if number == 1 else 's'}"


def _clock(seconds: float) -> str:
    """Write how long a phase lasts: ``1.8 min``."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def times_lines(times: StepTimes, plan: Plan) -> list[str]:
    """Say what the times of a plan are of: rates, device, and whether they are estimates."""
    rate = device_rate(plan)
    feed = f", its processes make {times.feed_rate:,.0f}" if times.feed_rate else ""
    lines = [f"a device trains on {rate:,.0f} images/s{feed}"] if rate else []
    if times.device_name:
        made = f" ({times.versions})" if times.versions else ""
        lines.append(
            f"{'estimated for' if times.source else 'measured on'} {times.device_name}{made}"
        )
    if times.teacher:
        lines.append("its steps have the teacher's part in them")
    if times.source:
        lines.append(f"estimates, nothing was measured: {times.source}")
    return lines


def status_table(run: RunFolder) -> Table:
    """Show the phase of a run, what is spent and left, and the best network so far."""
    # Not above: the listings have no use for what they load.
    from search.results import front, is_within, searched_fidelities, shown_fidelity

    budget, device = run.settings.parsed_budget, run.settings.parsed_budget.device
    by_phase = run.record.spent_by_phase()
    spent = run.state.spent
    trials = run.record.trials()
    table = Table(title=run.folder.resolve().name, title_justify="left", show_header=False)
    table.add_row("phase", run.state.phase)
    table.add_row("at work", _at_work(run))
    estimator = run.state.estimator
    judged_by = f", networks are judged by: {estimator}" if estimator else ""
    table.add_row("strategy", f"{run.settings.strategy}{judged_by}")
    if run.settings.taught_by:
        table.add_row("teacher", f"{run.settings.taught_by}: all trainings learn from it")
    if images := run.settings.unlabelled_line:
        table.add_row("unlabelled", images)
    table.add_row("asked", format_seconds(budget.amount_seconds, device))
    table.add_row("spent", f"{format_seconds(spent, device)} ({spent:.1f} device-seconds)")
    table.add_row("left", format_seconds(budget.amount_seconds - spent, device))
    for phase, seconds in by_phase.items():
        table.add_row(f"  {phase}", format_seconds(seconds, device))
    states = ", ".join(
        f"{sum(trial.state == state for trial in trials)} {state}"
        for state in ("done", "running", "waiting", "failed")
    )
    table.add_row("trials", states)
    if searched_fidelities(trials):
        shown, limits = shown_fidelity(trials), run.limits
        within = [t for t in trials if t.fidelity == shown and is_within(t, limits)]
        best = "none is within the limits"
        if any(trial.state == "done" for trial in within):
            members = front(within, fidelity=shown, objectives=run.settings.objectives)
            one = max(members, key=lambda member: member.top1)
            best = f"network {one.id}: {one.top1:.1f} % ({shown}), {format_count(one.macs)} MACs"
        table.add_row("best so far", best)
    plan = run.state.plan
    if plan is not None and not run.state.is_done:
        left = max(budget.amount_seconds - spent, 0.0) / plan.devices
        table.add_row("expected end", f"in {left / 60:.1f} minutes of work")
    more = what_more_buys(run.state)
    if more is not None:
        table.add_row("with more", more)
    return table


def what_more_buys(state: RunState) -> str | None:
    """Say what ten more gpu-days (of a cpu run: as much again) would buy; None without a plan."""
    found = state.more_plan
    if found is None:
        return None
    return f"{found.budget} more would buy {more_text(found.plan, found.more)}"


def _at_work(run: RunFolder) -> str:
    """Say whether a process works on a run, or since when nobody does."""
    last = run.record.last_seen()
    if last is None:
        return "a process works on it"
    since = f"nobody since {datetime.fromtimestamp(last):%Y-%m-%d %H:%M:%S}" if last else "nobody"
    if run.state.is_done:
        return since
    return f"{since}; go on with: {shell_command('search', 'run', '--resume', '--out', run.folder)}"


def _twice(plan: Plan) -> str:
    work = [supernet_text(plan)] if plan.supernet_steps else []
    judged = [f"{plan.num_judged:,} judged"] if plan.num_judged else []
    return ", ".join([*work, *judged, climbing_text(plan)])
