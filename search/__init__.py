"""The program: command line, budget, engine, Pareto front, reports, retraining.

For a notebook: ``search.load_run("runs/digits")`` gives a run as pandas frames.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from search.frames import LoadedRun


def load_run(path: Path | str) -> LoadedRun:
    """Read a run as pandas frames; see `search.frames.LoadedRun`.

    Raises:
        ValueError: If the folder is not one of a run.
    """
    from search.frames import load_run as load

    return load(path)
