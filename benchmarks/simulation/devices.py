"""A cluster in virtual time: nodes that fail and come back, and devices that differ."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

DAY = 86_400.0
NODE_SIZE = 8
REPAIR_SECONDS = 3600.0
SLOWER = 1.15
STRAGGLER_EVERY, STRAGGLER = 32, 2.0
MIXED = 1 / 0.6


@dataclass(slots=True)
class Simulation:
    """A cluster in virtual time.

    Attributes:
        now: Seconds.
        useful: Device-seconds that ended in a result (or in the supernet's weights).
        held: Device-seconds held, added up here, without the record.
    """

    devices: int
    failures: float
    rng: random.Random
    now: float = 0.0
    useful: float = 0.0
    held: float = 0.0
    alive: float = 0.0
    num_failures: int = 0
    broken: dict[int, float] = field(default_factory=dict)  # node: until when
    next_failure: float = 0.0
    slower: float = SLOWER
    mixed: bool = False

    def pace(self, device: int) -> float:
        """Return how many times longer than planned work takes on a device."""
        node = device // NODE_SIZE
        straggles = node % STRAGGLER_EVERY == STRAGGLER_EVERY - 1
        return (
            self.slower
            * (STRAGGLER if straggles else 1.0)
            * (MIXED if self.mixed and node % 2 else 1.0)
        )

    def __post_init__(self) -> None:
        self.next_failure = self.draw_failure()

    @property
    def nodes(self) -> int:
        """Nodes of the cluster."""
        return max(self.devices // NODE_SIZE, 1)

    def clock(self) -> float:
        """Virtual seconds, for the record and the runner."""
        return self.now

    def draw_failure(self) -> float:
        """Return when the next node fails; the nodes fail independently."""
        rate = self.failures / 1000 / DAY * self.nodes
        return self.now + (self.rng.expovariate(rate) if rate else math.inf)

    def advance(self, to: float, held: float) -> None:
        """Let time pass while so many devices are held."""
        self.held += (to - self.now) * held
        self.alive += (to - self.now) * (self.devices - len(self.broken) * NODE_SIZE)
        self.now = to

    def fail_node(self) -> int:
        """Break a node that works; return it."""
        standing = [n for n in range(self.nodes) if n not in self.broken]
        if len(standing) == 1:  # the last one does not fail
            self.next_failure = self.draw_failure()
            return -1
        node = self.rng.choice(standing)
        self.broken[node] = self.now + REPAIR_SECONDS
        self.next_failure, self.num_failures = self.draw_failure(), self.num_failures + 1
        return node

    def repair(self) -> None:
        """Bring back the nodes whose time has come."""
        self.broken = {node: until for node, until in self.broken.items() if until > self.now}

    def next_repair(self) -> float:
        """Return when the next node comes back."""
        return min(self.broken.values(), default=math.inf)


def take_devices(free: set[int], count: int) -> set[int]:
    """Take devices of the node that has fewest left then, or of several where none has so many."""
    nodes: dict[int, list[int]] = {}
    for device in sorted(free):
        nodes.setdefault(device // NODE_SIZE, []).append(device)
    fitting = [devices for devices in nodes.values() if len(devices) >= count]
    chosen = min(fitting, key=len) if fitting else sorted(free)
    taken = set(chosen[:count])
    free -= taken
    return taken
