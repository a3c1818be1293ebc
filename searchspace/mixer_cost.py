"""Parameters and multiply-accumulates (MACs) of one mixer, in closed form.

`searchspace.cost` says what counts. Everything is a function of the settings, the width ``dim`` and
the side ``size`` of the square map in tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from searchspace.mixers import (
    CONV_KINDS,
    DecoupledDynamicFilter,
    DepthwiseConv,
    DynamicDepthwiseConv,
    Elsa,
    GlobalAttention,
    InhomogeneousDepthwiseConv,
    Involution,
    LocalMlp,
    Mixer,
    NeighborhoodAttention,
    OutlookAttention,
    WindowAttention,
    elsa_qk_dim,
    split_terms,
)


@dataclass(frozen=True, slots=True)
class Cost:
    """Learnable parameters, and multiply-accumulates for one image. Costs add up."""

    params: int
    macs: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.macs + other.macs)


def total(costs: Iterable[Cost]) -> Cost:
    """Add up costs."""
    return sum(costs, Cost(0, 0))


def count_linear(inputs: int, outputs: int, tokens: int, *, bias: bool = True) -> Cost:
    """Count a linear layer (or a convolution with ``inputs`` taps x channels) on ``tokens``."""
    weights = inputs * outputs
    return Cost(weights + outputs * bias, tokens * weights)


def count_norm(dim: int, norm: str = "default") -> Cost:
    """Count a norm of a block; centring calibration has one more parameter a channel."""
    return Cost((3 if norm == "centred_batch" else 2) * dim, 0)


def count_mixer(
    mixer: Mixer, *, dim: int, size: int, qkv_bias: bool = True, norm: str = "default"
) -> Cost:
    """Count what depends on a block's mixer: the mixer and, for attention, the norm before it.

    Args:
        dim: The width in channels.
        size: The side of the square map, in tokens.
        qkv_bias: Whether the projections to queries, keys and values have biases.
        norm: The norms of the block, see `searchspace.architecture.Stage`.
    """
    tokens = size**2
    if mixer.kind in CONV_KINDS:
        return _count_conv_frame(dim, tokens, norm) + _count_filter(mixer, dim, tokens)
    return count_norm(dim, norm) + _count_attention_like(mixer, dim, size, qkv_bias)


def _count_filter(mixer: Mixer, dim: int, tokens: int) -> Cost:
    """Count the spatial filter of a convolution block and its generator."""
    match mixer:
        case DepthwiseConv():
            area = mixer.kernel_size**2
            filters = dim // mixer.channels_per_filter * (1 if mixer.shared_positions else tokens)
            return Cost(filters * area + dim, tokens * dim * area)
        case DynamicDepthwiseConv():
            area = mixer.kernel_size**2
            generator = _count_generator(dim, dim // 4, dim * area, 1, bias=False)
            return generator + Cost(dim, tokens * dim * area)
        case InhomogeneousDepthwiseConv():
            area = mixer.kernel_size**2
            outputs = mixer.num_groups * area
            generator = _count_generator(dim, dim // 4, outputs, tokens, bias=True)
            return generator + Cost(0, tokens * dim * area)
        case Involution():
            area, hidden = mixer.kernel_size**2, dim // mixer.reduction
            outputs = dim // mixer.group_channels * area
            generator = _count_generator(dim, hidden, outputs, tokens, bias=False)
            return generator + Cost(0, tokens * dim * area)
        case _:
            raise AssertionError(mixer)


def _count_attention_like(mixer: Mixer, dim: int, size: int, qkv_bias: bool) -> Cost:
    match mixer:
        case WindowAttention():
            window, padded = _tile(mixer.window_size, size)
            tables = Tables(padded**2, window**2, (2 * window - 1) ** 2)
            return _count_attention(mixer, dim, size**2, tables, qkv_bias)
        case NeighborhoodAttention():
            area = mixer.kernel_size**2
            return _count_attention(mixer, dim, size**2, Tables(size**2, area, area), qkv_bias)
        case LocalMlp():
            return _count_local_mlp(mixer, dim, size, qkv_bias)
        case DecoupledDynamicFilter():
            return _count_ddf(mixer, dim, size**2, qkv_bias)
        case OutlookAttention():
            return _count_outlook(mixer, dim, size, qkv_bias)
        case Elsa():
            return _count_elsa(mixer, dim, size**2, qkv_bias)
        case GlobalAttention():
            return _count_global(mixer, dim, size, qkv_bias)
        case _:
            raise AssertionError(mixer)


def _tile(window: int, size: int) -> tuple[int, int]:
    """Return the window that fits the map, and the side of the map padded to whole windows."""
    # A window larger than the map shrinks to it; a map that windows do not tile is padded.
    window = min(window, size)
    return window, math.ceil(size / window) * window


@dataclass(frozen=True, slots=True)
class Tables:
    """What attention is computed over: query tokens, area of each, distinct offsets."""

    tokens: int
    area: int
    offsets: int


def _count_attention(
    mixer: WindowAttention | NeighborhoodAttention,
    dim: int,
    map_tokens: int,
    tables: Tables,
    qkv_bias: bool,
) -> Cost:
    terms, heads, tokens = set(split_terms(mixer.terms)), mixer.num_heads, tables.tokens
    in_projections = 1 + bool(terms & {"qk", "qr"}) + bool(terms & {"qk", "rk"})
    vectors = dim * len(terms & {"qr", "rk"}) + heads * ("bias" in terms)
    products = 1 + len(terms & {"qk", "qr", "rk"})
    cost = (
        count_linear(dim, in_projections * dim, tokens, bias=qkv_bias)
        + count_linear(dim, dim, tokens)
        + Cost(tables.offsets * vectors, tokens * products * dim * tables.area)
    )
    if "static" in terms:
        cost += count_linear(dim, heads * tables.offsets, tokens, bias=False)
    match mixer.conv:
        case "post":
            cost += Cost(9 * heads, 9 * heads * tokens * tables.area)
        case "pre":
            cost += Cost(9, 9 * dim * map_tokens) + count_norm(dim)
        case "pre_depthwise":
            cost += Cost(9 * dim, 9 * dim * map_tokens) + count_norm(dim)
        case "pre_full":
            cost += count_linear(9 * dim, dim, map_tokens, bias=False) + count_norm(dim)
    return cost


def _count_local_mlp(mixer: LocalMlp, dim: int, size: int, qkv_bias: bool) -> Cost:
    window, padded = _tile(mixer.window_size, size)
    tokens, area, offsets = padded**2, window**2, (2 * window - 1) ** 2
    windows = 1 if mixer.shared_positions else tokens // area
    weights = mixer.num_heads * (windows * area**2 + offsets)
    return (
        count_linear(dim, dim, tokens, bias=qkv_bias)
        + count_linear(dim, dim, tokens)
        + Cost(weights, tokens * area * dim)
    )


def _count_ddf(mixer: DecoupledDynamicFilter, dim: int, tokens: int, qkv_bias: bool) -> Cost:
    area, hidden = mixer.kernel_size**2, int(dim * mixer.se_ratio)
    spatial = count_linear(dim, mixer.num_heads * area, tokens)
    channel = count_linear(dim, hidden, 1) + count_linear(hidden, dim * area, 1)
    deviations = Cost(dim * area, 0)
    values = count_linear(dim, dim, tokens, bias=qkv_bias) + count_linear(dim, dim, tokens)
    applied = 2 if mixer.combine == "add" else 1
    return values + spatial + channel + deviations + Cost(0, tokens * applied * dim * area)


def _count_outlook(mixer: OutlookAttention, dim: int, size: int, qkv_bias: bool) -> Cost:
    pairs, pooled = mixer.kernel_size**4, math.ceil(size / mixer.stride) ** 2
    return (
        count_linear(dim, dim, size**2, bias=qkv_bias)
        + count_linear(dim, mixer.num_heads * pairs, pooled)
        + Cost(0, pooled * pairs * dim)
        + count_linear(dim, dim, size**2)
    )


def _count_elsa(mixer: Elsa, dim: int, tokens: int, qkv_bias: bool) -> Cost:
    area = mixer.kernel_size**2
    qk_dim = mixer.qk_dim or elsa_qk_dim(dim, mixer.group_width)
    v_dim = mixer.v_dim or dim
    matrices = (mixer.lam != 0) + (mixer.gamma != 0)
    applied = 1 + (mixer.gamma != 0)
    return (
        count_linear(dim, 2 * qk_dim + v_dim, tokens, bias=qkv_bias)
        + count_linear(mixer.group_width * area, qk_dim, tokens)
        + count_linear(qk_dim // mixer.logit_groups, mixer.num_heads * area, tokens)
        + Cost(matrices * v_dim * area, tokens * applied * v_dim * area)
        + count_linear(v_dim, dim, tokens)
    )


def _count_global(mixer: GlobalAttention, dim: int, size: int, qkv_bias: bool) -> Cost:
    tokens, keys, ratio = size**2, (size // mixer.sr_ratio) ** 2, mixer.sr_ratio
    reduction = Cost(0, 0)
    if ratio > 1:
        reduction = count_linear(dim * ratio**2, dim, keys) + count_norm(dim)
    return (
        reduction
        + count_linear(dim, dim, tokens, bias=qkv_bias)
        + count_linear(dim, 2 * dim, keys, bias=qkv_bias)
        + Cost(0, 2 * tokens * keys * dim)
        + count_linear(dim, dim, tokens)
    )


def _count_conv_frame(dim: int, tokens: int, norm: str) -> Cost:
    """Count the two 1x1 convolutions around a spatial filter, and the three norms."""
    convolutions = total([count_linear(dim, dim, tokens, bias=False)] * 2)
    return convolutions + total([count_norm(dim, norm)] * 3)


def _count_generator(dim: int, hidden: int, outputs: int, tokens: int, *, bias: bool) -> Cost:
    """Count the bottleneck that makes filters, with the batch norm inside."""
    return (
        count_linear(dim, hidden, tokens, bias=bias)
        + count_norm(hidden)
        + count_linear(hidden, outputs, tokens)
    )
