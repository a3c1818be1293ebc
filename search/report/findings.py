"""The findings of the report: what matters, what was spent, what can be trusted, retraining."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from search.report.elements import count_of, enumerate_words, select_box, table
from search.report.sections import AXES, describe_fidelity
from search.results.candidates import Candidate
from search.results.importance import MIN_NETWORKS, Trait
from search.terminal.tables import format_count, format_interval
from search.trust.ranking import MIN_POINTS, KendallTau, TrustReport

MOST_TRAITS = 10
SIGNIFICANT = 0.05

_ESTIMATORS = {
    "supernet": "accuracy with inherited weights",
    "params": "number of parameters",
    "macs": "MACs",
}


def retrained_section(final: Sequence[Candidate], searched: Sequence[Candidate]) -> str:
    """Write retrained beside searched accuracies."""
    before = {candidate.id: candidate for candidate in searched}
    names = ("id", "searched %", "retrained %", "MACs", "parameters", "recipe")
    rows = [
        [
            str(c.id),
            escape(format_interval(before[c.id])) if c.id in before else "not at this fidelity",
            escape(format_interval(c)),
            format_count(c.macs),
            format_count(c.params),
            escape(c.fidelity.removeprefix("retrain-")),
        ]
        for c in final
    ]
    return f"""<h2>Searched and retrained</h2>
<p>Retraining uses the full recipe on the train and search splits, and reads the test split once.
Searched accuracies are of the search split.</p>
{table(names, rows, numbers=set(names[1:5]))}
<div id="retrained-chart" class="chart"></div>"""


def spending_section(*, budget: str, spent: str, objectives: Sequence[str], has_curve: bool) -> str:
    """Write the places of the charts about the budget."""
    phases = f"""<div><h2>Where the time went</h2>
<p class="quiet">{escape(spent)} of {escape(budget)} spent. Retraining is charged apart.</p>
<div id="phases-chart" class="chart"></div></div>"""
    if not has_curve:
        return phases
    costs = enumerate_words([AXES[name] for name in objectives if name != "top1"])
    return f"""<div class="half">
<div><h2>The front as the budget was spent</h2>
<p class="quiet">Hypervolume of each fidelity's front, as a share of the box up to 100 % error and
1.1 times the largest {escape(costs)}. It compares points in time, not fidelities.</p>
<div id="hypervolume-chart" class="chart"></div></div>
{phases}</div>"""


def trust_section(report: TrustReport) -> str:
    """Write how well each estimator ranks networks, and what the run judged by for that reason."""
    rows = [
        [
            escape(_ESTIMATORS.get(estimator.name, estimator.name)),
            *_tau_cells(estimator.tau),
            *_tau_cells(estimator.top_tau),
        ]
        for estimator in report.estimators
    ]
    options = {e.name: _ESTIMATORS.get(e.name, e.name) for e in report.estimators}
    names = ("estimator", "Kendall's tau", "95 % interval", "in the top third", "its interval")
    taus = {estimator.name: estimator.tau for estimator in report.estimators}
    return f"""<h2>Can the estimates be trusted?</h2>
<p>{count_of(len(report.points), "network")} that span the space were trained alone; tau says how
well each estimator had ranked them, from 1 (the same order) over 0 (no relation) to -1.
{escape(report.verdict)}</p>
{_warning(taus)}
{table(names, rows, numbers=set(names[1:]))}
<div class="controls"><label>across {select_box("estimate", options)}</label></div>
<div id="trust-chart" class="chart"></div>"""


def choices_section(studies: Sequence[Mapping[str, Any]], traits: Sequence[Trait]) -> str:
    """Write which choices matter: importance, what the front has in common, its mixers."""
    importance = f"""<p class="quiet">Needs {MIN_NETWORKS} networks at one fidelity.</p>"""
    if studies:
        views = {
            study["fidelity"]: f"{study['fidelity']}: {describe_fidelity(study['fidelity'])}"
            for study in studies
        }
        importance = f"""<p class="quiet">For the accuracy of all networks, good and bad: how much
worse it is predicted when a choice is shuffled. A mixer is shuffled with its settings, a setting
among networks with the same mixer there.</p>
<div class="controls"><label>judged by {select_box("importance-view", views)}</label></div>
<div id="importance-chart" class="chart"></div>
<p id="importance-note" class="quiet"></p>"""
    return f"""<h2>Which choices matter</h2>
{importance}
<h3>What the front's members have in common</h3>
{_traits_table(traits)}
<h3>Their mixers</h3>
<p class="quiet">Share of each stage's blocks, for the members of the front and for all networks
that were judged at any fidelity.</p>
<div id="mixers-chart" class="chart"></div>"""


def published_section(published: Mapping[str, Any]) -> str:
    """Write the papers' networks for reference, and whether they compare with the run's."""
    networks = published["networks"]
    names = ("network", "MACs", "parameters", "pixels", "ImageNet top-1 %", "source")
    rows = [
        [
            escape(n["name"]),
            format_count(n["macs"]),
            format_count(n["params"]),
            str(n["img_size"]),
            f"{n['top1']:.1f}",
            escape(n["source"]),
        ]
        for n in sorted(networks, key=lambda n: n["macs"])
    ]
    scales = enumerate_words(
        [f"{size} pixels and {classes} classes" for size, classes in published["scales"]]
    )
    comparable = any(network["same_scale"] for network in networks)
    said = (
        "Those of the same image size can be shown in the chart above; their accuracies are of "
        "ImageNet-1k after the full recipe, so compare them only with retrained networks."
        if comparable
        else f"This run's networks have {scales}: another scale, so these are not in the chart. "
        "Tick <i>one mixer everywhere</i> there for the papers' mixers at this run's scale."
    )
    return f"""<h2>The papers' networks</h2>
<p class="quiet">{said}</p>
<details><summary>{count_of(len(rows), "published network")}</summary>
{table(names, rows, numbers=set(names[1:5]))}</details>"""


def _warning(taus: Mapping[str, KendallTau]) -> str:
    supernet = taus.get("supernet")
    if supernet is None:
        return ""
    if supernet.num_points < MIN_POINTS:
        return (
            f'<p class="warning">Too few networks to say: {supernet.num_points}, and an interval '
            f"needs {MIN_POINTS}. A larger budget trains more.</p>"
        )
    others = [t.tau for name, t in taus.items() if name != "supernet" and t.tau is not None]
    if others and (supernet.tau is None or supernet.tau <= max(others)):
        return (
            '<p class="warning">Here inherited weights rank networks no better than their size '
            "does. Believe only what was trained alone.</p>"
        )
    if supernet.low is not None and supernet.low <= 0:
        return (
            '<p class="warning">The interval of inherited weights includes 0: their ranking may '
            "be chance.</p>"
        )
    return ""


def _tau_cells(tau: KendallTau) -> tuple[str, str]:
    if tau.tau is None:
        return "undefined", "all values are equal"
    if tau.low is None or tau.high is None:
        return f"{tau.tau:.2f}", "too few networks"
    return f"{tau.tau:.2f}", f"{tau.low:.2f} to {tau.high:.2f}"


def _traits_table(traits: Sequence[Trait]) -> str:
    shown = [trait for trait in traits if trait.front][:MOST_TRAITS]
    if not shown:
        return '<p class="quiet">Nothing tells them apart from the rest.</p>'
    sure = sum(trait.p_value < SIGNIFICANT for trait in traits)
    rows = [
        [
            escape(f"{trait.place}: {trait.setting} {trait.value}"),
            f"{trait.front} of {trait.num_front}",
            f"{trait.front / trait.num_front:.0%}",
            f"{trait.rest / trait.num_rest:.0%}" if trait.num_rest else "",
            "yes" if trait.p_value < SIGNIFICANT else "no",
        ]
        for trait in shown
    ]
    names = ("choice", "members", "on the front", "among the rest", "beyond chance")
    return f"""<p class="quiet">Beyond chance: Fisher's exact test, corrected for
{count_of(len(traits), "choice")}; {sure} of them {"is" if sure == 1 else "are"}. A front has cheap
members as well, so a cheap choice may be common on it without being accurate.</p>
{table(names, rows, numbers=set(names[1:]))}"""
