"""Upper limits of costs: what keeps to them, and what to say where nothing does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from search.record import Trial
from search.results.objectives import CLOSED_FORM, MEASURED
from searchspace.quantity import least_text

if TYPE_CHECKING:
    from search.results.candidates import Candidate


def is_within(trial: Trial, limits: Mapping[str, float]) -> bool:
    """Tell whether the costs of a trial that is done keep to upper limits."""
    return all(
        (getattr(trial, name) if name in CLOSED_FORM else trial.measured.value(name)) <= most
        for name, most in limits.items()
    )


def keeps_to(candidate: Candidate, limits: Mapping[str, float]) -> bool:
    """Tell whether the costs of a candidate keep to upper limits."""
    return all(_cost(candidate, name) <= most for name, most in limits.items())


def none_within(found: Sequence[Candidate], limits: Mapping[str, float]) -> str:
    """Say that no candidate keeps to limits, and which limits some would keep to."""
    least = {name: min(_cost(c, name) for c in found) for name in limits}
    return (
        f"None of the {len(found)} networks at {found[0].fidelity!r} is within "
        f"{limits_text(limits)}; the least is "
        f"{', '.join(f'{name} {_amount(name, value)}' for name, value in least.items())}"
    )


def limits_text(limits: Mapping[str, float]) -> str:
    """Write limits down, e.g. ``macs <= 2,000,000``."""
    return ", ".join(f"{name} <= {most:,.12g}" for name, most in limits.items())


def _amount(name: str, value: float) -> str:
    return "unknown" if math.isinf(value) else least_text(value, is_measured=name in MEASURED)


def _cost(candidate: Candidate, name: str) -> float:
    """Return a cost; what was not measured is beyond every limit."""
    value: float | None = getattr(candidate, name)
    return math.inf if value is None else value
