"""Parameters and multiply-accumulates (MACs) of one mixer, in closed form.

`searchspace.cost` says what counts. Everything is a function of the settings, the width ``dim``,
the sides ``size`` of the map in tokens, and the rules for maps that windows do not divide.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from searchspace.map_rules import CLASSIFIER, MapRules
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
    NoMixer,
    OutlookAttention,
    WindowAttention,
    elsa_qk_dim,
    split_terms,
)

Size = tuple[int, int]  # rows and columns of a map, in tokens


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
    mixer: Mixer,
    *,
    dim: int,
    size: int | Size,
    qkv_bias: bool = True,
    norm: str = "default",
    rules: MapRules = CLASSIFIER,
) -> Cost:
    """Count what depends on a block's mixer: the mixer and, for attention, the norm before it.

    Args:
        dim: The width in channels.
        size: The sides of the map in tokens; one number for a square.
        qkv_bias: Whether the projections to queries, keys and values have biases.
        norm: The norms of the block, see `searchspace.architecture.Stage`.
        rules: What is done at the border of the map.
    """
    sides = (size, size) if isinstance(size, int) else size
    if isinstance(mixer, NoMixer):
        return Cost(0, 0)
    if mixer.kind in CONV_KINDS:
        tokens = math.prod(rules.padded(sides, getattr(mixer, "kernel_size", 1)))
        return _count_conv_frame(dim, tokens, norm) + _count_filter(mixer, dim, tokens)
    return count_norm(dim, norm) + _count_attention_like(mixer, dim, sides, qkv_bias, rules)


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


def _count_attention_like(
    mixer: Mixer, dim: int, size: Size, qkv_bias: bool, rules: MapRules
) -> Cost:
    tokens = math.prod(size)
    match mixer:
        case WindowAttention():
            padded, area = _tile(mixer.window_size, size, rules)
            tables = Tables(padded, area, (2 * math.isqrt(area) - 1) ** 2)
            return _count_attention(mixer, dim, tokens, tables, qkv_bias)
        case NeighborhoodAttention():
            area = mixer.kernel_size**2
            return _count_attention(mixer, dim, tokens, Tables(tokens, area, area), qkv_bias)
        case LocalMlp():
            return _count_local_mlp(mixer, dim, size, qkv_bias, rules)
        case DecoupledDynamicFilter():
            return _count_ddf(mixer, dim, tokens, qkv_bias)
        case OutlookAttention():
            return _count_outlook(mixer, dim, size, qkv_bias)
        case Elsa():
            return _count_elsa(mixer, dim, tokens, qkv_bias)
        case GlobalAttention():
            return _count_global(mixer, dim, size, qkv_bias)
        case _:
            raise AssertionError(mixer)


def _tile(window: int, size: Size, rules: MapRules) -> tuple[int, int]:
    """Return the tokens of a map padded to whole windows, and those of a window."""
    window = rules.window(window, size)
    return math.prod(math.ceil(side / window) * window for side in size), window**2


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


def _count_local_mlp(
    mixer: LocalMlp, dim: int, size: Size, qkv_bias: bool, rules: MapRules
) -> Cost:
    tokens, area = _tile(mixer.window_size, size, rules)
    offsets = (2 * math.isqrt(area) - 1) ** 2
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


def _count_outlook(mixer: OutlookAttention, dim: int, size: Size, qkv_bias: bool) -> Cost:
    pairs, tokens = mixer.kernel_size**4, math.prod(size)
    pooled = math.prod(math.ceil(side / mixer.stride) for side in size)
    return (
        count_linear(dim, dim, tokens, bias=qkv_bias)
        + count_linear(dim, mixer.num_heads * pairs, pooled)
        + Cost(0, pooled * pairs * dim)
        + count_linear(dim, dim, tokens)
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


def _count_global(mixer: GlobalAttention, dim: int, size: Size, qkv_bias: bool) -> Cost:
    tokens, ratio = math.prod(size), mixer.sr_ratio
    keys = math.prod(side // ratio for side in size)
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
