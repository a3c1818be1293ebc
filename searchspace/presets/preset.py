"""What a preset is."""

from __future__ import annotations

from dataclasses import dataclass

from searchspace.architecture import Architecture


@dataclass(frozen=True, slots=True)
class Preset:
    """A published network, and one line that says which."""

    about: str
    architecture: Architecture
