"""Tables about what there is and what was planned: plans, run status, presets, spaces, recipes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import cast

import yaml
from rich.table import Table

from configs import config_names, config_path
from search.budget import Device, format_seconds
from search.plan import ETA, Plan, climbing_phase
from search.results.candidates import front, searched_fidelities, shown_fidelity
from search.run_folder.folder import RunFolder
from search.terminal.console import shell_command
from search.terminal.tables import format_count
from searchspace.cost import count
from searchspace.presets import PRESETS, preset, preset_about
from searchspace.spec_file import load_space

_NOUNS: Mapping[Device, str] = {"cpu": "cores", "gpu": "GPUs"}


def plan_table(plan: Plan, device: Device, *, twice: Plan) -> Table:
    """Show what a budget buys, a row for each phase, and what twice the budget would."""
    table = Table(title=f"Plan, strategy {plan.strategy}", title_justify="left")
    for name, justify in (("phase", "left"), ("share", "right"), ("work", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    judged_by = "by a zero-cost score" if plan.strategy == "zero-cost" else "with inherited weights"
    work = {
        "supernet": f"{plan.supernet_steps:,} steps of the shared weights",
        "trust": f"{plan.num_trust} networks alone for {plan.trial_epochs} epochs",
        "search": f"about {plan.num_judged:,} networks {judged_by}",
        climbing_phase(plan.strategy): _promotions(plan),
        "finish": "check the extraction; judge with what is left",
    }
    before = 0.0
    for phase, until in plan.until.items():
        table.add_row(phase, format_seconds(until - before, device), work[phase])
        before = until
    smallest, largest = (format_seconds(s, device) for s in plan.retrain_seconds)
    table.add_section()
    table.add_row(
        "all", format_seconds(plan.budget_seconds, device), f"on {plan.devices} {_NOUNS[device]}"
    )
    table.add_row("later", "", f"retraining a network: {smallest} to {largest}")
    table.add_row("", "", f"twice the budget: {_twice(twice)}")
    return table


def status_table(run: RunFolder) -> Table:
    """Show the phase of a run, what is spent and left, and the best network so far."""
    budget, device = run.settings.parsed_budget, run.settings.parsed_budget.device
    by_phase = run.record.spent_by_phase()
    spent = run.state.spent
    trials = run.record.trials()
    table = Table(title=f"{run.folder.name}", title_justify="left", show_header=False)
    table.add_row("phase", run.state.phase)
    table.add_row("at work", _at_work(run))
    estimator = run.state.estimator
    judged_by = f", networks are judged by: {estimator}" if estimator else ""
    table.add_row("strategy", f"{run.settings.strategy}{judged_by}")
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
        members = front(trials, objectives=run.settings.objectives)
        best = max(members, key=lambda member: member.top1)
        table.add_row(
            "best so far",
            f"network {best.id}: {best.top1:.1f} % ({shown_fidelity(trials)}), "
            f"{format_count(best.macs)} MACs",
        )
    plan = run.state.plan
    if plan is not None and not run.state.is_done:
        left = max(budget.amount_seconds - spent, 0.0) / plan.devices
        table.add_row("expected end", f"in {left / 60:.1f} minutes of work")
    return table


def _at_work(run: RunFolder) -> str:
    """Say whether a process works on a run, or since when nobody does."""
    last = run.record.last_seen()
    if last is None:
        return "a process works on it"
    since = f"nobody since {datetime.fromtimestamp(last):%Y-%m-%d %H:%M:%S}" if last else "nobody"
    if run.state.is_done:
        return since
    return f"{since}; go on with: {shell_command('search', 'run', '--resume', '--out', run.folder)}"


def presets_table() -> Table:
    """List the presets with their parameters and MACs."""
    rows = []
    for name in PRESETS:
        cost = count(preset(name))
        rows.append((name, format_count(cost.params), format_count(cost.macs), preset_about(name)))
    return _table("Presets", ("name", "params", "MACs", "about"), rows)


def spaces_table() -> Table:
    """List the search spaces with their sizes."""
    rows = []
    for name in config_names("spaces"):
        space = load_space(name)
        rows.append((name, str(space.img_size), f"{space.size():.2g}", space.about))
    return _table("Search spaces", ("name", "pixels", "networks", "about"), rows)


def recipes_table() -> Table:
    """List the recipes; the shipped files are sound, so their fields need no check by timm."""
    rows = []
    for name in config_names("recipes"):
        text = config_path("recipes", name).read_text(encoding="utf-8")
        # libyaml, where it is there, reads ours ten times as fast; others' files are bounded.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        recipe = cast(Mapping[str, object], yaml.load(text, Loader=loader))
        rows.append((name, str(recipe["epochs"]), str(recipe["about"])))
    return _table("Recipes", ("name", "epochs", "about"), rows)


def _table(title: str, columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _promotions(plan: Plan) -> str:
    """Say how many networks go up the rungs: ``about 90 networks for 10 epochs, 30 for 30``."""
    higher = len(plan.rungs) - 1
    counts = [plan.num_promoted * ETA ** (higher - rung) for rung in range(higher + 1)]
    first, *others = zip(counts, plan.rungs, strict=True)
    text = f"about {first[0]} networks alone for {first[1]} epochs"
    return ", ".join([text, *(f"{number} for {epochs}" for number, epochs in others)])


def _twice(plan: Plan) -> str:
    numbers = {"supernet steps": plan.supernet_steps, "judged": plan.num_judged}
    work = [f"{number:,} {name}" for name, number in numbers.items() if number]
    return ", ".join([*work, _promotions(plan)])
