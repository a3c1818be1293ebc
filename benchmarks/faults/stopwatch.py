"""An independent measure of device time: what Ray says is held, sampled all the time."""

from __future__ import annotations

import threading
import time
from typing import Self

import ray


class Stopwatch:
    """While it is entered, adds up the devices in use times seconds; knows nothing of the record.

    Devices of nodes that died count until Ray has noticed.

    Args:
        resource: Ray's name of the device.
        every_seconds: Between two looks.
    """

    def __init__(self, resource: str = "GPU", every_seconds: float = 0.05) -> None:
        self._resource, self._every = resource, every_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.device_seconds = 0.0
        self.most = 0.0
        self.changes: list[tuple[float, float]] = []  # when (as `time.time`), and held since then

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def held(self) -> float:
        """Return the devices that are held now."""
        # Two calls of the same state: a node that leaves between them is seen in the next look.
        free = ray.available_resources().get(self._resource, 0.0)
        return max(ray.cluster_resources().get(self._resource, 0.0) - free, 0.0)

    def _watch(self) -> None:
        before, held = time.monotonic(), 0.0
        while not self._stop.wait(self._every):
            now = time.monotonic()
            self.device_seconds += held * (now - before)
            before, last, held = now, held, self.held()
            if held != last:
                self.changes.append((time.time(), held))
            self.most = max(self.most, held)
