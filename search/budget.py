"""Budgets of device time: ``50gpu-days`` is what all devices together may be held for."""

from __future__ import annotations

import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Literal, cast, get_args

Device = Literal["cpu", "gpu"]

UNIT_SECONDS = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400}

_PATTERN = re.compile(
    rf"(?P<amount>\d+\.?\d*|\.\d+) ?(?P<device>{'|'.join(get_args(Device))})-"
    rf"(?P<unit>{'|'.join(UNIT_SECONDS)})s?",
    re.ASCII | re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Time to hold devices for, summed over devices.

    Attributes:
        amount_seconds: Device-seconds; positive and finite.
        device: What is counted: accelerators (``gpu``) or processor cores (``cpu``).
    """

    amount_seconds: float
    device: Device

    def __post_init__(self) -> None:
        if self.device not in get_args(Device):
            raise ValueError(f"A budget counts 'cpu' or 'gpu' time, got {self.device!r}.")
        if not 0 < self.amount_seconds < math.inf:
            raise ValueError(
                f"A budget must be positive and finite, got {self.amount_seconds} seconds."
            )
        object.__setattr__(self, "amount_seconds", float(self.amount_seconds))

    def __str__(self) -> str:
        """Write the budget exactly, in its largest whole unit; `parse_budget` inverts it."""
        for unit, seconds in reversed(UNIT_SECONDS.items()):
            if self.amount_seconds % seconds == 0:
                amount = int(self.amount_seconds) // seconds
                return f"{amount}{self.device}-{unit}{'s' if amount > 1 else ''}"
        return f"{Decimal(repr(self.amount_seconds)):f}{self.device}-seconds"


def parse_budget(text: str) -> Budget:
    """Read ``50gpu-days``, ``1.5 cpu-hours``, ``1gpu-hour`` and their like.

    Raises:
        ValueError: If the text is no positive amount with a known unit.
    """
    if match := _PATTERN.fullmatch(text.strip()):
        seconds = _seconds(match["amount"], match["unit"].lower())
        if 0 < seconds < math.inf:
            return Budget(amount_seconds=seconds, device=cast(Device, match["device"].lower()))
    raise ValueError(
        f"Cannot read the budget {text!r}. Write a positive amount and a unit, "
        "e.g. '50gpu-days' or '12gpu-hours'; the units are seconds, minutes, hours and days, "
        "each after 'gpu-' or 'cpu-'."
    )


def count_cores() -> int:
    """Count the processor cores that this process may use: of a container, its quota of them."""
    # macOS has no sched_getaffinity.
    here = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if here else os.cpu_count() or 1
    # A part of a core is no device: what used it would be held up.
    return max(math.floor(min(cores, cgroup_quota())), 1)


def cgroup_quota(root: Path = Path("/")) -> float:
    """Return how many cores the control groups of this process may keep busy (Linux).

    A quota is the microseconds of processor time in a period. It holds for a group and all groups
    inside it, so the least from this process's group up to the root counts; infinity without one.
    """
    quotas = [math.inf]
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        # In a container the root of the tree may be the group itself.
        inside = PurePosixPath(group.lstrip("/"))
        for place in (top / inside, *(top / parent for parent in inside.parents)):
            quotas.append(_quota(place))
    return min(quotas)


def _quota(group: Path) -> float:
    """Read a group's quota in cores, of version 2 (``cpu.max``) or 1 of control groups."""
    with suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        return math.inf if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota = (group / "cpu.cfs_quota_us").read_text(encoding="utf-8")
        period = (group / "cpu.cfs_period_us").read_text(encoding="utf-8")
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    return math.inf


def format_seconds(device_seconds: float, device: Device) -> str:
    """Write device-seconds for people, rounded to a tenth: ``8.3 cpu-minutes``.

    Negative amounts (a budget that is overdrawn) keep their sign.
    """
    unit = _unit_for(abs(device_seconds))
    number = f"{device_seconds / UNIT_SECONDS[unit]:,.1f}".removesuffix(".0")
    if number == "-0":
        number = "0"
    return f"{number} {device}-{unit}{'' if number == '1' else 's'}"


def _unit_for(seconds: float) -> str:
    # 59.97 seconds would read 60: a unit serves where its rounded amount is below the next one.
    for (unit, size), (_, next_size) in pairwise(UNIT_SECONDS.items()):
        if round(seconds / size, 1) * size < next_size:
            return unit
    return "day"


def _seconds(amount: str, unit: str) -> float:
    # Fractions are exact where 0.7 * 86400 is not; both errors mean absurdly long numbers.
    try:
        return float(Fraction(amount) * UNIT_SECONDS[unit])
    except (OverflowError, ValueError):
        return math.inf
