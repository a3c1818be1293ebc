"""The networks of a report as compact JSON: each distinct stage is written once.

50,000 networks of a space share some dozens of stages, so a network is a few small numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from search.results import Candidate
from search.terminal import describe_stages
from searchspace.architecture import Architecture
from searchspace.cost import count, count_parts
from searchspace.mixer_text import describe_mixer
from searchspace.presets import PRESETS, preset
from searchspace.published import PUBLISHED


def networks_payload(networks: Mapping[int, Candidate]) -> dict[str, Any]:
    """Describe networks in columns.

    Args:
        networks: By id.

    Returns:
        Columns ``ids``, ``macs`` and ``params``; ``stages``: for each stage of the deepest network
        a column of indices into ``types`` of that stage, -1 where a network has fewer stages.
    """
    depth = max(len(c.architecture.stages) for c in networks.values())
    numbers: list[dict[Any, int]] = [{} for _ in range(depth)]
    types: list[list[dict[str, Any]]] = [[] for _ in range(depth)]
    stages: list[list[int]] = [[] for _ in range(depth)]
    for candidate in networks.values():
        architecture = candidate.architecture
        own: tuple[Any, ...] = architecture.stages
        for index in range(depth):
            if index >= len(own):
                stages[index].append(-1)
                continue
            # The patch merging before a stage depends on the width of the one before it.
            key = own[max(index - 1, 0)].dim, own[index], architecture.resolutions[index]
            if key not in numbers[index]:
                numbers[index][key] = len(types[index])
                types[index].append(_stage_type(architecture, index))
            stages[index].append(numbers[index][key])
    return {
        "ids": list(networks),
        "macs": [c.macs for c in networks.values()],
        "params": [c.params for c in networks.values()],
        "stages": stages,
        "types": types,
    }


def published_payload(architectures: Iterable[Architecture]) -> dict[str, Any]:
    """Describe the papers' networks, and whether a run's networks are of the same scale.

    They are where they have the same image size and classes: then costs and accuracies may stand in
    one picture.
    """
    presets = [(name, preset(name)) for name in PRESETS if name in PUBLISHED]
    scales = {(a.img_size, a.num_classes) for a in architectures}
    rows = []
    for name, architecture in presets:
        cost = count(architecture)
        rows.append(
            {
                "name": name,
                "img_size": architecture.img_size,
                "top1": PUBLISHED[name].top1,
                "source": str(PUBLISHED[name]),
                "params": cost.params,
                "macs": cost.macs,
                "same_scale": scales == {(architecture.img_size, architecture.num_classes)},
            }
        )
    return {"networks": rows, "scales": sorted(scales)}


def _stage_type(architecture: Architecture, index: int) -> dict[str, Any]:
    stage = architecture.stages[index]
    parts = count_parts(architecture)
    cost = parts.get(f"stage{index}")
    runs = [(mixer, len(list(run))) for mixer, run in groupby(stage.mixers)]
    return {
        "text": describe_stages(architecture)[index],
        "size": architecture.resolutions[index],
        "dim": stage.dim,
        "mlp": sum(stage.ratios) / stage.depth,
        "blocks": [[mixer.kind, describe_mixer(mixer), times] for mixer, times in runs],
        "macs": cost.macs if cost else None,
    }
