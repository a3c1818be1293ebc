"""What a run ends with: the front on the terminal, the report, the pictures, the next commands."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from configs.reading import read_yaml
from search.front import (
    FrontQuery,
    choose_rows,
    judged_by,
    of_latency,
    recipe_epochs,
    training_command,
    trials_of,
    without_teacher,
)
from search.grafting import ESTIMATES, KL
from search.plan import PHASES
from search.record import Trial
from search.report import page as report
from search.report.backbones import find_backbones
from search.report.grafts import GraftStory
from search.results import (
    SUPERNET,
    ZERO_COST,
    Candidate,
    beyond_limits,
    later_order,
    losses_of,
    mixing_gains,
    passed_over,
    retrained,
    searched_fidelities,
)
from search.run_folder import OPTIONS, RunFolder, is_disk_full
from search.sampling import Mirror
from search.terminal import front_table, shell_command, what_more_buys
from search.trust import (
    COSTS,
    PREDICTOR,
    HorizonReport,
    horizon_report,
    report_of,
    sampled_fidelity,
)

EXTRACTION_TOLERANCE = 1e-5
MIRROR = "study.db"


def print_closing(run: RunFolder, console: Console, *, is_stopped: bool = False) -> bool:
    """Print the front, what the extraction check found, what was spent, and what to type next.

    Args:
        run: Whose front.
        console: Where.
        is_stopped: Whether the run goes on with the budget that it has, which the caller says.

    Returns:
        Whether there is a front.
    """
    trials = trials_of(run)
    if (lacking := _without_front(run, trials)) is not None:
        more = (
            " Go on with a larger budget: "
            f"{shell_command('search', 'run', '--resume', '--out', run.folder)} --budget AMOUNT"
        )
        said = f"{lacking}: {_spending(run)}.{'' if is_stopped else more}"
        console.print(said, highlight=False, soft_wrap=True)
        return False
    found = judged_by(run, FrontQuery())
    members = choose_rows(found, FrontQuery(), objectives=run.settings.objectives)
    console.print(front_table(members, retrained=retrained(trials)))
    passed = passed_over(trials, is_graft=bool(run.settings.teacher))
    for note in (
        *((passed,) if passed else ()),
        *_notes(run),
        *_mixing_lines(run, found),
        *_trust_lines(run),
        *_horizon_lines(run),
    ):
        console.print(note, highlight=False, soft_wrap=True)
    best = max(without_teacher(run, members), key=lambda member: member.top1)
    # On a full disk there may be none.
    page = f"Report: {run.report}\n" * run.report.is_file()
    console.print(
        f"Budget: {_spending(run)}.\n{page}\n"
        f"Next:\n  {shell_command('search', 'pareto', run.folder)}\n"
        f"  {training_command(run, '--arch', best.id)}",
        soft_wrap=True,
    )
    return True


def _without_front(run: RunFolder, trials: Sequence[Trial]) -> str | None:
    """Say why a run has no front to show; None where it has one."""
    if not searched_fidelities(trials):
        return "No network has been judged"
    return beyond_limits(trials, run.limits)


def _spending(run: RunFolder) -> str:
    asked, spent = run.settings.parsed_budget.amount_seconds, run.state.spent
    return f"{spent:.1f} of {asked:.1f} device-seconds spent ({spent / asked:.1%})"


def write_report(run: RunFolder, console: Console) -> bool:
    """Write the report, the picture of the front and Optuna's copy of the study.

    Returns:
        False, after saying so, if they do not fit on the disk; those before are left.
    """
    try:
        update_mirror(run)
        if _without_front(run, trials_of(run)) is None:
            found = judged_by(run, FrontQuery())
            export_front(run, found=found, html=run.report, png=run.folder / "front.png")
    except Exception as error:
        if not is_disk_full(error, run.folder):
            raise
        console.print(
            f"The report of {run.folder} cannot be written: its disk is full. Free some space.",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        return False
    return True


def update_mirror(run: RunFolder) -> None:
    """Bring ``study.db`` up to date, for optuna-dashboard."""
    try:
        _fill_mirror(run)
    except Exception as error:
        if is_disk_full(error, run.folder):
            raise
        # SQLite, its tables and what stands in them may be damaged in every way, or of an earlier
        # fidelity. All of it is a copy of what the record has, so it is made anew.
        for name in (MIRROR, f"{MIRROR}-journal"):
            (run.folder / name).unlink(missing_ok=True)
        _fill_mirror(run)


def _fill_mirror(run: RunFolder) -> None:
    space, objectives = run.space(), run.settings.objectives
    fidelity = sampled_fidelity(run.record, strategy=run.settings.strategy)
    judged = run.record.trials(fidelity=fidelity, state="done")
    results = [(t.architecture, values) for t in judged if (values := losses_of(t, objectives))]
    name = run.folder.resolve().name
    with Mirror(run.folder / MIRROR, name=name, losses=objectives) as mirror:
        mirror.add(space, results)


def export_front(
    run: RunFolder,
    *,
    found: Sequence[Candidate],
    html: Path | None,
    png: Path | None,
) -> None:
    """Write the front in the formats that a path is given for.

    Args:
        run: Of the report, which always shows the whole run.
        found: All candidates of the front's fidelity, for the picture.
        html, png: Where to write; None leaves it out.
    """
    if html is not None:
        report.write_report(html, _report_data(run))
    if png is not None:
        title = f"{run.folder.resolve().name} ({found[0].fidelity})"
        report.front_png(png, found, title=title, teacher=_teacher_point(run, found))


def _report_data(run: RunFolder) -> report.ReportData:
    trials, more = trials_of(run), what_more_buys(run.state)
    by_phase = run.record.spent_by_phase()
    return report.ReportData(
        name=run.folder.resolve().name,
        run=str(run.folder),
        command=_commands(run),
        space=_searched(run),
        data=run.settings.data,
        seed=run.settings.seed,
        objectives=run.settings.objectives,
        limits=run.limits,
        strategy=run.settings.strategy,
        budget=run.settings.parsed_budget,
        spent_seconds=run.state.spent,
        spent_by_phase=by_phase,
        trials=trials,
        charges=run.record.charges(PHASES),
        backbones=find_backbones(trials, run.folder),
        graft=story_of(run, trials),
        taught_by=run.settings.taught_by,
        training=_around_the_id(training_command(run, "--arch", 0)),
        trust=report_of(run.record, seed=run.settings.seed, strategy=run.settings.strategy),
        horizon=_horizon(run),
        recipe_epochs=recipe_epochs(run),
        notes=(*_notes(run), *([] if more is None else [f"{more}."])),
    )


def story_of(run: RunFolder, trials: Sequence[Trial]) -> GraftStory | None:
    """Gather what the report of a graft tells; None of any other run."""
    teacher = run.teacher
    if teacher is None:
        return None
    return GraftStory(
        name=run.settings.graft_from, teacher=teacher.architecture, trials=tuple(trials)
    )


def _searched(run: RunFolder) -> str:
    settings = run.settings
    if not settings.teacher:
        return settings.space
    more = f"; also on {settings.unlabelled_line}" if settings.unlabelled_line else ""
    return f"blocks of {settings.graft_from}; mixers: {settings.space}{more}"


def _teacher_point(run: RunFolder, found: Sequence[Candidate]) -> tuple[str, float, float] | None:
    """Return the label, the MACs and the accuracy of a graft's teacher.

    Where it was not trained on as the others were, that is the teacher as it is.
    """
    teacher = run.teacher
    if teacher is None:
        return None
    trials = run.record.trials(state="done")
    trained = [t for t in trials if t.key == teacher.architecture.key and t.measured.has("top1")]
    own = {t.fidelity: t for t in trained}
    known = own.get(found[0].fidelity, own.get(SUPERNET))
    if known is None:
        return None
    label = "the teacher, as it is" if known.fidelity == SUPERNET else "the teacher"
    return label, known.macs, known.measured.top1


def _around_the_id(command: str) -> tuple[str, str]:
    before, arch, behind = command.partition("--arch 0")
    return before + arch.removesuffix("0"), behind


def _commands(run: RunFolder) -> str:
    """Return what was typed; a larger budget came with another command."""
    command, budget = run.settings.command, run.settings.budget
    if _first_budget(run) in (None, budget):
        return command
    return (
        f"{command} && "
        f"{shell_command('search', 'run', '--resume', '--out', run.folder, '--budget', budget)}"
    )


def _first_budget(run: RunFolder) -> str | None:
    """Return the budget that the run was begun with: of its command, or of a file of options."""
    words = [word for typed in shlex.split(run.settings.command) for word in typed.split("=", 1)]
    if "--budget" in words[:-1]:
        return words[words.index("--budget") + 1]
    try:
        options = read_yaml(run.folder / OPTIONS)
    except ValueError:  # an older run has none, and a spoilt one costs no report
        return None
    return str(options.get("budget")) if isinstance(options, dict) else None


def _mixing_lines(run: RunFolder, found: Sequence[Candidate]) -> list[str]:
    """Say whether mixing paid; of a graft, whose networks of one mixer are its teacher, nothing."""
    if run.settings.teacher:
        return []
    return [
        f"{gain.sentence()} Of many mixes the best has had some luck: retrain both before you "
        "believe it."
        if gain.low > 0
        else gain.sentence()
        for gain in mixing_gains(found)[-1:]
    ]


def _notes(run: RunFolder) -> Iterator[str]:
    if run.settings.taught_by:
        yield (
            f"All trainings of this run learned from {run.settings.taught_by}: those of runs "
            "without this teacher are no measure of them."
        )
    checked = run.state.extraction_errors
    found = judged_by(run, FrontQuery()) if checked else ()
    members = [one for one in found if one.on_front]
    errors = [checked[member.id] for member in members if member.id in checked]
    if run.settings.teacher and checked:
        worst = max(checked.values())
        yield f"With nothing replaced the graft is its teacher: largest difference {worst:.1e}."
    elif errors:
        worst = max(errors)
        is_same = "as inside the supernet" if worst <= EXTRACTION_TOLERANCE else "DIFFERENT"
        which = f"each of the {len(errors)} networks of the front gives"
        if len(errors) < len(members):
            which = f"{len(errors)} of the {len(members)} networks of the front give"
        what = "logits" if run.settings.classifies else "predictions"
        yield f"Extracted, {which} {what} {is_same}: largest difference {worst:.1e}."
    if "latency_ms" in run.settings.objectives:
        yield of_latency(run)


def _horizon(run: RunFolder) -> HorizonReport | None:
    """Compare the orders at all lengths of training; None where there is too little for that."""
    trials = run.record.trials()
    if not searched_fidelities(trials):
        return None
    return horizon_report(
        trials,
        recipe_epochs=recipe_epochs(run),
        order=later_order(judged_by(run, FrontQuery())),
        rng=np.random.default_rng(run.settings.seed),
    )


def _horizon_lines(run: RunFolder) -> Iterator[str]:
    report = _horizon(run)
    if report is not None:
        yield from report.sentences()


def _trust_lines(run: RunFolder) -> Iterator[str]:
    report = report_of(run.record, seed=run.settings.seed, strategy=run.settings.strategy)
    if report is None:
        return
    shown = (SUPERNET, PREDICTOR, *COSTS)
    for estimator in report.estimators:
        tau = estimator.tau
        is_shown = estimator.name in (*shown, *ESTIMATES, KL) or run.settings.strategy == ZERO_COST
        # Of too few networks for an interval, the order of two or three, nothing is said.
        if is_shown and tau.tau is not None and tau.low is not None:
            name, truth = estimator.name, "training alone"
            if run.settings.teacher:
                name = "accuracy as assembled" if name == SUPERNET else name
                truth = "healing"
            yield (
                f"Ranking by {name} against {truth}: Kendall tau {tau.tau:.2f} "
                f"(95 % {tau.low:.2f} to {tau.high:.2f}) over {tau.num_points} networks."
            )
    yield report.verdict
