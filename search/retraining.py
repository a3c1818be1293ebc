"""``search retrain``: the chosen members of a run through the full recipe, charged on their own.

Each network trains on one device (CPU: its share of the cores), several at a time, as Ray tasks.
Everything that a training needs to go on lies in its folder, so stopping is dropping the tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from search.executor import Cluster, take_finished
from search.heartbeat import Heartbeat
from search.progress import StopSignals, clock_text
from search.record import Trial
from search.retrain import RetrainOptions, retrain
from search.run_folder import RunFolder
from searchspace.architecture import describe
from supernet.intervals import wilson_interval
from supernet.recipe import Recipe, load_recipe, with_epochs
from supernet.training import METRICS_FILE

PHASE = "retrain"


@dataclass(slots=True)
class _Training:
    trial: Trial
    attempt: int
    out: Path
    epochs: int
    epochs_shown: int = 0


def retrain_members(
    run: RunFolder,
    ids: Sequence[int],
    *,
    recipe: str | None,
    epochs: int | None,
    seeds: Sequence[int],
    console: Console,
    ray_address: str | None = None,
) -> str | None:
    """Retrain networks of a run; what was finished before is not repeated, what was begun goes on.

    Args:
        ids: Ids of the run's networks.
        recipe: Name or file; None takes the run's.
        epochs: Instead of the recipe's.
        seeds: Of weights and data order; every network is trained with each of them.
        ray_address: A Ray cluster to join; None uses this machine.

    Returns:
        The name of the signal that stopped it, or None.

    Raises:
        ValueError: If an id or the recipe is unknown.
    """
    plan = load_recipe(recipe or run.settings.retrain_recipe)
    if epochs is not None:
        plan = with_epochs(plan, epochs)
    fidelity = f"retrain-{plan.name}-{plan.total_epochs}e"
    for number in ids:
        run.architecture(number)
    run.record.close_orphans()
    queue = []
    for number in ids:
        for seed in seeds:
            trial_id = run.record.add_trial(number, fidelity=fidelity, seed=seed, origin=PHASE)
            trial = run.record.trial(trial_id)
            if trial.state in ("done", "failed"):
                console.print(f"Network {number}, seed {seed}: {_result_text(trial)}")
            else:
                queue.append(trial)
    if not queue:
        return None
    device = run.settings.parsed_budget.device
    with (
        Cluster(device=device, address=ray_address) as cluster,
        Heartbeat(run.record),
        StopSignals() as stop,
    ):
        _work_off(run, cluster, queue, plan, stop, console)
        return stop.requested


def _work_off(
    run: RunFolder,
    cluster: Cluster,
    queue: list[Trial],
    recipe: Recipe,
    stop: StopSignals,
    console: Console,
) -> None:
    """Keep every device busy until the queue is empty or the user stops."""
    is_gpu = run.settings.parsed_budget.device == "gpu"
    threads = 4 if is_gpu else max(cluster.devices // len(queue), 1)
    slots = cluster.devices if is_gpu else cluster.devices // threads
    running: dict[Any, _Training] = {}
    while (queue or running) and not stop.requested:
        while queue and len(running) < slots:
            trial = queue.pop(0)
            out = run.folder / PHASE / _folder_name(trial, recipe)
            options = RetrainOptions(
                out=out.resolve(),
                seed=trial.seed,
                device="cuda" if is_gpu else "cpu",
                threads=threads,
            )
            attempt = run.record.start_attempt(
                PHASE, devices=1 if is_gpu else threads, trial_id=trial.id
            )
            reference = cluster.submit(
                retrain, trial.architecture, run.data(), recipe, options, threads=threads
            )
            running[reference] = _Training(trial, attempt, out, recipe.total_epochs)
            text = f"{describe(trial.architecture)}, {recipe.total_epochs} epochs of {recipe.name}"
            _say(console, trial, text)
        for reference, result, cause in take_finished(list(running)):
            training = running.pop(reference)
            if result is None:
                run.record.finish_attempt(training.attempt, outcome="failed", cause=cause)
            else:
                accuracy = result.accuracy
                values = {"top1": accuracy.top1, "correct": accuracy.correct}
                values["total"] = accuracy.total
                run.record.finish_attempt(training.attempt, outcome="done", values=values)
            _say(console, training.trial, _result_text(run.record.trial(training.trial.id)))
        for training in running.values():
            _show_epochs(console, training)
    for training in running.values():
        run.record.finish_attempt(training.attempt, outcome="interrupted")


def _folder_name(trial: Trial, recipe: Recipe) -> str:
    return f"{trial.architecture_id}-{recipe.name}-{recipe.total_epochs}e-s{trial.seed}"


def _show_epochs(console: Console, training: _Training) -> None:
    """Say where a training stands, when its metrics have grown."""
    metrics = training.out / METRICS_FILE
    if not metrics.is_file():
        return
    names, *rows = (line.split(",") for line in metrics.read_text().splitlines())
    if len(rows) == training.epochs_shown:
        return
    training.epochs_shown = len(rows)
    epochs = [dict(zip(names, row, strict=True)) for row in rows]
    mean_seconds = sum(float(epoch["seconds"]) for epoch in epochs) / len(epochs)
    left = clock_text(mean_seconds * (training.epochs - len(epochs)))
    loss = float(epochs[-1]["loss"])
    text = f"epoch {len(epochs)} of {training.epochs}, loss {loss:.3f}, {left} left"
    _say(console, training.trial, text)


def _say(console: Console, trial: Trial, text: str) -> None:
    console.print(
        f"Network {trial.architecture_id}, seed {trial.seed}: {text}",
        highlight=False,
        soft_wrap=True,
    )


def _result_text(trial: Trial) -> str:
    if trial.state != "done":
        return f"{trial.state}: {trial.cause}"
    values = trial.values
    low, high = wilson_interval(int(values["correct"]), int(values["total"]))
    return (
        f"{values['top1']:.2f} % of {values['total']:,.0f} test images "
        f"(95 % interval {low:.1f} to {high:.1f})"
    )
