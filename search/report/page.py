"""The report of a run: one HTML file that works offline, and a picture of the front."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
from plotly.offline import get_plotlyjs

from search.budget import Budget, format_seconds
from search.record import Trial
from search.report.backbones import Backbone, backbones_content
from search.report.findings import (
    choices_content,
    horizon_content,
    mixing_content,
    published_content,
    retrained_content,
    trust_content,
)
from search.report.grafts import GraftStory, graft_content, teacher_payload
from search.report.networks import networks_payload, published_payload
from search.report.payload import (
    Charge,
    best_payload,
    chart_unit,
    horizon_payload,
    hypervolume_payload,
    importance_payload,
    judged_candidates,
    mixers_payload,
    phases_payload,
    retrained_payload,
    trust_payload,
    view_payload,
)
from search.report.sections import (
    AXES,
    QUALITY_AXES,
    axis_name,
    enumerate_words,
    front_content,
    limits_text,
)
from search.results import (
    QUALITY_WORDS,
    Candidate,
    best_singles,
    by_macs,
    describe_fidelity,
    is_within,
    mixing_gains,
    non_dominated,
    passed_over,
    retrained,
)
from search.results.importance import front_traits
from search.terminal import (
    describe_stages,
    format_chance,
    format_count,
    format_forecast,
    format_interval,
    format_measured,
)
from search.trust import HorizonReport, TrustReport
from searchspace import durable

PAGE = Path(__file__).parent / "assets"
SCRIPTS = ("base.js", "network.js", "front.js", "choose.js", "charts.js", "main.js")
# Okabe and Ito's blue, vermilion and green, and a grey; the report's style sheet has the same.
FRONT, NEAR, OTHER, SINGLE = "#0072b2", "#d55e00", "#8c959f", "#009e73"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportData:
    """What a report is written from.

    Attributes:
        name: Of the run, for the title.
        run: The folder as commands name it.
        command: What the user typed.
        space: Name of what was searched.
        data: Name of the images.
        objectives: What the front weighs, see `search.results.candidates.OBJECTIVES`.
        limits: Upper limits of costs by name; networks beyond them are left out.
        spent_seconds: Device-seconds charged to the budget.
        spent_by_phase: Device-seconds, in the order of the phases.
        trials: All of the run.
        charges: (started, ended, devices) of what was charged to the budget; without them there is
            no chart of the hypervolume over the budget.
        strategy: What networks were judged by, see `search.plan.SHARES`.
        trust: Agreement of each estimator with training alone; None before there is any.
        notes: Sentences to show below the facts, e.g. what checks found.
        backbones: Networks that were trained as backbones of detectors and segmenters.
        horizon: How the ranking changes with epochs; None where that is not known.
        recipe_epochs: Of the full recipe; 0 where they are not known.
        graft: Of a graft, what its section tells; else None.
        taught_by: Whom all trainings learned from; empty for nobody.
        training: What trains a network for good, in front of its id and behind; empty takes
            `search retrain`.
    """

    name: str
    run: str
    command: str
    space: str
    data: str
    seed: int
    objectives: tuple[str, ...]
    budget: Budget
    spent_seconds: float
    spent_by_phase: Mapping[str, float]
    trials: tuple[Trial, ...]
    charges: tuple[Charge, ...] = ()
    strategy: str = "supernet"
    trust: TrustReport | None = None
    notes: tuple[str, ...] = ()
    backbones: tuple[Backbone, ...] = ()
    graft: GraftStory | None = None
    taught_by: str = ""
    limits: Mapping[str, float] = field(default_factory=dict)
    training: tuple[str, str] = ("", "")
    horizon: HorizonReport | None = None
    recipe_epochs: int = 0


def write_report(path: Path, report: ReportData) -> None:
    """Write the report as one HTML file; nothing in it is loaded from elsewhere.

    Raises:
        ValueError: If nothing has been judged yet.
    """
    judged = judged_candidates(
        report.trials,
        report.objectives,
        recipe_epochs=report.recipe_epochs,
        limits=report.limits,
    )
    payload = _payload(report, judged)
    # A "<" in the data would let it end the script element.
    data = json.dumps(payload, separators=(",", ":")).replace("<", "\\u003c")
    content = _content(report, judged, payload)
    page = (
        _environment(_described_in(report))
        .get_template("page.html")
        .render(
            **content,
            # All else is escaped.
            css=Markup((PAGE / "page.css").read_text(encoding="utf-8")),
            payload_json=Markup(data),
            plotly=Markup(get_plotlyjs()),
            script=Markup("\n".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS)),
        )
    )
    durable.write_text(path, page)


def front_png(
    path: Path,
    candidates: Sequence[Candidate],
    *,
    title: str = "",
    teacher: tuple[str, float, float] | None = None,
) -> None:
    """Draw accuracy over MACs: the front with its intervals, the other candidates behind it.

    Args:
        path: Where to write the PNG.
        candidates: Of one fidelity, on the front or not.
        title: Above the picture; empty for none.
        teacher: Of the network that a graft began with: its label, MACs, accuracy in percent.
    """
    figure = Figure(figsize=(7.2, 4.5), layout="constrained")
    axes = figure.subplots()
    members = sorted((c for c in candidates if c.on_front), key=by_macs)
    styles = (
        (False, "judged", "o", OTHER),
        (True, "off the front by noise only", "D", NEAR),
    )
    for is_near, label, marker, color in styles:
        group = [c for c in candidates if not c.on_front and c.near_front == is_near]
        if group:
            macs, top1 = [c.macs for c in group], [c.top1 for c in group]
            axes.scatter(
                macs, top1, label=label, marker=marker, s=18, edgecolors=color, facecolors="none"
            )
    if singles := best_singles(candidates):
        macs, top1 = [c.macs for c in singles], [c.top1 for c in singles]
        label = "one kind of mixer everywhere, the best"
        axes.scatter(
            macs, top1, label=label, marker="s", s=60, edgecolors=SINGLE, facecolors="none"
        )
    axes.errorbar(
        [c.macs for c in members],
        [c.top1 for c in members],
        yerr=[[c.top1 - c.low for c in members], [c.high - c.top1 for c in members]],
        label="on the front",
        color=FRONT,
        fmt="o",
        elinewidth=0.8,
        capsize=2,
    )
    line = best_in_plane(candidates)
    # By MACs and accuracy it joins the front's members; a front by other costs has others.
    axes.plot(
        [c.macs for c in line],
        [c.top1 for c in line],
        label="_" if line == members else "best in these axes",
        color=FRONT,
        drawstyle="steps-post",
        linewidth=1.2,
    )
    if teacher is not None:
        label, cost, reached = teacher
        axes.scatter(cost, reached, label=label, marker="*", s=120, color=NEAR, zorder=3)
    axes.set_xlabel("MACs")
    measure = candidates[0].measure if candidates else "top1"
    axes.set_ylabel(f"{QUALITY_AXES[measure]} (%)")
    costs = [c.macs for c in candidates]
    # Costs that span more than a decade would stand in a heap at the left.
    if costs and max(costs) > 10 * min(costs):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside lower center", ncols=3)
    if title:
        axes.set_title(title, loc="left", fontsize="medium", parse_math=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=160)
    durable.write_bytes(path, picture.getvalue())


def best_in_plane(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return those that none beats in accuracy at no more MACs, by rising MACs."""
    losses = np.array([(-c.top1, c.macs) for c in candidates], dtype=float).reshape(-1, 2)
    return sorted(compress(candidates, non_dominated(losses)), key=by_macs)


def _payload(report: ReportData, judged: Mapping[str, Sequence[Candidate]]) -> dict[str, Any]:
    unit, unit_seconds = chart_unit(report.budget)
    top = next(iter(judged.values()))
    everything = {c.id: c for found in judged.values() for c in found}
    rows = {number: row for row, number in enumerate(everything)}
    architectures = [c.architecture for c in everything.values()]
    within = [t for t in report.trials if t.state != "done" or is_within(t, report.limits)]
    curves = [
        hypervolume_payload(
            within,
            report.charges,
            fidelity=fidelity,
            objectives=report.objectives,
            unit_seconds=unit_seconds,
        )
        for fidelity in (judged if report.charges else ())
    ]
    return {
        "run": shlex.quote(report.run),
        "training": _training(report),
        "measure": QUALITY_WORDS[top[0].measure],
        "accuracy": QUALITY_AXES[top[0].measure],
        "unit": unit,
        "networks": networks_payload(everything),
        "views": [view_payload(fidelity, found, rows) for fidelity, found in judged.items()],
        "best": best_payload(top),
        "published": published_payload(architectures),
        "retrained": retrained_payload(report.trials, top),
        "teacher": teacher_payload(report.graft),
        "hypervolume": curves,
        "phases": phases_payload(report.spent_by_phase, unit_seconds),
        "trust": trust_payload(report.trust),
        "horizon": horizon_payload(report.trials, top),
        "mixers": mixers_payload([c.architecture for c in top if c.on_front], architectures),
        "importance": importance_payload(judged, seed=report.seed),
    }


def _training(report: ReportData) -> tuple[str, str]:
    before, behind = report.training
    return before or f"search retrain {shlex.quote(report.run)} --arch ", behind


def _described_in(report: ReportData) -> Callable[[str], str]:
    """Return what says in words how networks were judged at a fidelity of this run."""
    return partial(describe_fidelity, is_graft=report.graft is not None)


def _environment(described: Callable[[str], str]) -> Environment:
    """Return what fills the templates: it escapes everything, and refuses names without a value."""
    environment = Environment(
        loader=FileSystemLoader(PAGE),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "chance": format_chance,
        "forecast": format_forecast,
        "count": format_count,
        "described": described,
        "interval": format_interval,
        "measured": _measured_cell,
        "stages": lambda c, with_dims: describe_stages(c.architecture, with_dims=with_dims),
    }
    return environment


def _content(
    report: ReportData, judged: Mapping[str, Sequence[Candidate]], payload: Mapping[str, Any]
) -> dict[str, Any]:
    """Gather what the templates show."""
    top = next(iter(judged.values()))
    members = {c.id: c.architecture for c in top if c.on_front}
    everything = {c.id: c.architecture for found in judged.values() for c in found}
    rest = [one for number, one in everything.items() if number not in members]
    return {
        "title": f"Pareto front of {report.name}",
        "run": payload["run"],
        "training": payload["training"],
        "facts": _facts(report, judged),
        "notes": report.notes,
        "front": front_content(
            judged,
            objectives=report.objectives,
            limits=report.limits,
            described=_described_in(report),
        ),
        # The networks of one mixer of a graft are its teacher, narrowed.
        "mixing": mixing_content(() if report.graft else mixing_gains(top)),
        "passed": passed_over(report.trials, is_graft=report.graft is not None),
        "choices": choices_content(
            payload["importance"],
            front_traits(list(members.values()), rest),
            described=_described_in(report),
        ),
        "retrained": retrained_content(retrained(report.trials), top),
        "backbones": backbones_content(report.backbones, [*top, *retrained(report.trials)]),
        "spending": {
            "has_curve": bool(payload["hypervolume"]),
            "costs": enumerate_words([AXES[n] for n in report.objectives if n not in QUALITY_AXES]),
        },
        "trust": trust_content(report.trust),
        "horizon": horizon_content(report.horizon),
        "published": published_content(payload["published"]),
        "graft": graft_content(report.graft, sorted((c for c in top if c.on_front), key=by_macs)),
    }


def _measured_cell(candidate: Candidate, name: str) -> str:
    return format_measured(getattr(candidate, name))


def _facts(report: ReportData, judged: Mapping[str, Sequence[Candidate]]) -> dict[str, str]:
    asked, device = report.budget.amount_seconds, report.budget.device
    described = _described_in(report)
    return {
        "Searched": report.space,
        "Images": report.data,
        **({"Teacher": report.taught_by} if report.taught_by else {}),
        "Strategy": report.strategy,
        "Objectives": ", ".join(axis_name(name) for name in report.objectives),
        **({"Limits": limits} if (limits := limits_text(report.limits)) else {}),
        "Budget": format_seconds(asked, device),
        "Spent": f"{format_seconds(report.spent_seconds, device)} "
        f"({report.spent_seconds / asked:.1%})",
        "Seed": str(report.seed),
        "Networks judged": "; ".join(
            f"{len(found):,} {described(fidelity)}" for fidelity, found in judged.items()
        )
        + (", within the limits" if report.limits else ""),
        "Command": report.command,
    }
