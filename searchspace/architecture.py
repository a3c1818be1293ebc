"""`Architecture`: a frozen, hashable value that describes one network completely.

Equal networks are equal values and have one `key`: the mixers are canonical (`searchspace.mixers`)
and a window that is larger than its map is stored as the map, which is what it computes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from searchspace.mixers import (
    Elsa,
    InhomogeneousDepthwiseConv,
    Mixer,
    WindowAttention,
    describe_mixer,
    mixer_from_dict,
    mixer_to_dict,
)

FAMILIES = ("swin",)

# Their inner widths, dim // 4 and dim // 3 * 2, are zero below.
_LEAST_DIM = {InhomogeneousDepthwiseConv.kind: 4, Elsa.kind: 3}


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """Blocks at one resolution: their width in channels and the mixer of each block."""

    dim: int
    mixers: tuple[Mixer, ...]
    mlp_ratio: float = 4.0

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return len(self.mixers)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mixers", tuple(self.mixers))
        object.__setattr__(self, "mlp_ratio", float(self.mlp_ratio))
        if not _is_count(self.dim) or not self.mixers:
            raise ValueError(
                "A stage needs an integer dim >= 1 and at least one mixer, "
                f"got dim={self.dim!r} and {len(self.mixers)} mixers."
            )
        if not 1 <= self.dim * self.mlp_ratio < float("inf"):
            raise ValueError(
                "mlp_ratio * dim, the hidden width of the MLP, must be >= 1 and finite, "
                f"got mlp_ratio={self.mlp_ratio} and dim={self.dim}."
            )
        for mixer in self.mixers:
            for name in ("num_heads", "num_groups"):
                parts = getattr(mixer, name, 1)
                if self.dim % parts:
                    raise ValueError(
                        f"{mixer.kind}: {name} must divide the stage's dim, "
                        f"got {name}={parts} and dim={self.dim}."
                    )
            if self.dim < _LEAST_DIM.get(mixer.kind, 1):
                raise ValueError(
                    f"{mixer.kind} needs dim >= {_LEAST_DIM[mixer.kind]}, got dim={self.dim}."
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """One network: macro-architecture (family, sizes) and the mixer of every block.

    The family ``swin`` is a patch embedding with layer norm, stages joined by patch merging
    (halved resolution, rounded up), a final layer norm, mean pooling and a linear head; the micro
    networks are small members of it.
    """

    img_size: int
    patch_size: int
    stages: tuple[Stage, ...]
    num_classes: int = 1000
    in_chans: int = 3
    family: str = "swin"

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"Unknown family {self.family!r}. Known: {', '.join(FAMILIES)}.")
        for name in ("img_size", "patch_size", "num_classes", "in_chans"):
            if not _is_count(getattr(self, name)):
                raise ValueError(f"{name} must be an integer >= 1, got {getattr(self, name)!r}.")
        if self.img_size % self.patch_size:
            raise ValueError(
                "patch_size must divide img_size, "
                f"got patch_size={self.patch_size} and img_size={self.img_size}."
            )
        if not self.stages:
            raise ValueError("An architecture needs at least one stage.")
        canonical = (
            _shrink_windows(stage, size)
            for stage, size in zip(self.stages, self.resolutions, strict=True)
        )
        object.__setattr__(self, "stages", tuple(canonical))

    @property
    def resolutions(self) -> tuple[int, ...]:
        """The side of each stage's map, in tokens."""
        return map_sizes(self.img_size // self.patch_size, len(self.stages))

    @property
    def key(self) -> str:
        """A short name that equal networks share and others do not (12 hex digits of SHA-256)."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def replace(self, **changes: Any) -> Architecture:
        """Return a copy with some fields changed, e.g. ``num_classes=10``."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Describe the architecture with JSON values; `from_dict` inverts it."""
        return {
            "family": self.family,
            "img_size": self.img_size,
            "in_chans": self.in_chans,
            "num_classes": self.num_classes,
            "patch_size": self.patch_size,
            "stages": [
                {
                    "dim": stage.dim,
                    "mlp_ratio": stage.mlp_ratio,
                    "mixers": [mixer_to_dict(mixer) for mixer in stage.mixers],
                }
                for stage in self.stages
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Architecture:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: If a field is missing, unknown or out of its range.
        """
        try:
            stages = tuple(
                Stage(
                    dim=stage["dim"],
                    mlp_ratio=stage["mlp_ratio"],
                    mixers=tuple(mixer_from_dict(mixer) for mixer in stage["mixers"]),
                )
                for stage in data["stages"]
            )
            return cls(**{**data, "stages": stages})
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"This is not a description of an architecture ({error}). "
                "Write one with `search show TARGET --json`."
            ) from error


def map_sizes(first: int, num_stages: int) -> tuple[int, ...]:
    """Return the side of each stage's map in tokens: halved from stage to stage, rounded up."""
    sizes = [first]
    for _ in range(num_stages - 1):
        sizes.append((sizes[-1] + 1) // 2)
    return tuple(sizes)


def describe(architecture: Architecture) -> str:
    """Write the mixers compactly, a stage between bars: ``elsa7 h3 | win7 h24``.

    Blocks that differ inside a stage are joined by commas, with a count where they repeat; an MLP
    ratio other than 4 stands at the end, ``dw3 m2``.
    """
    return " | ".join(_describe_stage(stage) for stage in architecture.stages)


def _describe_stage(stage: Stage) -> str:
    mlp = "" if stage.mlp_ratio == 4 else f" m{stage.mlp_ratio:g}"
    runs = [(text, len(list(run))) for text, run in groupby(map(describe_mixer, stage.mixers))]
    if len(runs) == 1:
        return runs[0][0] + mlp
    return ", ".join(text if count == 1 else f"{count}x {text}" for text, count in runs) + mlp


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _shrink_windows(stage: Stage, size: int) -> Stage:
    mixers = tuple(
        dataclasses.replace(mixer, window_size=min(mixer.window_size, size))
        if isinstance(mixer, WindowAttention)
        else mixer
        for mixer in stage.mixers
    )
    return dataclasses.replace(stage, mixers=mixers)
