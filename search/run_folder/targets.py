"""What a user names an architecture by: a preset, a file, or RUN:ID."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from configs.files import read_object, reading
from search.run_folder.folder import open_run
from searchspace.architecture import Architecture
from searchspace.presets import preset


def run_and_id(target: str) -> tuple[Path, int] | None:
    """Take ``RUN:ID`` apart; None if it is something else."""
    run, colon, number = target.rpartition(":")
    return (Path(run), int(number)) if colon and number.isdecimal() else None


def load_target(target: str) -> Architecture:
    """Find an architecture.

    Args:
        target: A preset's name; a JSON file with an architecture (or a folder with an
            ``architecture.json``); or ``RUN:ID``.

    Raises:
        ValueError: If there is none.
    """
    path = Path(target)
    if path.is_dir() and (path / "architecture.json").is_file():
        path = path / "architecture.json"
    if path.is_file():
        return _read(path)
    if (named := run_and_id(target)) is not None:
        with open_run(named[0]) as folder:
            return folder.architecture(named[1])
    if ":" in target and Path(target.rpartition(":")[0]).is_dir():
        raise ValueError(f"{target!r}: after the colon comes the id of a network, e.g. RUN:12.")
    if target.startswith("timm:"):
        raise ValueError(
            f"{target}: only `search show` and `search transfer` take networks of timm. Name a "
            "preset (`search presets`), an architecture file or RUN:ID."
        )
    if path.is_dir():
        raise ValueError(
            f"{target} is a folder, and here one network is named. Of a run name it by its id, "
            f"e.g. {path}:7 (`search pareto` lists them)."
        )
    if path.suffix or path.name != target:
        raise ValueError(
            f"There is no file {target}. Name a preset (`search presets`), an architecture file or "
            "RUN:ID."
        )
    return preset(target)


def _read(path: Path) -> Architecture:
    what, remedy = "an architecture", "Write one with `search show TARGET --json`."
    data = read_object(path, what, remedy=remedy)
    with reading(path, what, remedy=remedy):
        # `search show --json` keeps the architecture beside what it prints about it.
        return Architecture.from_dict(cast(dict[str, Any], data.get("architecture", data)))
