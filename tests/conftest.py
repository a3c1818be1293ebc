"""Settings that all tests share: one thread, no display, repeatable property tests."""

from __future__ import annotations

import os

from hypothesis import settings

# Before torch is imported: the tests' tensors are tiny, and threads only make them wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

settings.register_profile("repeatable", max_examples=25, deadline=None, derandomize=True)
settings.load_profile("repeatable")
