"""From the times of parts and of whole networks to a table of latencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from searchspace.architecture import Architecture
from searchspace.latency_table import (
    Checked,
    Latency,
    LatencyTable,
    Part,
    latency_of,
    median_error,
    parts_of,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Times:
    """Seconds of runs.

    Attributes:
        call: Of what computes nothing: each part was called alone, a network is called once.
        parts: Of the parts.
        fitted: Of whole networks that the sums are fitted to.
        checked: Of whole networks that they are compared with.
    """

    call: Sequence[float]
    parts: Mapping[Part, Sequence[float]]
    fitted: Sequence[tuple[Architecture, Sequence[float]]]
    checked: Sequence[tuple[Architecture, Sequence[float]]]


def fit_table(empty: LatencyTable, times: Times) -> tuple[LatencyTable, list[Checked]]:
    """Fill a table with the parts' times, less those of a call, and fit its sums to whole networks.

    Args:
        empty: Says how, where and of what was measured; its parts are replaced.
        times: What was measured.

    Returns:
        The table, and the whole networks that fitted nothing.
    """
    call = latency_of(times.call).median_ms
    parts = {part: _without(latency_of(times.parts[part]), call) for part in times.parts}
    raw = replace(empty, parts=dict(sorted(parts.items(), key=lambda item: str(item[0]))))
    sums = [sum(raw.parts[part].median_ms for part in parts_of(a)) for a, _ in times.fitted]
    wholes = [latency_of(seconds).median_ms for _, seconds in times.fitted]
    scale, per_network = fit_line(sums, wholes) if sums else (1.0, call)
    table = replace(raw, scale=scale, per_network_ms=per_network, num_fitted=len(sums))
    checked = [Checked(a, table.predict(a), latency_of(seconds)) for a, seconds in times.checked]
    return replace(table, num_checked=len(checked), median_error=median_error(checked)), checked


def fit_line(sums: Sequence[float], wholes: Sequence[float]) -> tuple[float, float]:
    """Fit ``whole = scale * sum + constant``, the relative errors least in the squares.

    Where the sums hardly differ, or the line would fall, or begin below nothing, there is only a
    scale.
    """
    x, y = np.asarray(sums), np.asarray(wholes)
    weighted = np.stack([x / y, 1 / y], axis=1)
    (scale, constant), *_ = np.linalg.lstsq(weighted, np.ones_like(y), rcond=None)
    if len(x) < 3 or np.ptp(x) < 0.1 * x.mean() or scale <= 0 or constant < 0:
        ratio = x / y
        return float(ratio.sum() / (ratio**2).sum()), 0.0
    return float(scale), float(constant)


def _without(latency: Latency, call_ms: float) -> Latency:
    low, median, high = (
        max(value - call_ms, 0.0) for value in (latency.low_ms, latency.median_ms, latency.high_ms)
    )
    return Latency(median, low, high)
