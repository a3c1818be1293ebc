"""The first sections of the report: the facts, which network to take, the front, its members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from search.report.elements import check_box, code, count_of, enumerate_words, select_box, table
from search.results.candidates import Candidate
from search.results.objectives import MEASURED
from search.terminal.tables import describe_stages, format_chance, format_count, format_interval
from searchspace.architecture import Architecture, differ_in_dims
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
    "memory_mib": "peak memory",
    "top1": "top-1 accuracy",
}
UNITS = {"latency_ms": "ms", "memory_mib": "MiB"}
MOST_ROWS = 60


def header_section(title: str, facts: Mapping[str, str], notes: Sequence[str]) -> str:
    """Write the title, the facts (long ones over the whole width) and the notes."""
    wide = ' class="wide"'
    entries = "\n".join(
        f"<div{wide if len(value) > 40 else ''}><dt>{escape(name)}</dt>"
        f"<dd>{code(value) if name == 'Command' else escape(value)}</dd></div>"
        for name, value in facts.items()
    )
    paragraphs = "\n".join(f"<p>{escape(note)}</p>" for note in notes)
    return f'<h1>{escape(title)}</h1>\n<dl class="facts">{entries}</dl>\n{paragraphs}'


def choose_section(fidelity: str, top: Sequence[Candidate]) -> str:
    """Write the place where a limit on cost is answered by a network.

    Args:
        fidelity: The highest.
        top: Its candidates.
    """
    costs = {name: AXES[name] for name in ("macs", "params", *_measured(top))}
    return f"""<h2>Which network to take?</h2>
<p>The most accurate within a limit, by what was judged at <b>{escape(fidelity)}</b>
({escape(describe_fidelity(fidelity))}). A full retraining raises all accuracies and may change
their order.</p>
<div class="controls"><label>at most
<input type="text" id="limit" placeholder="e.g. 100M" inputmode="text" autocomplete="off"></label>
<label>{select_box("limit-axis", costs)}</label></div>
<div id="answer"></div>
<p class="quiet">{escape(_mixer_legend(top))} How sure: true accuracies are drawn from their 95 %
intervals, many times.</p>"""


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
        published: `search.report.networks.published_payload`.
    """
    fidelity, top = next(iter(judged.items()))
    members = [c for c in top if c.on_front]
    best = max(members, key=lambda c: c.top1)
    smallest = min(members, key=lambda c: c.macs)
    num_near = sum(c.near_front for c in top)
    measured = _measured([c for found in judged.values() for c in found])
    axes = {name: text for name, text in AXES.items() if name not in MEASURED or name in measured}
    views = {name: f"{name}: {describe_fidelity(name)}" for name in judged}
    boxes = check_box("show-alone", "one mixer everywhere")
    if any(network["same_scale"] for network in published["networks"]):
        boxes += check_box("show-published", "the papers' networks")
    return f"""<h2>The front</h2>
<p>{count_of(len(top), "network")} {"was" if len(top) == 1 else "were"} judged at
<b>{escape(fidelity)}</b> ({escape(describe_fidelity(fidelity))}); {len(members)} of them
{"is" if len(members) == 1 else "are"} on the front by
{escape(enumerate_words([AXES[name] for name in objectives]))}.
The most accurate is {_point(best)}; the smallest is {_point(smallest)}.
{num_near} more {"is" if num_near == 1 else "are"} off the front by no more than noise.</p>
<div class="controls">
<label>judged by {select_box("view", views)}</label>
<label>across {select_box("x-axis", axes, chosen="macs")}</label>
<label>up {select_box("y-axis", axes, chosen="top1")}</label>
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
    measured = _measured(members)
    names = ["id", "top-1 %", "sure", "MACs", "parameters", *(UNITS[name] for name in measured)]
    rows = []
    with_dims = differ_in_dims(member.architecture for member in members)
    for member in members[:MOST_ROWS]:
        badge = ' <span class="badge">balanced</span>' if member.id == balanced else ""
        costs = [getattr(member, name) for name in measured]
        rows.append(
            [
                f"{member.id}{badge}",
                escape(format_interval(member)),
                escape(format_chance(member.front_probability)),
                format_count(member.macs),
                format_count(member.params),
                *("" if cost is None else f"{cost:.3g}" for cost in costs),
                _stages(member.architecture, with_dims),
                f'<div class="command">{code(f"search retrain {run} --arch {member.id}")}'
                "<button>copy</button></div>",
            ]
        )
    names, numbers = [*names, "mixers of the stages", "to retrain it"], set(names[1:])
    more = ""
    if len(members) > MOST_ROWS:
        more = (
            f'<p class="quiet">The first {MOST_ROWS} of {len(members)}; all of them: '
            f"{code(f'search pareto {run}')}</p>"
        )
    return f"""<h2>Its members</h2>
<p class="quiet">Judged at {escape(fidelity)} on the search split. <i>Sure</i> is the chance that
the network is truly on the front, given the number of images. <i>Balanced</i> is the knee: the
least sum of losses, each scaled to the front's range.</p>
{table(names, rows, numbers=numbers)}{more}"""


def describe_fidelity(fidelity: str) -> str:
    """Say what a fidelity means: ``train-3e`` is "trained alone for 3 epochs"."""
    if fidelity == "supernet":
        return "with inherited weights"
    kind, _, amount = fidelity.partition("-")
    epochs = amount.removesuffix("e")
    if kind == "train" and epochs.isdecimal():
        return f"trained alone for {count_of(int(epochs), 'epoch')}"
    return fidelity


def _point(candidate: Candidate) -> str:
    return (
        f"network {candidate.id} ({format_interval(candidate)} %, "
        f"{format_count(candidate.macs)} MACs)"
    )


def _mixer_legend(members: Sequence[Candidate]) -> str:
    """Explain the short names of the mixers that occur, and their settings."""
    mixers = [m for c in members for stage in c.architecture.stages for m in stage.mixers]
    kinds = {mixer.kind: mixer.short for mixer in mixers}
    names = sorted(
        short if short == kind else f"{short} {kind.replace('_', ' ')}"
        for kind, short in kinds.items()
    )
    settings = ["the number behind it is its size in tokens", "h heads"]
    if any(stage.depth > 1 for c in members for stage in c.architecture.stages):
        settings.insert(0, "2x two such blocks")
    if kinds.keys() & {WindowAttention.kind, NeighborhoodAttention.kind}:
        settings.append("qk, qr, rk, b the terms where they are not qk+b")
        settings.append("fn filter normalisation and id none instead of softmax")
    if InhomogeneousDepthwiseConv.kind in kinds:
        settings.append("g groups")
    if Elsa.kind in kinds:
        settings.append("l and g of elsa lambda and gamma where they are not 0 and 1")
    if any(stage.mlp_ratio != 4 for c in members for stage in c.architecture.stages):
        settings.append("m the ratio of the MLP where it is not 4")
    if differ_in_dims(c.architecture for c in members):
        settings.append("c the channels of the stage")
    return f"{', '.join(names)}; {', '.join(settings)}."


def _stages(architecture: Architecture, with_dims: bool) -> str:
    return "".join(
        f'<span class="stage"><b>{number}</b>{escape(mixers)}</span>'
        for number, mixers in enumerate(describe_stages(architecture, with_dims=with_dims))
    )


def _measured(found: Sequence[Candidate]) -> list[str]:
    """Name the costs that were measured of some of the candidates."""
    return [name for name in MEASURED if any(getattr(c, name) is not None for c in found)]
