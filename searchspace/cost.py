"""Parameters and multiply-accumulates (MACs) of an architecture, in closed form.

MACs are those of one image: the multiply-accumulates of convolutions, linear layers and matrix
products, plus the mixer's own aggregation: tokens * channels * area for every filter that is
applied, and the same again for the additive part of the ghost head. Norms, activations, pooling and
adding a bias are free. The counts equal those of the built network exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from searchspace.architecture import Architecture, Stage
from searchspace.families import CLASS_BLOCKS, FAMILIES, map_sizes
from searchspace.map_rules import CLASSIFIER, MapRules
from searchspace.mixer_cost import Cost, Size, count_linear, count_mixer, count_norm, total
from searchspace.mixers import Mixer, NoMixer

__all__ = ["Cost", "backbone_sizes", "count", "count_maps", "count_mixer", "count_parts"]


def count(architecture: Architecture) -> Cost:
    """Count the whole network, with its head."""
    return total(count_parts(architecture).values())


def count_parts(architecture: Architecture) -> dict[str, Cost]:
    """Count ``stem``, ``stage0``, ``stage1``, ... and ``head``, in the order of the forward pass.

    What joins two stages belongs to the later one.
    """
    stages, sizes = architecture.stages, architecture.resolutions
    parts = {"stem": _count_stem(architecture)}
    for index, (stage, size) in enumerate(zip(stages, sizes, strict=True)):
        blocks = _count_blocks(architecture, stage, (size, size), CLASSIFIER)
        parts[f"stage{index}"] = total(blocks) + _count_transition(architecture, index, size**2)
    parts["head"] = _count_head(architecture)
    return parts


def count_maps(architecture: Architecture, size: Size, rules: MapRules) -> dict[str, Cost]:
    """Count ``stem`` and the stages of a backbone on images of any size.

    Args:
        architecture: Of a family without a class token.
        size: Sides of the images in pixels; they are padded to whole patches.
        rules: What is done at the border of a map.
    """
    sizes = backbone_sizes(architecture, size)
    parts = {"stem": _count_stem(architecture, math.prod(sizes[0]))}
    for index, (stage, sides) in enumerate(zip(architecture.stages, sizes, strict=True)):
        blocks = _count_blocks(architecture, stage, sides, rules)
        joined = _count_transition(architecture, index, math.prod(sides))
        parts[f"stage{index}"] = total(blocks) + joined
    return parts


def backbone_sizes(architecture: Architecture, size: Size) -> tuple[Size, ...]:
    """Return the sides of each stage's map in tokens, for images of a size in pixels."""
    sides = (
        map_sizes(
            architecture.family,
            math.ceil(side / architecture.patch_size),
            len(architecture.stages),
        )
        for side in size
    )
    return tuple(zip(*sides, strict=True))


def _count_stem(architecture: Architecture, tokens: int | None = None) -> Cost:
    dim, size = architecture.stages[0].dim, architecture.resolutions[0]
    tokens = size**2 if tokens is None else tokens
    stem, patch = architecture.stem_dim, architecture.patch_size
    if not stem:
        return count_linear(architecture.in_chans * patch**2, dim, tokens) + count_norm(dim)
    pixels = (-(-architecture.img_size // 2)) ** 2
    convolutions = (
        count_linear(architecture.in_chans * 49, stem, pixels, bias=False),
        *[count_linear(stem * 9, stem, pixels, bias=False)] * 2,
        *[count_norm(stem)] * 3,
    )
    return total(convolutions) + count_linear(stem * (patch // 2) ** 2, dim, size**2)


def _count_transition(architecture: Architecture, index: int, tokens: int) -> Cost:
    """Count what stands in front of a stage, and position encodings in it."""
    dim = architecture.stages[index].dim
    previous = architecture.stages[max(index - 1, 0)].dim
    match architecture.family:
        case "swin" if index:
            return count_norm(4 * previous) + count_linear(4 * previous, dim, tokens, bias=False)
        case "volo" if index == 1:
            return count_linear(4 * previous, dim, tokens) + Cost(dim * tokens, 0)
        case "twins":
            encoding = Cost(10 * dim, 9 * dim * tokens)
            if index == 0:
                return encoding
            return encoding + count_linear(4 * previous, dim, tokens) + count_norm(dim)
        case _:
            return Cost(0, 0)


def _count_blocks(
    architecture: Architecture, stage: Stage, size: Size, rules: MapRules
) -> Iterator[Cost]:
    for mixer, ratio in zip(stage.mixers, stage.ratios, strict=True):
        yield _count_block(architecture, stage, mixer, ratio, size, rules)


def _count_block(
    architecture: Architecture,
    stage: Stage,
    mixer: Mixer,
    mlp_ratio: float,
    size: Size,
    rules: MapRules,
) -> Cost:
    dim, tokens = stage.dim, math.prod(size)
    cost = count_mixer(
        mixer,
        dim=dim,
        size=size,
        qkv_bias=FAMILIES[architecture.family].qkv_bias,
        norm=stage.norm,
        rules=rules,
    )
    if mlp_ratio:
        cost += count_norm(dim, stage.norm) + _count_mlp(dim, int(dim * mlp_ratio), tokens)
    if stage.se_reduction and not isinstance(mixer, NoMixer):
        cost += _count_mlp(dim, dim // stage.se_reduction, 1)
    if stage.local_conv:
        area = stage.local_conv**2
        cost += count_norm(dim, stage.norm) + Cost((area + 1) * dim, tokens * area * dim)
    return cost


def _count_mlp(dim: int, hidden: int, tokens: int) -> Cost:
    return count_linear(dim, hidden, tokens) + count_linear(hidden, dim, tokens)


def _count_head(architecture: Architecture) -> Cost:
    dim, classes = architecture.stages[-1].dim, architecture.num_classes
    head = count_norm(dim) + count_linear(dim, classes, 1)
    if architecture.family != "volo":
        return head
    tokens, ratio = architecture.resolutions[-1] ** 2, architecture.stages[-1].mlp_ratio
    block = (
        count_norm(dim),
        count_norm(dim),
        count_linear(dim, dim, 1, bias=False),
        count_linear(dim, 2 * dim, tokens + 1, bias=False),
        Cost(0, 2 * (tokens + 1) * dim),
        count_linear(dim, dim, 1),
        _count_mlp(dim, int(dim * ratio), 1),
    )
    auxiliary = count_linear(dim, classes, tokens)
    return head + Cost(dim, 0) + total([total(block)] * CLASS_BLOCKS) + auxiliary
