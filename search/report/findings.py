"""What the later sections of the report say: what matters, what can be trusted, retraining."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from search.grafting import ESTIMATES, KL, PAIRS, SUM
from search.report.sections import columns, enumerate_words
from search.results import SUPERNET, Candidate, MixingGain, describe_fidelity, retraining_label
from search.results.importance import MIN_NETWORKS, Trait
from search.terminal import format_count, format_interval
from search.trust import COSTS, MIN_POINTS, PREDICTOR, HorizonReport, KendallTau, TrustReport
from searchspace.architecture import describe

MOST_TRAITS = 10
SIGNIFICANT = 0.05

_ESTIMATORS = {
    SUPERNET: "accuracy with inherited weights",
    SUM: "sum of the parts' scores",
    PAIRS: "that sum, with pairs",
    KL: "KL of the logits, as assembled",
    "params": "number of parameters",
    "macs": "MACs",
}


def retrained_content(
    final: Sequence[Candidate], searched: Sequence[Candidate]
) -> dict[str, Any] | None:
    """Set retrained beside searched accuracies; None where nothing was retrained."""
    before = {candidate.id: candidate for candidate in searched}
    rows = [
        (
            c.id,
            format_interval(before[c.id]) if c.id in before else "not at this fidelity",
            format_interval(c),
            format_count(c.macs),
            format_count(c.params),
            retraining_label(c.fidelity),
        )
        for c in final
    ]
    names = ("id", "searched %", "retrained %", "MACs", "parameters", "recipe")
    return {"columns": columns(names, words=("id", "recipe")), "rows": rows} if rows else None


def trust_content(report: TrustReport | None) -> dict[str, Any] | None:
    """Say how well each estimator ranks networks, and what the run judged by for that reason.

    Of fewer networks than an interval needs, nothing but that is said.
    """
    if report is None:
        return None
    names = ("estimator", "Kendall's tau", "95 % interval", "in the top third", "its interval")
    estimators = {e.name: _ESTIMATORS.get(e.name, e.name) for e in report.estimators}
    if SUPERNET in estimators and estimators.keys() & {*ESTIMATES, KL}:
        estimators[SUPERNET] = "accuracy as assembled"
    return {
        "is_enough": len(report.points) >= MIN_POINTS,
        "least": MIN_POINTS,
        "num_networks": len(report.points),
        "verdict": report.verdict,
        "warning": _warning({estimator.name: estimator.tau for estimator in report.estimators}),
        "estimators": estimators,
        "columns": columns(names, words=("estimator",)),
        "rows": [
            (estimators[e.name], *_tau_cells(e.tau), *_tau_cells(e.top_tau))
            for e in report.estimators
        ],
    }


def mixing_content(gains: Sequence[MixingGain]) -> dict[str, Any]:
    """Set the best networks of one mixer beside mixes that cost no more, and sum it up."""
    names = (
        "one kind of mixer",
        "%",
        "MACs",
        "best mix",
        "its %",
        "its MACs",
        "difference",
        "95 %",
    )
    return {
        "sentence": gains[-1].sentence() if gains else "",
        "columns": columns(names, words=(names[0], "best mix")),
        "rows": [(*_network_cells(one.single), *_mix_cells(one)) for one in gains],
    }


def _network_cells(one: Candidate) -> tuple[str, str, str]:
    named = f"{one.id}: {describe(one.architecture)}"
    return named, format_interval(one), format_count(one.macs)


def _mix_cells(gain: MixingGain) -> tuple[str, ...]:
    if gain.mixed is None:
        return "none with so few MACs", "", "", "", ""
    interval = f"{gain.low:+.1f} to {gain.high:+.1f}"
    return *_network_cells(gain.mixed), f"{gain.difference:+.1f}", interval


def horizon_content(report: HorizonReport | None) -> dict[str, Any] | None:
    """Say how the ranking changes with epochs, and whether forecasts are worth anything."""
    if report is None:
        return None
    names = ("epochs alone", "Kendall's tau", "95 % interval", "networks")
    return {
        "longest": report.longest,
        "recipe_epochs": report.recipe_epochs,
        "num_kinds": report.num_kinds,
        "is_of_all": report.is_of_all,
        "turns": report.order is not None and report.order.is_likely_to_turn,
        "sentences": tuple(report.outlook()),
        "columns": columns(names),
        "rows": [
            (rung.epochs, *_tau_cells(rung.tau), rung.tau.num_points) for rung in report.rungs
        ],
    }


def choices_content(
    studies: Sequence[Mapping[str, Any]],
    traits: Sequence[Trait],
    *,
    described: Callable[[str], str] = describe_fidelity,
) -> dict[str, Any]:
    """Say which choices matter: importance, and what the front has in common.

    Args:
        studies: One for each fidelity.
        traits: Of the front.
        described: Says in words what a fidelity is.
    """
    rows = [
        (
            f"{trait.place}: {trait.setting} {trait.value}",
            f"{trait.front} of {trait.num_front}",
            f"{trait.front / trait.num_front:.0%}",
            f"{trait.rest / trait.num_rest:.0%}" if trait.num_rest else "",
            "yes" if trait.p_value < SIGNIFICANT else "no",
        )
        for trait in traits
        if trait.front
    ]
    names = ("choice", "members", "on the front", "among the rest", "beyond chance")
    fidelities = [study["fidelity"] for study in studies]
    return {
        "views": {name: f"{name}: {described(name)}" for name in fidelities},
        "least": MIN_NETWORKS,
        "num_traits": len(traits),
        "num_sure": sum(trait.p_value < SIGNIFICANT for trait in traits),
        "columns": columns(names, words=("choice",)),
        "rows": rows[:MOST_TRAITS],
    }


def published_content(published: Mapping[str, Any]) -> dict[str, Any]:
    """List the papers' networks for reference, and whether they compare with the run's."""
    rows = [
        (
            n["name"],
            format_count(n["macs"]),
            format_count(n["params"]),
            n["img_size"],
            f"{n['top1']:.1f}",
            n["source"],
        )
        for n in sorted(published["networks"], key=lambda n: n["macs"])
    ]
    scales = [f"{size} pixels and {classes} classes" for size, classes in published["scales"]]
    names = ("network", "MACs", "parameters", "pixels", "ImageNet top-1 %", "source")
    return {
        "is_comparable": any(network["same_scale"] for network in published["networks"]),
        "scales": enumerate_words(scales),
        "columns": columns(names, words=("network", "source")),
        "rows": rows,
    }


def _warning(taus: Mapping[str, KendallTau]) -> str:
    """Warn of inherited weights; a graft has none, and its verdict says what can be trusted."""
    supernet = taus.get(SUPERNET)
    if supernet is None or taus.keys() & {*ESTIMATES, KL}:
        return ""
    # A predictor has learned from trainings: that it is better is no reason to doubt.
    rivals = {
        name: tau.tau
        for name, tau in taus.items()
        if name not in (SUPERNET, PREDICTOR) and tau.tau is not None
    }
    best = max(rivals, key=lambda name: rivals[name], default=None)
    if best is not None and (supernet.tau is None or supernet.tau <= rivals[best]):
        what = "their size" if best in COSTS else best
        return (
            f"Here inherited weights rank networks no better than {what} does. Believe only "
            "what was trained alone."
        )
    low, high = supernet.low, supernet.high
    if low is not None and high is not None and low <= 0 <= high:
        return "The interval of inherited weights includes 0: their ranking may be chance."
    return ""


def _tau_cells(tau: KendallTau) -> tuple[str, str]:
    if tau.tau is None:
        return "undefined", "all values are equal"
    if tau.low is None or tau.high is None:
        return f"{tau.tau:.2f}", "too few networks"
    return f"{tau.tau:.2f}", f"{tau.low:.2f} to {tau.high:.2f}"
