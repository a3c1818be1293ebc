"""What the first sections of the report say: which network to take, the front, its members."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from search.results import (
    MEASURED,
    QUALITY_WORDS,
    Candidate,
    by_macs,
    candidate_losses,
    describe_fidelity,
    knee,
)
from search.terminal import format_count
from searchspace.architecture import differ_in_dims
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
QUALITY_AXES = {"top1": "top-1 accuracy", "miou": "mIoU", "ap_mask": "mask AP", "ap_box": "box AP"}
UNITS = {"latency_ms": "ms", "memory_mib": "MiB"}
MOST_ROWS = 60
Columns = Sequence[tuple[str, bool]]


def front_content(
    judged: Mapping[str, Sequence[Candidate]],
    *,
    objectives: Sequence[str],
    limits: Mapping[str, float] | None = None,
    described: Callable[[str], str] = describe_fidelity,
) -> dict[str, Any]:
    """Gather what `front.html` shows.

    Args:
        judged: Candidates by fidelity; the front is that of the first.
        objectives: What the front weighs.
        limits: Of costs, which all candidates keep to.
        described: Says in words what a fidelity is.
    """
    fidelity, top = next(iter(judged.items()))
    members = sorted((c for c in top if c.on_front), key=by_macs)
    of_all = _measured([c for found in judged.values() for c in found])
    measured = _measured(members)
    units = [UNITS[name] for name in measured]
    full_epochs = max((c.forecast.epochs for c in members if c.forecast is not None), default=0)
    return {
        "fidelity": fidelity,
        "full_epochs": full_epochs,
        "found": top,
        "members": members,
        "best": max(members, key=lambda c: c.top1),
        "balanced": members[knee(candidate_losses(members, objectives))].id,
        "limits": limits_text(limits or {}),
        "num_near": sum(c.near_front for c in top),
        "objectives": enumerate_words([axis_name(name) for name in objectives]),
        "costs": {name: AXES[name] for name in ("macs", "params", *_measured(top))},
        "axes": {
            name: QUALITY_AXES[top[0].measure] if name == "top1" else text
            for name, text in AXES.items()
            if name not in MEASURED or name in of_all
        },
        "views": {name: f"{name}: {described(name)}" for name in judged},
        "legend": _mixer_legend(top),
        "measured": measured,
        "columns": columns(
            (
                *("id", f"{QUALITY_WORDS[top[0].measure]} %", "sure"),
                *(["in full %"] if full_epochs else []),
                *("MACs", "parameters", *units),
            ),
            words=("id", "mixers of the stages", "to retrain it"),
        ),
        "with_dims": differ_in_dims(member.architecture for member in members),
        "most_rows": MOST_ROWS,
    }


def axis_name(objective: str) -> str:
    """Name what an objective weighs."""
    return QUALITY_AXES.get(objective) or AXES[objective]


def limits_text(limits: Mapping[str, float]) -> str:
    """Write limits of costs: ``latency of 3 ms``, ``100M MACs``."""
    return enumerate_words(
        [
            f"{AXES[name]} of {most:g} {UNITS[name]}"
            if name in UNITS
            else f"{format_count(int(most))} {AXES[name]}"
            for name, most in limits.items()
        ]
    )


def columns(names: Sequence[str], *, words: Sequence[str] = ()) -> Columns:
    """Return a table's columns: names, and whether numbers stand there.

    Args:
        names: In order.
        words: Those with words; the ones that are not among the names follow them.
    """
    more = [name for name in words if name not in names]
    return [(name, name not in words) for name in (*names, *more)]


def enumerate_words(words: Sequence[str]) -> str:
    """Write ``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


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
    if any(set(s.ratios) != {4.0} for c in members for s in c.architecture.stages):
        settings.append("m the ratio of the MLP where it is not 4")
    if differ_in_dims(c.architecture for c in members):
        settings.append("c the channels of the stage")
    return f"{', '.join(names)}; {', '.join(settings)}."


def _measured(found: Sequence[Candidate]) -> list[str]:
    """Name the costs that were measured of some of the candidates."""
    return [name for name in MEASURED if any(getattr(c, name) is not None for c in found)]
