"""The report's section on networks as backbones: AP and mIoU beside top-1, and pictures."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from search.record import Measured, Trial
from search.report.sections import columns
from search.results import QUALITY_WORDS, Candidate, is_transfer, transfer_label
from search.terminal import format_interval
from search.trust import kendall_tau_interval
from searchspace.published_dense import PUBLISHED_DENSE
from supernet.data import decode_image, read_regular

MEASURES = {"ap_box": "box AP", "ap_mask": "mask AP", "miou": "mIoU"}
MOST_BYTES = 60_000  # of a picture in the page


@dataclass(frozen=True, kw_only=True, slots=True)
class Backbone:
    """A finished transfer.

    Attributes:
        number: Of the network in its run.
        label: What was done.
        measured: AP and mIoU with their intervals.
        pictures: PNG files of truth beside prediction.
    """

    number: int
    label: str
    seed: int
    measured: Measured
    pictures: tuple[Path, ...]


def find_backbones(trials: Sequence[Trial], folder: Path) -> tuple[Backbone, ...]:
    """Gather the finished transfers of a run, with their pictures."""
    found = []
    for trial in trials:
        if trial.state != "done" or not is_transfer(trial.fidelity):
            continue
        label = transfer_label(trial.fidelity)
        own = folder / "transfer" / f"{trial.architecture_id}-{label}-s{trial.seed}" / "pictures"
        found.append(
            Backbone(
                number=trial.architecture_id,
                label=label,
                seed=trial.seed,
                measured=trial.measured,
                pictures=tuple(sorted(own.glob("*.png"))),
            )
        )
    return tuple(found)


def backbones_content(
    found: Sequence[Backbone], accuracies: Sequence[Candidate]
) -> dict[str, Any] | None:
    """Set AP and mIoU beside top-1; None where nothing was transferred.

    Args:
        accuracies: Of the run's networks, those of a fidelity one after the other. Beside a network
            stands its last one; a ranking is by those of one fidelity.
    """
    if not found:
        return None
    top1 = {candidate.id: candidate for candidate in accuracies}
    shown_at = {top1[one.number].fidelity for one in found if one.number in top1}
    searched = QUALITY_WORDS[accuracies[0].measure if accuracies else "top1"]
    shown = [name for name in MEASURES if any(one.measured.has(name) for one in found)]
    rows = [
        (
            one.number,
            _accuracy(top1.get(one.number), with_fidelity=len(shown_at) > 1),
            *(_interval(one.measured, name) for name in shown),
            one.label,
            one.seed,
        )
        for one in found
    ]
    before = f"{searched} %" if searched == "top-1" else f"searched {searched} %"
    names = ("id", before, *(f"{MEASURES[name]} %" for name in shown), "transfer", "seed")
    heads = {"miou": ("upernet",)}
    published = [
        (row.backbone, row.head, row.schedule, f"{row.params_m:g} M", row.result, row.paper)
        for row in PUBLISHED_DENSE
        if any(row.head in heads.get(name, ("mask_rcnn", "cascade_mask_rcnn")) for name in shown)
    ]
    return {
        "columns": columns(names, words=("id", "transfer")),
        "rows": rows,
        "taus": [_tau(found, accuracies, name, searched) for name in shown],
        "pictures": [
            (one.number, one.label, [_inlined(path) for path in one.pictures]) for one in found
        ],
        "published_columns": columns(
            ("network", "head", "schedule", "parameters", "result", "source"),
            words=("network", "head", "schedule", "result", "source"),
        ),
        "published": published,
    }


def _interval(measured: Measured, name: str) -> str:
    if not measured.has(name):
        return ""
    value, low, high = (measured.value(f"{name}{end}") for end in ("", "_low", "_high"))
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def _accuracy(candidate: Candidate | None, *, with_fidelity: bool) -> str:
    if candidate is None:
        return "not judged"
    text = format_interval(candidate)
    return f"{text} ({candidate.fidelity})" if with_fidelity else text


def _tau(
    found: Sequence[Backbone], accuracies: Sequence[Candidate], name: str, searched: str
) -> str:
    """Say how well what was searched by ranks networks by a measure of one kind of transfer."""
    labels = [one.label for one in found if one.measured.has(name)]
    label = max(dict.fromkeys(labels), key=labels.count)
    values: dict[int, list[float]] = {}
    for one in found:
        if one.label == label and one.measured.has(name):
            values.setdefault(one.number, []).append(one.measured.value(name))
    top1, fidelity = _of_one_fidelity(accuracies, values.keys())
    # Seeds of a network are one point: their mean.
    pairs = [(top1[n], fmean(several)) for n, several in values.items() if n in top1]
    at = f" ({fidelity})" if fidelity else ""
    words = f"{searched}{at} against {MEASURES[name]} of {label}"
    if len(pairs) < 2:
        return f"Kendall's tau of {words} needs two networks."
    tau = kendall_tau_interval(*zip(*pairs, strict=True), rng=np.random.default_rng(0))
    if tau.tau is None:
        return f"Kendall's tau of {words} is undefined: one of them never differs."
    ends = "" if tau.low is None else f", 95 % interval {tau.low:.2f} to {tau.high:.2f}"
    return f"Kendall's tau of {words}: {tau.tau:.2f} over {len(pairs)} networks{ends}."


def _of_one_fidelity(
    accuracies: Sequence[Candidate], numbers: Collection[int]
) -> tuple[dict[int, float], str]:
    """Return the accuracies of these networks at the fidelity that has most; of equals the last."""
    by_fidelity: dict[str, dict[int, float]] = {}
    for one in accuracies:
        own = by_fidelity.setdefault(one.fidelity, {})
        if one.id in numbers:
            own[one.id] = one.top1
    best = max(reversed(by_fidelity), key=lambda name: len(by_fidelity[name]), default="")
    return by_fidelity.get(best, {}), best


def _inlined(path: Path) -> str:
    """Write a picture as a data URL, smaller where it would be large."""
    picture = decode_image(read_regular(os.fsencode(path)), name=str(path))
    for _ in range(8):
        written = io.BytesIO()
        picture.save(written, format="WEBP", quality=70)
        if written.tell() <= MOST_BYTES:
            break
        picture = picture.resize((picture.width * 3 // 4, picture.height * 3 // 4))
    return f"data:image/webp;base64,{base64.b64encode(written.getvalue()).decode()}"
