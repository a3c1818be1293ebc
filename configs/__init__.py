"""The shipped YAML files, by folder and name (``spaces``, ``recipes``, ``searches``)."""

from __future__ import annotations

import difflib
from pathlib import Path

_ROOT = Path(__file__).parent
_ONE_OF = {
    "spaces": "space",
    "recipes": "recipe",
    "recipes/dense": "recipe for detection or segmentation",
    "searches": "search",
    "devices": "device",
}
_SUFFIXES = (".yaml", ".yml")


def config_names(folder: str) -> tuple[str, ...]:
    """Name the shipped files of a folder (``spaces``, ``recipes``), sorted, without suffix."""
    return tuple(sorted(path.stem for path in (_ROOT / folder).glob("*.yaml")))


def config_path(folder: str, name: str) -> Path:
    """Find a shipped file by its name, or take the path of a user's own YAML file as it is.

    Raises:
        ValueError: If there is neither such a name nor such a file.
    """
    if name in config_names(folder):
        return _ROOT / folder / f"{name}.yaml"
    path, what = Path(name), _ONE_OF[folder]
    if path.suffix in _SUFFIXES:
        if path.is_file():
            return path
        raise ValueError(f"There is no {what} file {name!r}. Check the path.")
    known = config_names(folder)
    close = difflib.get_close_matches(name, known, n=1)
    guess = f"Did you mean {close[0]!r}? " if close else ""
    raise ValueError(
        f"Unknown {what} {name!r}. {guess}Known: {', '.join(known)}; "
        "or give the path of a .yaml file."
    )
