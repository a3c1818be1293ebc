"""The parts of the report that need no script: text and tables as HTML, everything escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from search.importance import MIN_NETWORKS, Trait
from search.results import Candidate
from search.tables import describe_stages, format_chance, format_count, format_interval
from search.trust import MIN_POINTS, KendallTau
from searchspace.architecture import Architecture
from searchspace.mixers import (
    Elsa,
    InhomogeneousDepthwiseConv,
    NeighborhoodAttention,
    WindowAttention,
)

AXES = {
    "macs": "MACs",
    "params": "parameters",
    "latency_ms": "latency",
    "top1": "top-1 accuracy",
}
MOST_ROWS = 60
MOST_TRAITS = 10
SIGNIFICANT = 0.05

_ESTIMATORS = {
    "supernet": "accuracy with inherited weights",
    "params": "number of parameters",
    "macs": "MACs",
}


def header_section(title: str, facts: Mapping[str, str], notes: Sequence[str]) -> str:
    """Write the title, the facts (long ones over the whole width) and the notes."""
    wide = ' class="wide"'
    entries = "\n".join(
        f"<div{wide if len(value) > 40 else ''}><dt>{escape(name)}</dt>"
        f"<dd>{_code(value) if name == 'Command' else escape(value)}</dd></div>"
        for name, value in facts.items()
    )
    paragraphs = "\n".join(f"<p>{escape(note)}</p>" for note in notes)
    return f'<h1>{escape(title)}</h1>\n<dl class="facts">{entries}</dl>\n{paragraphs}'


def choose_section(fidelity: str, *, has_latency: bool) -> str:
    """Write the place where a limit on cost is answered by a network."""
    costs = {name: AXES[name] for name in ("macs", "params", *(["latency_ms"] * has_latency))}
    return f"""<h2>Which network to take?</h2>
<p class="quiet">The most accurate network within a limit, by what was judged at
{escape(fidelity)} ({escape(describe_fidelity(fidelity))}). Accuracies are drawn from their
intervals to say how sure that is.</p>
<div class="controls"><label>at most
<input type="text" id="limit" placeholder="e.g. 100M" inputmode="text" autocomplete="off"></label>
<label>{_select("limit-axis", costs)}</label></div>
<div id="answer"></div>"""


def front_section(
    judged: Mapping[str, Sequence[Candidate]],
    *,
    objectives: Sequence[str],
    published: Mapping[str, Any],
) -> str:
    """Write what the front says, and the chart's place and selectors.

    Args:
        judged: Candidates by fidelity; the front is that of the first.
        objectives: What the front weighs.
        published: `search.report_networks.published_payload`.
    """
    fidelity, top = next(iter(judged.items()))
    members = [c for c in top if c.on_front]
    best = max(members, key=lambda c: c.top1)
    smallest = min(members, key=lambda c: c.macs)
    num_near = sum(c.near_front for c in top)
    has_latency = any(c.latency_ms is not None for found in judged.values() for c in found)
    axes = {name: text for name, text in AXES.items() if name != "latency_ms" or has_latency}
    views = {name: f"{name}: {describe_fidelity(name)}" for name in judged}
    boxes = _check("show-alone", "one mixer everywhere")
    if any(network["same_scale"] for network in published["networks"]):
        boxes += _check("show-published", "the papers' networks")
    return f"""<h2>The front</h2>
<p>{_count(len(top), "network")} {"was" if len(top) == 1 else "were"} judged at
<b>{escape(fidelity)}</b> ({escape(describe_fidelity(fidelity))}); {len(members)} of them
{"is" if len(members) == 1 else "are"} on the front by
{escape(_enumerate([AXES[name] for name in objectives]))}.
The most accurate is {_point(best)}; the smallest is {_point(smallest)}.
{num_near} more {"is" if num_near == 1 else "are"} off the front by no more than noise.</p>
<div class="controls">
<label>judged by {_select("view", views)}</label>
<label>across {_select("x-axis", axes, chosen="macs")}</label>
<label>up {_select("y-axis", axes, chosen="top1")}</label>
{boxes}
</div>
<div id="front-chart" class="chart"></div>
<div id="chosen"><p class="quiet">Click or tap a network to see its stages here.</p></div>
<p class="quiet">Numbers beside the points are the networks' ids, where there is room; zoom in by
dragging for more, double-click to go back. Bars are 95 % intervals: from the number of images, and
from the spread between seeds where there are several. The fidelities are never mixed in one front.
The dotted line joins what is best in the two axes that are shown. In a drawing of a network each
row is a stage: its map in tokens and width in channels, its blocks, its share of the MACs.</p>"""


def members_section(members: Sequence[Candidate], *, fidelity: str, balanced: int, run: str) -> str:
    """Write the table of the front.

    Args:
        members: By rising MACs.
        fidelity: At which they were judged.
        balanced: Id of the knee.
        run: The run's folder, quoted for a shell.
    """
    has_latency = any(member.latency_ms is not None for member in members)
    names = ["id", "top-1 %", "sure", "MACs", "parameters", *(["ms"] if has_latency else [])]
    rows = []
    for member in members[:MOST_ROWS]:
        badge = ' <span class="badge">balanced</span>' if member.id == balanced else ""
        latency = "" if member.latency_ms is None else f"{member.latency_ms:.3g}"
        rows.append(
            [
                f"{member.id}{badge}",
                escape(format_interval(member)),
                escape(format_chance(member.front_probability)),
                format_count(member.macs),
                format_count(member.params),
                *([latency] if has_latency else []),
                _stages(member.architecture),
                f'<div class="command">{_code(f"search retrain {run} --arch {member.id}")}'
                "<button>copy</button></div>",
            ]
        )
    table = _table([*names, "mixers of the stages", "to retrain it"], rows, numbers=set(names[1:]))
    more = ""
    if len(members) > MOST_ROWS:
        more = (
            f'<p class="quiet">The first {MOST_ROWS} of {len(members)}; all of them: '
            f"{_code(f'search pareto {run}')}</p>"
        )
    return f"""<h2>Its members</h2>
<p class="quiet">Judged at {escape(fidelity)} on the search split. <i>Sure</i> is the chance that
the network is truly on the front, given the number of images. <i>Balanced</i> is the knee: the
least sum of losses, each scaled to the front's range.</p>
<p class="quiet">{escape(_mixer_legend(members))}</p>
{table}{more}"""


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
{_table(names, rows, numbers=set(names[1:5]))}
<div id="retrained-chart" class="chart"></div>"""


def spending_section(*, budget: str, spent: str, objectives: Sequence[str], has_curve: bool) -> str:
    """Write the places of the charts about the budget."""
    phases = f"""<div><h2>Where the time went</h2>
<p class="quiet">{escape(spent)} of {escape(budget)} spent. Retraining is charged apart.</p>
<div id="phases-chart" class="chart"></div></div>"""
    if not has_curve:
        return phases
    costs = _enumerate([AXES[name] for name in objectives if name != "top1"])
    return f"""<div class="half">
<div><h2>The front as the budget was spent</h2>
<p class="quiet">Hypervolume of each fidelity's front, as a share of the box up to 100 % error and
1.1 times the largest {escape(costs)}. It compares points in time, not fidelities.</p>
<div id="hypervolume-chart" class="chart"></div></div>
{phases}</div>"""


def trust_section(taus: Mapping[str, KendallTau]) -> str:
    """Write how well each estimator ranks networks, and say where inherited weights do not help."""
    rows = [
        [escape(_ESTIMATORS.get(name, name)), *_tau_cells(tau), str(tau.num_points)]
        for name, tau in taus.items()
    ]
    options = {name: _ESTIMATORS.get(name, name) for name in taus}
    names = ("estimator", "Kendall's tau", "95 % interval", "networks")
    return f"""<h2>Can the estimates be trusted?</h2>
<p>Networks that span the space were trained alone; tau says how well each estimator had ranked
them, from 1 (the same order) over 0 (no relation) to -1.</p>
{_warning(taus)}
<div class="half"><div>{_table(names, rows, numbers=set(names[1:]))}</div>
<div><div class="controls"><label>across {_select("estimate", options)}</label></div>
<div id="trust-chart" class="chart"></div></div></div>"""


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
<div class="controls"><label>judged by {_select("importance-view", views)}</label></div>
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
    scales = _enumerate(
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
<details><summary>{_count(len(rows), "published network")}</summary>
{_table(names, rows, numbers=set(names[1:5]))}</details>"""


def describe_fidelity(fidelity: str) -> str:
    """Say what a fidelity means: ``train-3e`` is "trained alone for 3 epochs"."""
    if fidelity == "supernet":
        return "with inherited weights"
    kind, _, amount = fidelity.partition("-")
    epochs = amount.removesuffix("e")
    if kind == "train" and epochs.isdecimal():
        return f"trained alone for {_count(int(epochs), 'epoch')}"
    return fidelity


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
{_count(len(traits), "choice")}; {sure} of them {"is" if sure == 1 else "are"}. A front has cheap
members as well, so a cheap choice may be common on it without being accurate.</p>
{_table(names, rows, numbers=set(names[1:]))}"""


def _check(name: str, text: str) -> str:
    return f'<label><input type="checkbox" id="{name}"> {escape(text)}</label>'


def _tau_cells(tau: KendallTau) -> tuple[str, str]:
    if tau.tau is None:
        return "undefined", "all values are equal"
    if tau.low is None or tau.high is None:
        return f"{tau.tau:.2f}", "too few networks"
    return f"{tau.tau:.2f}", f"{tau.low:.2f} to {tau.high:.2f}"


def _point(candidate: Candidate) -> str:
    return (
        f"network {candidate.id} ({format_interval(candidate)} %, "
        f"{format_count(candidate.macs)} MACs)"
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _enumerate(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _mixer_legend(members: Sequence[Candidate]) -> str:
    """Explain the short names of the mixers that occur, and their settings."""
    mixers = [m for c in members for stage in c.architecture.stages for m in stage.mixers]
    names = sorted({f"{mixer.short} {mixer.kind.replace('_', ' ')}" for mixer in mixers})
    settings = ["the number behind it is its size in tokens", "h heads"]
    kinds = {mixer.kind for mixer in mixers}
    if kinds & {WindowAttention.kind, NeighborhoodAttention.kind}:
        settings.append("qk, qr, rk, b the terms where they are not qk+b")
        settings.append("fn filter normalisation and id none instead of softmax")
    if InhomogeneousDepthwiseConv.kind in kinds:
        settings.append("g groups")
    if Elsa.kind in kinds:
        settings.append("l and g of elsa lambda and gamma where they are not 0 and 1")
    if any(stage.mlp_ratio != 4 for c in members for stage in c.architecture.stages):
        settings.append("m the ratio of the MLP where it is not 4")
    return f"{', '.join(names)}; {', '.join(settings)}."


def _stages(architecture: Architecture) -> str:
    return "".join(
        f'<span class="stage"><b>{number}</b>{escape(mixers)}</span>'
        for number, mixers in enumerate(describe_stages(architecture))
    )


def _code(text: str) -> str:
    """Write a command, which breaks between its words and not inside of ``--arch``."""
    words = " ".join(f"<span>{escape(word)}</span>" for word in text.split(" "))
    return f"<code>{words}</code>"


def _select(name: str, options: Mapping[str, str], *, chosen: str | None = None) -> str:
    entries = "".join(
        f'<option value="{escape(value)}"{" selected" if value == chosen else ""}>'
        f"{escape(text)}</option>"
        for value, text in options.items()
    )
    return f'<select id="{name}">{entries}</select>'


def _table(names: Iterable[str], rows: Iterable[Sequence[str]], *, numbers: set[str]) -> str:
    """Write a table of cells that are HTML already; on a phone each row becomes a card."""
    names = tuple(names)
    kinds = [' class="number"' if name in numbers else "" for name in names]
    head = "".join(f"<th{k}>{escape(n)}</th>" for n, k in zip(names, kinds, strict=True))
    body = "\n".join(
        "<tr>"
        + "".join(
            f'<td{kind} data-label="{escape(name)}"><div>{cell}</div></td>'
            for name, kind, cell in zip(names, kinds, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f'<table class="cards"><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>'
