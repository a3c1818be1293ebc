"""What `search pareto` shows: which networks, in which order, once or while the run goes on."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from csv import DictWriter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from configs.reading import read_json
from search.record import QUALITIES, Trial
from search.results import (
    Candidate,
    add_forecasts,
    add_probabilities,
    by_macs,
    candidate_losses,
    is_retraining,
    judged_at,
    knee,
    later_order,
    limits_text,
    passed_over,
    retraining_label,
    searched_fidelities,
    to_json,
)
from search.run_folder import RunFolder, RunSettings, open_run
from search.terminal import front_table, shell_command
from searchspace.architecture import Architecture
from searchspace.cost import count

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
# Networks that are timed in turn fit into this.
PARAMS_AT_A_TIME = 200_000_000
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
    """Return a run's trials as they are shown.

    Networks have the latencies that `measure_latencies` has kept. Retrained ones are as they were
    retrained, maybe for larger images and with larger windows, and so are their costs.
    """
    measured = run.state.latencies_ms

    def complete(trial: Trial) -> Trial:
        milliseconds = measured.get(trial.architecture_id)
        if is_retraining(trial.fidelity):
            return _as_retrained(run, trial)
        # What the run measured itself is compared with its own limits and results.
        if milliseconds is None or trial.measured.has("latency_ms"):
            return trial
        return replace(trial, measured=replace(trial.measured, latency_ms=milliseconds))

    return tuple(complete(trial) for trial in run.record.trials())


def _as_retrained(run: RunFolder, trial: Trial) -> Trial:
    """Put the network that a retraining has left in the place of the one that was searched."""
    label = retraining_label(trial.fidelity)
    path = run.retraining(trial.architecture_id, label, trial.seed) / "architecture.json"
    try:
        own = Architecture.from_dict(cast(dict[str, Any], read_json(path)))
    except (ValueError, KeyError, TypeError, AttributeError):
        return trial  # a folder that was removed, or spoilt, costs no table
    cost = count(own)
    return replace(trial, architecture=own, key=own.key, params=cost.params, macs=cost.macs)


def measure_latencies(run: RunFolder, query: FrontQuery, *, device: str) -> None:
    """Time one image in each network that the query shows, and keep the medians with the run.

    Where the query weighs the latency, that is each network that was judged at its fidelity. They
    are those of this machine; measuring again replaces them.

    Raises:
        ValueError: If the run has latencies of its own, which its front is made of.
    """
    from search.front.compare import Compared, with_latencies

    if "latency_ms" in run.settings.objectives:
        raise ValueError(
            "This run has weighed latencies of its own, and its front is made of those. To time "
            f"its networks here: {shell_command('search', 'latency', run.folder)}"
        )
    objectives = query.objectives or run.settings.objectives
    others = tuple(name for name in objectives if name != "latency_ms")
    found = judged_by(run, replace(query, objectives=others))
    if others == tuple(objectives):
        found = choose_rows(found, query, objectives=objectives)
    for group in _that_fit(found):
        compared = [Compared(name=str(c.id), architecture=c.architecture) for c in group]
        timed = with_latencies(compared, device)
        run.state.add_latencies_ms({int(one.name): one.latency["all"].median_ms for one in timed})


def _that_fit(found: Sequence[Candidate]) -> Iterator[list[Candidate]]:
    """Split networks into groups that are held in memory together."""
    group: list[Candidate] = []
    for one in found:
        if group and sum(c.params for c in group) + one.params > PARAMS_AT_A_TIME:
            yield group
            group = []
        group.append(one)
    yield group


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


def without_teacher(run: RunFolder, found: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Leave out the network that a graft began with: trained on, it is there to be compared with.

    Where nothing else is on the front all stay.
    """
    teacher = None if run.teacher is None else run.teacher.architecture.key
    new = tuple(one for one in found if one.key != teacher)
    return new if any(one.on_front for one in new) else tuple(found)


def front_view(run: RunFolder, query: FrontQuery) -> RenderableType:
    """Build the table and, below it, what it leaves out: a higher fidelity, networks near it."""
    found = judged_by(run, query)
    objectives = query.objectives or run.settings.objectives
    lines: list[RenderableType] = [front_table(choose_rows(found, query, objectives=objectives))]
    if any(candidate.latency_ms is not None for candidate in found):
        lines.append(Text(of_latency(run)))
    unknown = np.isnan(candidate_losses(found, objectives))
    for name, number in zip(objectives, (~unknown).sum(axis=0).tolist(), strict=True):
        if number < len(found):
            lines.append(
                Text(
                    f"{name} was measured for {number:,} of the {len(found):,} networks that were "
                    "judged; the others are on no front."
                )
            )
    if left_out := _beyond_limits(run, query, found):
        lines.append(Text(left_out))
    passed = passed_over(run.record.trials(), is_graft=bool(run.settings.teacher))
    if query.fidelity is None and passed:
        lines.append(Text(passed))
    if (order := later_order(found)) is not None:
        lines.append(Text(order.sentence(recipe_epochs(run))))
    num_near = sum(candidate.near_front for candidate in found)
    if num_near and not query.with_near:
        them = "network is" if num_near == 1 else "networks are"
        near = f"{num_near} more {them} off the front by no more than noise: --near"
        lines.append(Text(near))
    return Group(*lines)


def _beyond_limits(run: RunFolder, query: FrontQuery, found: Sequence[Candidate]) -> str:
    """Say how many networks limits leave out of a front; empty for none."""
    limits, fidelity = {**run.limits, **query.limits}, found[0].fidelity
    trials = run.record.trials(fidelity=fidelity)
    judged = {trial.architecture_id for trial in trials if trial.state == "done"}
    if not limits or len(judged) <= len(found):
        return ""
    return (
        f"{len(judged) - len(found):,} of the {len(judged):,} networks that were judged are not "
        f"within {limits_text(limits)}."
    )


def of_latency(run: RunFolder) -> str:
    """Say what the milliseconds of a table are of."""
    if "latency_ms" not in run.settings.objectives:
        return "ms: one image in eager torch, where search pareto --latency has measured it"
    times = run.state.times
    return run.settings.describe_latency((times and times.device_name) or "an unknown device")


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
    with (
        _ended_line(console),
        Live(console=console, auto_refresh=False, vertical_overflow="visible") as live,
    ):
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


@contextmanager
def _ended_line(console: Console) -> Iterator[None]:
    """End the last line of what is shown live; without a terminal rich does not."""
    yield
    if not console.is_terminal:
        console.print()


def _look(folder: Path, query: FrontQuery, now: float) -> tuple[RenderableType, str, float]:
    with open_run(folder) as run:
        phase = run.state.phase
        silent = run.record.silent_seconds(now)
        if not searched_fidelities(run.record.trials()):
            return Text("No network has been judged yet."), phase, silent
        return front_view(run, query), phase, silent
