"""What a detector or segmenter stands on: an architecture of ours, or a network of timm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from searchspace.architecture import Architecture
from searchspace.space import SearchSpace
from supernet.dense.timm_backbone import TimmTarget

Target: TypeAlias = Architecture | TimmTarget


def read_target(stored: Mapping[str, Any]) -> Target:
    """Read what `Architecture.to_dict` or `TimmTarget.to_dict` wrote."""
    if "timm" in stored:
        return TimmTarget(str(stored["timm"]))
    return Architecture.from_dict(dict(stored))


def choices_of(target: Target) -> SearchSpace | TimmTarget:
    """Return what `build_dense` builds it from."""
    return target if isinstance(target, TimmTarget) else SearchSpace.of(target)
