"""What `search pareto` shows: which networks, in which order, once or while the run goes on."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from csv import DictWriter
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from search.record import QUALITIES, Trial
from search.results import (
    Candidate,
    add_forecasts,
    add_probabilities,
    by_macs,
    candidate_losses,
    judged_at,
    knee,
    later_order,
    passed_over,
    searched_fidelities,
    to_json,
)
from search.run_folder import RunFolder, RunSettings, open_run
from search.terminal import front_table, shell_command

# How each column is sorted: its value, and whether the largest comes first.
COLUMNS: Mapping[str, tuple[Callable[[Candidate], float | None], bool]] = {
    "id": (lambda c: c.id, False),
    **dict.fromkeys(QUALITIES, (lambda c: c.top1, True)),
    "macs": (lambda c: c.macs, False),
    "params": (lambda c: c.params, False),
    "latency_ms": (lambda c: c.latency_ms, False),
    "memory_mib": (lambda c: c.memory_mib, False),
    "sure": (lambda c: c.front_probability, True),
}
REFRESH_SECONDS = 2.0
# A run's process marks its work as alive every second.
SILENT_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontQuery:
    """Which networks of a run to show.

    Attributes:
        objectives: What the front weighs; empty takes those of the run.
        fidelity: None takes `search.results.candidates.shown_fidelity`.
        limits: Upper limits of costs by name.
        sort: One of `COLUMNS`.
        only_knee: Show the most balanced member alone.
        with_near: Show those as well that only noise keeps off the front.
    """

    objectives: tuple[str, ...] = ()
    fidelity: str | None = None
    limits: Mapping[str, float] = field(default_factory=dict)
    sort: str = "macs"
    only_knee: bool = False
    with_near: bool = False

    def __post_init__(self) -> None:
        if self.sort not in COLUMNS:
            raise ValueError(f"Cannot sort by {self.sort!r}. Columns: {', '.join(COLUMNS)}.")


def training_command(run: RunFolder, *members: object) -> str:
    """Say how networks are trained for good, with the teacher and the images of their search.

    Args:
        members: What names them: ``--arch``, an id, and so on.
    """
    settings = run.settings
    if settings.classifies:
        more = ("--unlabelled", settings.unlabelled) if settings.unlabelled else ()
        taught = ("--teacher", settings.taught_by) if _retrains_taught(settings) else ()
        return shell_command("search", "retrain", run.folder, *members, *taught, *more)
    options = ("--task", settings.task, "--data", settings.data, "--recipe", settings.trial_recipe)
    taught = ("--teacher", settings.taught_by) if settings.taught_by else ()
    return shell_command("search", "transfer", run.folder, *members, *options, *taught)


def _retrains_taught(settings: RunSettings) -> bool:
    """Tell whether the search had a teacher, and the full recipe says how to learn from one."""
    if not settings.taught_by:
        return False
    from supernet.recipes import load_recipe  # brings torch

    return load_recipe(settings.retrain_recipe).distillation is not None


def judged_by(run: RunFolder, query: FrontQuery) -> tuple[Candidate, ...]:
    """Return all candidates within the query's limits, with the chance of each to be on the front.

    Members of the front have a forecast of the full recipe, where the run knows enough for one.

    Raises:
        ValueError: If there are none.
    """
    objectives = query.objectives or run.settings.objectives
    limits = {**run.limits, **query.limits}
    trials = trials_of(run)
    found = judged_at(trials, fidelity=query.fidelity, objectives=objectives, limits=limits)
    return add_forecasts(add_probabilities(found, objectives), trials, epochs=recipe_epochs(run))


def recipe_epochs(run: RunFolder) -> int:
    """Return the epochs of the full recipe, as the run was planned; 0 where that is not known."""
    plan = run.state.plan
    return 0 if plan is None else plan.recipe_epochs


def trials_of(run: RunFolder) -> tuple[Trial, ...]:
    """Return a run's trials, with the latencies that `measure_latencies` has kept."""
    measured = run.state.latencies_ms

    def complete(trial: Trial) -> Trial:
        milliseconds = measured.get(trial.architecture_id)
        # What the run measured itself is compared with its own limits and results.
        if milliseconds is None or trial.measured.has("latency_ms"):
            return trial
        return replace(trial, measured=replace(trial.measured, latency_ms=milliseconds))

    return tuple(complete(trial) for trial in run.record.trials())


def measure_latencies(run: RunFolder, query: FrontQuery, *, device: str) -> None:
    """Time one image in each network that the query shows, and keep the medians with the run.

    They are those of this machine; measuring again replaces them.
    """
    from search.front.compare import Compared, with_latencies

    rows = choose_rows(
        judged_by(run, query), query, objectives=query.objectives or run.settings.objectives
    )
    compared = [Compared(name=str(row.id), architecture=row.architecture) for row in rows]
    found = {
        int(one.name): one.latency["all"].median_ms for one in with_latencies(compared, device)
    }
    run.state.add_latencies_ms(found)


def choose_rows(
    found: Sequence[Candidate], query: FrontQuery, *, objectives: Sequence[str]
) -> tuple[Candidate, ...]:
    """Pick and sort the rows of the table out of `judged_by`."""
    members = [c for c in found if c.on_front]
    if query.only_knee:
        return (members[knee(candidate_losses(members, objectives))],)
    rows = [c for c in found if c.on_front or (query.with_near and c.near_front)]
    value_of, largest_first = COLUMNS[query.sort]

    def place(candidate: Candidate) -> tuple[float, tuple[float, float, int]]:
        value = value_of(candidate)
        if value is None:
            return math.inf, by_macs(candidate)
        return -value if largest_first else value, by_macs(candidate)

    return tuple(sorted(rows, key=place))


def write_csv(path: Path, rows: Sequence[Candidate]) -> None:
    """Write rows as a CSV file, the architecture as JSON in one cell."""
    cells = [{**row, "architecture": json.dumps(row["architecture"])} for row in map(to_json, rows)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = DictWriter(file, fieldnames=list(cells[0]))
        writer.writeheader()
        writer.writerows(cells)


def front_view(run: RunFolder, query: FrontQuery) -> RenderableType:
    """Build the table and, below it, what it leaves out: a higher fidelity, networks near it."""
    found = judged_by(run, query)
    objectives = query.objectives or run.settings.objectives
    lines: list[RenderableType] = [front_table(choose_rows(found, query, objectives=objectives))]
    if query.fidelity is None and (passed := passed_over(run.record.trials())):
        lines.append(Text(passed))
    if (order := later_order(found)) is not None:
        lines.append(Text(order.sentence(recipe_epochs(run))))
    num_near = sum(candidate.near_front for candidate in found)
    if num_near and not query.with_near:
        them = "network is" if num_near == 1 else "networks are"
        near = f"{num_near} more {them} off the front by no more than noise: --near"
        lines.append(Text(near))
    return Group(*lines)


def watch(
    folder: Path,
    query: FrontQuery,
    console: Console,
    *,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Show the front again and again until the run is done or its process is gone.

    Args:
        folder: Of the run.
        query: What to show.
        console: Where.
        clock: Seconds since the epoch, as the file system has them.
        sleep: Waits between two looks.

    Returns:
        Why it ended.
    """
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            view, phase, silent = _look(folder, query, clock())
            live.update(Group(view, Text(f"phase: {phase}")), refresh=True)
            if phase == "done":
                return "The run is done."
            if silent > SILENT_SECONDS:
                return (
                    f"No process has worked on {folder} for {silent:.0f} seconds. "
                    f"Go on with: {shell_command('search', 'run', '--resume', '--out', folder)}"
                )
            sleep(REFRESH_SECONDS)


def _look(folder: Path, query: FrontQuery, now: float) -> tuple[RenderableType, str, float]:
    with open_run(folder) as run:
        phase = run.state.phase
        silent = run.record.silent_seconds(now)
        if not searched_fidelities(run.record.trials()):
            return Text("No network has been judged yet."), phase, silent
        return front_view(run, query), phase, silent
