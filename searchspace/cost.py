"""Parameters and multiply-accumulates (MACs) of an architecture, in closed form.

MACs are those of one image: the multiply-accumulates of convolutions, linear layers and matrix
products, plus the mixer's own aggregation: tokens * channels * area for every filter that is
applied, and the same again for the additive part of the ghost head. Norms, activations and adding
a bias are free. The counts equal those of the built network exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from searchspace.architecture import Architecture, Stage
from searchspace.mixers import (
    CONV_KINDS,
    DepthwiseConv,
    Elsa,
    InhomogeneousDepthwiseConv,
    Mixer,
    NeighborhoodAttention,
    WindowAttention,
    split_terms,
)


@dataclass(frozen=True, slots=True)
class Cost:
    """Learnable parameters, and multiply-accumulates for one image. Costs add up."""

    params: int
    macs: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.macs + other.macs)


def count(architecture: Architecture) -> Cost:
    """Count the whole network, with its head."""
    return _total(count_parts(architecture).values())


def count_parts(architecture: Architecture) -> dict[str, Cost]:
    """Count ``stem``, ``stage0``, ``stage1``, ... and ``head``, in the order of the forward pass.

    The patch merging between two stages belongs to the later stage.
    """
    stages, sizes = architecture.stages, architecture.resolutions
    parts = {"stem": _count_stem(architecture)}
    for index, (stage, size) in enumerate(zip(stages, sizes, strict=True)):
        blocks = _total(_count_block(stage, mixer, size) for mixer in stage.mixers)
        if index > 0:
            blocks += _count_merging(stages[index - 1].dim, stage.dim, size)
        parts[f"stage{index}"] = blocks
    parts["head"] = _count_head(stages[-1].dim, architecture.num_classes)
    return parts


def count_mixer(mixer: Mixer, *, dim: int, size: int) -> Cost:
    """Count what depends on a block's mixer: the mixer and, for attention, the norm before it.

    Args:
        dim: The width in channels.
        size: The side of the square map, in tokens.
    """
    norm = Cost(0 if mixer.kind in CONV_KINDS else 2 * dim, 0)
    match mixer:
        case WindowAttention():
            return norm + _count_window_attention(mixer, dim, size)
        case NeighborhoodAttention():
            return norm + _count_attention(
                mixer,
                dim,
                tokens=size**2,
                area=mixer.kernel_size**2,
                offsets=mixer.kernel_size**2,
            )
        case DepthwiseConv():
            return norm + _count_depthwise_conv(mixer, dim, size**2)
        case InhomogeneousDepthwiseConv():
            return norm + _count_inhomogeneous(mixer, dim, size**2)
        case Elsa():
            return norm + _count_elsa(mixer, dim, size**2)


def _total(costs: Iterable[Cost]) -> Cost:
    return sum(costs, Cost(0, 0))


def _count_linear(inputs: int, outputs: int, tokens: int, *, bias: bool = True) -> Cost:
    """Count a linear layer (or 1x1 convolution) on ``tokens`` tokens."""
    weights = inputs * outputs
    return Cost(weights + outputs * bias, tokens * weights)


def _count_norm(dim: int) -> Cost:
    return Cost(2 * dim, 0)


def _count_stem(architecture: Architecture) -> Cost:
    dim, size = architecture.stages[0].dim, architecture.resolutions[0]
    pixels = architecture.in_chans * architecture.patch_size**2
    return _count_linear(pixels, dim, size**2) + _count_norm(dim)


def _count_merging(previous: int, dim: int, size: int) -> Cost:
    return _count_norm(4 * previous) + _count_linear(4 * previous, dim, size**2, bias=False)


def _count_head(dim: int, num_classes: int) -> Cost:
    return _count_norm(dim) + _count_linear(dim, num_classes, 1)


def _count_block(stage: Stage, mixer: Mixer, size: int) -> Cost:
    hidden, tokens = int(stage.dim * stage.mlp_ratio), size**2
    mlp = _count_linear(stage.dim, hidden, tokens) + _count_linear(hidden, stage.dim, tokens)
    return count_mixer(mixer, dim=stage.dim, size=size) + _count_norm(stage.dim) + mlp


def _count_window_attention(mixer: WindowAttention, dim: int, size: int) -> Cost:
    # A window larger than the map shrinks to it; a map that windows do not tile is padded.
    window = min(mixer.window_size, size)
    padded = math.ceil(size / window) * window
    return _count_attention(
        mixer, dim, tokens=padded**2, area=window**2, offsets=(2 * window - 1) ** 2
    )


def _count_attention(
    mixer: WindowAttention | NeighborhoodAttention,
    dim: int,
    *,
    tokens: int,
    area: int,
    offsets: int,
) -> Cost:
    """Count attention of every token to ``area`` others, with tables of ``offsets`` rows."""
    terms = set(split_terms(mixer.terms))
    projections = 2 + bool(terms & {"qk", "qr"}) + bool(terms & {"qk", "rk"})
    products = 1 + len(terms - {"bias"})
    tables = dim * len(terms & {"qr", "rk"}) + mixer.num_heads * ("bias" in terms)
    return Cost(
        projections * (dim * dim + dim) + offsets * tables,
        tokens * (projections * dim * dim + products * dim * area),
    )


def _count_depthwise_conv(mixer: DepthwiseConv, dim: int, tokens: int) -> Cost:
    weights = dim * mixer.kernel_size**2
    depthwise = Cost(weights + dim, tokens * weights)
    return _count_conv_frame(dim, tokens) + depthwise


def _count_inhomogeneous(mixer: InhomogeneousDepthwiseConv, dim: int, tokens: int) -> Cost:
    area, hidden = mixer.kernel_size**2, dim // 4
    generator = (
        _count_linear(dim, hidden, tokens)
        + _count_norm(hidden)
        + _count_linear(hidden, mixer.num_groups * area, tokens)
    )
    return _count_conv_frame(dim, tokens) + generator + Cost(0, tokens * dim * area)


def _count_conv_frame(dim: int, tokens: int) -> Cost:
    """Count the two 1x1 convolutions around a spatial filter, and the three batch norms."""
    convolutions = _total([_count_linear(dim, dim, tokens, bias=False)] * 2)
    return convolutions + _total([_count_norm(dim)] * 3)


def _count_elsa(mixer: Elsa, dim: int, tokens: int) -> Cost:
    area = mixer.kernel_size**2
    qk_dim = math.ceil(dim // 3 * 2 / mixer.group_width) * mixer.group_width
    grouped = qk_dim * mixer.group_width * area
    matrices = (mixer.lam != 0) + (mixer.gamma != 0)
    applied = 1 + (mixer.gamma != 0)
    return (
        _count_linear(dim, 2 * qk_dim + dim, tokens)
        + Cost(grouped + qk_dim, tokens * grouped)
        + _count_linear(qk_dim, mixer.num_heads * area, tokens)
        + Cost(matrices * dim * area, tokens * applied * dim * area)
        + _count_linear(dim, dim, tokens)
    )
