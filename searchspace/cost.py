"""Parameters and multiply-accumulates (MACs) of an architecture, in closed form.

MACs are those of one image: the multiply-accumulates of convolutions, linear layers and matrix
products, plus the mixer's own aggregation: tokens * channels * area for every filter that is
applied, and the same again for the additive part of the ghost head. Norms, activations, pooling and
adding a bias are free. The counts equal those of the built network exactly.
"""

from __future__ import annotations

from searchspace.architecture import Architecture, Stage
from searchspace.families import CLASS_BLOCKS, FAMILIES
from searchspace.mixer_cost import Cost, count_linear, count_mixer, count_norm, total
from searchspace.mixers import Mixer

__all__ = ["Cost", "count", "count_mixer", "count_parts"]


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
        blocks = total(_count_block(architecture, stage, mixer, size) for mixer in stage.mixers)
        parts[f"stage{index}"] = blocks + _count_transition(architecture, index)
    parts["head"] = _count_head(architecture)
    return parts


def _count_stem(architecture: Architecture) -> Cost:
    dim, size = architecture.stages[0].dim, architecture.resolutions[0]
    stem, patch = architecture.stem_dim, architecture.patch_size
    if not stem:
        return count_linear(architecture.in_chans * patch**2, dim, size**2) + count_norm(dim)
    pixels = (-(-architecture.img_size // 2)) ** 2
    convolutions = (
        count_linear(architecture.in_chans * 49, stem, pixels, bias=False),
        *[count_linear(stem * 9, stem, pixels, bias=False)] * 2,
        *[count_norm(stem)] * 3,
    )
    return total(convolutions) + count_linear(stem * (patch // 2) ** 2, dim, size**2)


def _count_transition(architecture: Architecture, index: int) -> Cost:
    """Count what stands in front of a stage, and position encodings in it."""
    dim, tokens = architecture.stages[index].dim, architecture.resolutions[index] ** 2
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


def _count_block(architecture: Architecture, stage: Stage, mixer: Mixer, size: int) -> Cost:
    dim, tokens = stage.dim, size**2
    cost = count_mixer(
        mixer,
        dim=dim,
        size=size,
        qkv_bias=FAMILIES[architecture.family].qkv_bias,
        norm=stage.norm,
    )
    cost += count_norm(dim, stage.norm) + _count_mlp(dim, int(dim * stage.mlp_ratio), tokens)
    if stage.se_reduction:
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
