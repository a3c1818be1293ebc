"""Architectures as values: schema, search space, presets and costs in closed form, without torch.

Spaces are read from YAML by `searchspace.spec_file`.
"""

from searchspace.architecture import Architecture, Stage, describe
from searchspace.cost import Cost, count
from searchspace.presets import PRESETS, preset
from searchspace.space import SearchSpace

__all__ = [
    "PRESETS",
    "Architecture",
    "Cost",
    "SearchSpace",
    "Stage",
    "count",
    "describe",
    "preset",
]
