"""What the report of a graft says: the teacher, what each member replaced, which blocks matter."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from search.grafting import ESTIMATES, GraftScores, graft_scores, is_assembled
from search.record import Trial
from search.report.payload import as_written
from search.report.sections import columns
from search.results import SUPERNET, Candidate
from search.terminal import format_count
from search.trust import KendallTau, kendall_tau_interval
from searchspace.architecture import Architecture
from searchspace.cost import count
from searchspace.graft_space import Replacement, replacements, with_replacements
from searchspace.mixer_text import describe_mixer
from searchspace.mixers import (
    Elsa,
    GlobalAttention,
    Mixer,
    NeighborhoodAttention,
    OutlookAttention,
    WindowAttention,
)

# ELSA and outlook attention generate their weights, but each position has its own.
ATTENTION = (WindowAttention, NeighborhoodAttention, GlobalAttention, Elsa, OutlookAttention)
# A block does without attention where the best replacement moves the logits by less than this.
SMALL_KL = 0.02
# Smaller scores are all one colour: they are noise.
LEAST_KL = 1e-4
MOST_NAMED = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class GraftStory:
    """What a graft's report is written from.

    Attributes:
        name: Of the trained network, as it was asked for.
        teacher: Its architecture.
        trials: All of the run.
    """

    name: str
    teacher: Architecture
    trials: tuple[Trial, ...]

    @property
    def scores(self) -> GraftScores:
        """The scores of all parts."""
        return graft_scores(self.trials, self.teacher)


def graft_content(story: GraftStory | None, members: Sequence[Candidate]) -> dict[str, Any] | None:
    """Gather what the page shows of a graft; None of any other run.

    Args:
        story: Of the graft.
        members: Of the front that is shown.
    """
    if story is None or not story.scores.singles:
        return None
    picture = blocks_png(story)
    names = ("id", "replaced", "accuracy lost", "MACs saved", "KL from the teacher")
    return {
        "name": story.name,
        "teacher": teacher_line(story),
        "columns": columns(names, words=("replaced",)),
        "rows": [_row(story, member) for member in members],
        "attention": attention_line(story),
        "picture": f"data:image/png;base64,{base64.b64encode(picture).decode('ascii')}",
        "assembled": assembled_lines(story),
    }


def teacher_line(story: GraftStory) -> str:
    """Say what the teacher is and what it reaches."""
    cost = count(story.teacher)
    found = [t for t in story.trials if t.key == story.teacher.key and t.state == "done"]
    plain = next((t for t in found if t.fidelity == SUPERNET), None)
    said = f"{story.name}: {format_count(cost.macs)} MACs, {format_count(cost.params)} parameters"
    if plain is None:
        return f"{said}."
    return f"{said}; network {plain.architecture_id}, {plain.measured.top1:.1f} % as it is."


def teacher_payload(story: GraftStory | None) -> dict[str, Any] | None:
    """Say where the chart draws the teacher; None of any other run, or before it was judged.

    ``as_it_is`` is for the fidelities that it was not trained on at.
    """
    found = [] if story is None else [t for t in story.trials if t.key == story.teacher.key]
    done = [trial for trial in found if trial.state == "done"]
    if not done:
        return None
    plain = next((trial for trial in done if trial.fidelity == SUPERNET), None)
    point = None
    if plain is not None:
        top1 = as_written(plain.measured.top1)
        point = {"top1": top1, "macs": plain.macs, "params": plain.params}
    return {"id": done[0].architecture_id, "as_it_is": point}


def attention_line(story: GraftStory) -> str:
    """Say which blocks of attention do without it, by the scores of the parts alone."""
    needs: list[str] = []
    free: list[str] = []
    for place, best in _best_without_attention(story).items():
        (free if best < SMALL_KL else needs).append(f"{place[0]}.{place[1]}")
    if not needs and not free:
        return "The teacher has no block of attention."
    return (
        f"Blocks of attention that a mixer without it can replace at a KL below {SMALL_KL:g}: "
        f"{', '.join(free) or 'none'}. Blocks that need it: {', '.join(needs) or 'none'}. "
        "A block is written as stage.block."
    )


def assembled_lines(story: GraftStory) -> list[str]:
    """Say how well the sums rank networks that were assembled and judged as they are."""
    scores = story.scores
    judged = [
        trial
        for trial in story.trials
        if is_assembled(trial) and len(replacements(story.teacher, trial.architecture)) > 1
    ]
    rows = [(scores.estimates(trial.architecture), trial) for trial in judged]
    known = [(estimates, trial) for estimates, trial in rows if estimates]
    if len(known) < 2:
        return []
    lines = []
    columns_of: dict[str, list[float]] = {
        **{name: [estimates[name] for estimates, _ in known] for name in ESTIMATES},
        "parameters": [float(trial.params) for _, trial in known],
        "MACs": [float(trial.macs) for _, trial in known],
    }
    quality = [-trial.measured.kl for _, trial in known]
    for name, values in columns_of.items():
        tau = kendall_tau_interval(values, quality, rng=np.random.default_rng(0))
        lines.append(
            f"Ranking by {name} against the KL of assembled networks: {_tau_text(tau)} over "
            f"{tau.num_points} networks."
        )
    return lines


def blocks_png(story: GraftStory) -> bytes:
    """Draw what each replacement costs in each block: KL in nats, and MACs saved below it."""
    grid, rows, places = _grid(story)
    number = len(rows)
    figure = Figure(
        figsize=(max(2.2 + 1.15 * len(places), 4.5), 1.5 + 0.34 * number), layout="constrained"
    )
    axes = figure.subplots()
    high = max(float(np.nanmax(grid)), 10 * LEAST_KL)
    image = axes.imshow(
        np.clip(grid, LEAST_KL, None),
        cmap="cividis_r",
        norm=LogNorm(LEAST_KL, high),
        aspect="auto",
    )
    saved = _saved(story, rows, places)
    for (row, column), value in np.ndenumerate(grid):
        if math.isnan(value):
            is_own = _is_own(story, rows[row], places[column])
            axes.text(column, row, "own" if is_own else "", ha="center", va="center", fontsize=7)
            continue
        dark = value > math.sqrt(LEAST_KL * high)
        text = f"{value:.3f}  {round(float(saved[row, column])):+d} %"
        axes.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            fontsize=6.5,
            color="white" if dark else "black",
        )
    axes.set_xticks(range(len(places)), [f"{stage}.{block}" for stage, block in places])
    axes.set_yticks(range(number), rows)
    axes.tick_params(length=0, labelsize=8)
    axes.set_xlabel("block of the teacher (stage.block)")
    axes.spines[:].set_visible(False)
    axes.set_title(
        "One replacement alone:\nKL of the logits (nats), change of all MACs",
        loc="left",
        fontsize="medium",
    )
    figure.colorbar(image, ax=axes, label="KL (nats)", shrink=0.8)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=160)
    return picture.getvalue()


def _row(story: GraftStory, member: Candidate) -> tuple[Any, ...]:
    found = replacements(story.teacher, member.architecture)
    named = [_short(one) for one in found[:MOST_NAMED]]
    more = [f"and {len(found) - MOST_NAMED} more"] if len(found) > MOST_NAMED else []
    teacher = count(story.teacher).macs
    kl = next(
        (t.measured.kl for t in story.trials if t.key == member.key and is_assembled(t)), None
    )
    return (
        member.id,
        "; ".join([*named, *more]) or "nothing: the teacher",
        _lost(story, member),
        f"{100 * (1 - member.macs / teacher):.0f} %",
        "" if kl is None else f"{kl:.3f}",
    )


def _lost(story: GraftStory, member: Candidate) -> str:
    """Say how many points a member is below the teacher at the same fidelity, if that is known."""
    same = [t for t in story.trials if t.key == story.teacher.key and t.state == "done"]
    at = next((t for t in same if t.fidelity == member.fidelity and t.measured.has("top1")), None)
    plain = next((t for t in same if t.fidelity == SUPERNET), None)
    if at is not None:
        return f"{at.measured.top1 - member.top1:.1f}"
    if plain is not None:
        return f"{plain.measured.top1 - member.top1:.1f} (teacher as it is)"
    return ""


def _short(one: Replacement) -> str:
    return f"{one.stage}.{one.block} {one.what}"


def _label(one: Replacement, teacher: Architecture) -> str:
    if one.mixer is not None:
        return _without_heads(one.mixer, teacher.stages[one.stage].mixers[one.block])
    share = _mlp_share(one, teacher)
    return f"MLP {100 * share:.0f} %" if share else one.what


def _mlp_share(one: Replacement, teacher: Architecture) -> float:
    """Return how much of a block's MLP a replacement leaves."""
    return one.mlp_ratio / teacher.stages[one.stage].ratios[one.block]


def _without_heads(mixer: Mixer, own: Mixer) -> str:
    """Describe a mixer, without its heads where they are as many as the block's own has."""
    heads = getattr(own, "num_heads", None)
    text = describe_mixer(mixer)
    return text.replace(f" h{heads}", "") if getattr(mixer, "num_heads", None) == heads else text


def _grid(story: GraftStory) -> tuple[np.ndarray, list[str], list[tuple[int, int]]]:
    """Arrange the scores: a row for each sort of replacement, a column for each block."""
    singles = story.scores.singles
    places = [(i, b) for i, stage in enumerate(story.teacher.stages) for b in range(stage.depth)]
    labels = {one: _label(one, story.teacher) for one in singles}
    mixers = sorted({labels[one] for one in singles if one.mixer is not None})
    shares = {labels[o]: _mlp_share(o, story.teacher) for o in singles if o.mixer is None}
    rows = [*mixers, *sorted(shares, key=lambda label: -shares[label])]
    grid = np.full((len(rows), len(places)), np.nan)
    for one, kl in singles.items():
        grid[rows.index(labels[one]), places.index((one.stage, one.block))] = kl
    return grid, rows, places


def _saved(story: GraftStory, rows: Sequence[str], places: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return by how many percent each replacement changes the MACs of the whole network."""
    base = count(story.teacher).macs
    saved = np.zeros((len(rows), len(places)))
    for one in story.scores.singles:
        cost = count(with_replacements(story.teacher, [one])).macs
        row = rows.index(_label(one, story.teacher))
        saved[row, places.index((one.stage, one.block))] = 100 * (cost / base - 1)
    return saved


def _is_own(story: GraftStory, row: str, place: tuple[int, int]) -> bool:
    own = story.teacher.stages[place[0]].mixers[place[1]]
    return row == _without_heads(own, own)


def _best_without_attention(story: GraftStory) -> dict[tuple[int, int], float]:
    """Return for each block of attention the least KL of a mixer without it."""
    best: dict[tuple[int, int], float] = {}
    for index, stage in enumerate(story.teacher.stages):
        for block, own in enumerate(stage.mixers):
            kls = [
                kl
                for one, kl in story.scores.singles.items()
                if (one.stage, one.block) == (index, block)
                and one.mixer is not None
                and not isinstance(one.mixer, ATTENTION)
            ]
            if isinstance(own, ATTENTION) and kls:
                best[index, block] = min(kls)
    return best


def _tau_text(tau: KendallTau) -> str:
    if tau.tau is None:
        return "Kendall tau undefined"
    if tau.low is None or tau.high is None:
        return f"Kendall tau {tau.tau:.2f}"
    return f"Kendall tau {tau.tau:.2f} (95 % {tau.low:.2f} to {tau.high:.2f})"
