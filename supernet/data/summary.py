"""How many images of which classes a source gave to each split, and what was left out of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from configs.reading import read_json
from searchspace import durable
from supernet.data.source import Source
from supernet.data.splits import IntArray

SUMMARY_FILE = "summary.json"
# So many classes are listed one by one.
MAX_LISTED = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What a source gave.

    Attributes:
        classes: Split -> class -> number of images.
        skipped: Reason -> number of files that were left out for it, and the first of them.
    """

    classes: Mapping[str, Mapping[str, int]]
    skipped: Mapping[str, tuple[int, str]]

    def lines(self) -> list[str]:
        """Say it, a line for each split and one for what was left out."""
        lines = [f"{split}: {_counts(counts)}" for split, counts in self.classes.items()]
        if self.skipped:
            reasons = (
                f"{count:,} {reason} (e.g. {first})"
                for reason, (count, first) in self.skipped.items()
            )
            lines.append(f"left out: {'; '.join(reasons)}")
        return lines


def summarize(source: Source, splits: Mapping[str, IntArray]) -> Summary:
    """Count the images of a source."""
    classes = {}
    for split, positions in splits.items():
        counts = np.bincount(source.labels[positions], minlength=len(source.class_names))
        classes[split] = dict(zip(source.class_names, counts.tolist(), strict=True))
    return Summary(classes=classes, skipped=source.skipped)


def write_summary(folder: Path, summary: Summary) -> None:
    """Keep a summary beside the prepared data."""
    durable.write_text(folder / SUMMARY_FILE, json.dumps(asdict(summary), indent=1) + "\n")


def read_summary(folder: Path) -> Summary | None:
    """Read a summary; None where there is none."""
    if not (folder / SUMMARY_FILE).is_file():
        return None
    stored = read_json(folder / SUMMARY_FILE)
    try:
        assert isinstance(stored, dict)
        skipped = {reason: (int(n), str(first)) for reason, (n, first) in stored["skipped"].items()}
        classes = {split: dict(counts) for split, counts in stored["classes"].items()}
        return Summary(classes=classes, skipped=skipped)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder / SUMMARY_FILE} is damaged. Remove it: it is only shown."
        ) from error


def _counts(counts: Mapping[str, int]) -> str:
    total, values = sum(counts.values()), list(counts.values())
    text = f"{total:,} images of {len(counts):,} classes"
    if len(counts) <= MAX_LISTED:
        return f"{text} ({', '.join(f'{count:,} {name}' for name, count in counts.items())})"
    return f"{text}, {min(values):,} to {max(values):,} of each"
