"""How this program was installed, so that what it advises works where the reader stands."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shlex
import sys
from pathlib import Path
from urllib.parse import unquote, urlparse

NAME = "mixer-search"


def install_command(extra: str = "") -> str:
    """Write the command that installs this program again, with an extra of it.

    It uses the environment that runs now: that of a clone installs the clone.
    """
    clone, extras = _clone(), f"[{extra}]" if extra else ""
    what = ["-e", f"{clone}{extras}"] if clone else [f"{NAME}{extras}"]
    has_pip = importlib.util.find_spec("pip") is not None
    tool = [sys.executable, "-m", "pip", "install"]
    if not has_pip:
        tool = ["uv", "pip", "install", "--python", sys.executable]
    return shlex.join([*tool, *what])


def _clone() -> Path | None:
    """Find the folder that was installed in place, or that runs without an installation."""
    try:
        origin = importlib.metadata.distribution(NAME).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        root = Path(__file__).resolve().parents[1]
        return root if (root / "pyproject.toml").is_file() else None
    if origin is None:
        return None
    found = json.loads(origin)
    is_editable = found.get("dir_info", {}).get("editable", False)
    return Path(unquote(urlparse(found["url"]).path)) if is_editable else None
