"""Others' ways to compute what the neighbourhood operators compute, for benchmarks.

A rival takes an operator's operands as maps (B, H, W, C), brings them once, untimed, into the
layout that suits it, and returns a `Side`; where it cannot run here it raises `Unavailable`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from supernet.mixers.windows import cut_windows, foreign_pairs, join_windows, pair_offsets, tile

Function = Callable[..., Tensor]
# A mask of all pairs of tokens is for small maps.
MOST_DENSE_TOKENS = 28 * 28


class Unavailable(Exception):
    """Says in plain words why a rival does not run here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """Something to time.

    Attributes:
        function: Computes the result from the inputs, both in the side's own layout.
        inputs: Leaves that require gradients.
        to_map: Turns the result into a map (B, H, W, C).
        margin: Pixels from the border within which the result may differ from the definition.
        has_backward: Whether there is a backward pass.
        formulation: Of ours, to force; None for a rival.
    """

    function: Function
    inputs: tuple[Tensor, ...]
    to_map: Function = lambda y: y
    margin: int = 0
    has_backward: bool = True
    formulation: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """The sizes that a rival needs beside its operands."""

    side: int
    heads: int
    kernel_size: int


Rival = Callable[[tuple[Tensor, ...], Setting], Side]


def conv2d_channels_last(operands: tuple[Tensor, ...], setting: Setting) -> Side:
    """Convolve through `F.conv2d` (cuDNN, oneDNN) in the memory format channels_last."""
    return _conv2d(operands, torch.channels_last)


def conv2d_channels_first(operands: tuple[Tensor, ...], setting: Setting) -> Side:
    """Convolve through `F.conv2d` in PyTorch's default layout."""
    return _conv2d(operands, torch.contiguous_format)


def natten(operands: tuple[Tensor, ...], setting: Setting) -> Side:
    """Attend with NATTEN's fused kernel.

    Its areas are moved at the border so that all K*K neighbours lie on the map.
    """
    try:
        from natten.functional import na2d
    except ImportError as error:
        raise Unavailable(f"natten is not installed ({error})") from error
    if setting.kernel_size > setting.side or setting.kernel_size % 2 == 0:
        raise Unavailable("natten's kernels are odd and no larger than the map")
    return Side(
        function=lambda q, k, v: na2d(q, k, v, kernel_size=setting.kernel_size),
        inputs=_leaves(x.unflatten(-1, (setting.heads, -1)) for x in operands),
        to_map=lambda y: y.flatten(3),
        margin=setting.kernel_size // 2,
    )


def flex_attention(operands: tuple[Tensor, ...], setting: Setting) -> Side:
    """Attend with compiled FlexAttention and a block mask of the neighbourhoods, row by row.

    Neighbours outside the map are left out of the softmax.
    """
    try:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    except ImportError as error:
        raise Unavailable(f"this torch has no FlexAttention ({error})") from error
    # The timed backward pass runs several times over one graph.
    torch._functorch.config.donated_buffer = False
    tokens, device = setting.side**2, operands[0].device
    side, reach = setting.side, setting.kernel_size // 2

    def is_seen(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return _are_near(i, j, side, reach)

    mask = create_block_mask(is_seen, None, None, tokens, tokens, device=device.type)
    # Each shape has a graph of its own, as in a network; by default they are eight at most.
    torch._dynamo.config.recompile_limit = 64
    compiled = torch.compile(flex_attention, dynamic=False)
    return Side(
        function=lambda q, k, v: compiled(q, k, v, block_mask=mask),
        inputs=_token_leaves(operands, setting),
        to_map=functools.partial(_tokens_to_map, setting),
        margin=setting.kernel_size // 2,
        has_backward=device.type != "cpu",
    )


def dense_sdpa(operands: tuple[Tensor, ...], setting: Setting) -> Side:
    """Attend with `F.scaled_dot_product_attention` and a mask of all pairs of tokens.

    Neighbours outside the map are left out of the softmax.
    """
    if setting.side**2 > MOST_DENSE_TOKENS:
        raise Unavailable(f"all pairs of {setting.side**2} tokens are too many")
    tokens = torch.arange(setting.side**2, device=operands[0].device)
    mask = _are_near(tokens[:, None], tokens, setting.side, setting.kernel_size // 2)
    return Side(
        function=lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
        inputs=_token_leaves(operands, setting),
        to_map=functools.partial(_tokens_to_map, setting),
        margin=setting.kernel_size // 2,
    )


def window_sdpa(operands: tuple[Tensor, ...], setting: Setting) -> Side:
    """Attend in shifted windows through SDPA, with windows and heads as one axis.

    PyTorch's fused kernels take four axes only.
    """
    return _window_side(operands, setting, _attend_in_four_axes)


def window_sdpa_five_axes(operands: tuple[Tensor, ...], setting: Setting) -> Side:
    """Attend in shifted windows through SDPA with five axes, which its fused kernels refuse."""
    return _window_side(operands, setting, F.scaled_dot_product_attention)


def attend_in_windows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    setting: Setting,
    attend: Function,
) -> Tensor:
    """Cut maps (B, H, W, C) into shifted windows and attend in each, with a bias of offsets.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        table: Bias of each offset and head, shape ((2 K - 1)**2, heads).
        setting: Its kernel size K is the window.
        attend: Like `F.scaled_dot_product_attention`, on (B, windows, heads, tokens, channels).
    """
    tiling = tile((setting.side, setting.side), window=setting.kernel_size, is_shifted=True)
    offsets, foreign = _window_constants(setting, q.device)
    bias = table.index_select(0, offsets.flatten()).unflatten(0, offsets.shape).permute(2, 0, 1)
    if tiling.shift:
        bias = bias.masked_fill(foreign[:, None], -torch.inf)
    parts = (
        cut_windows(x, tiling).unflatten(-1, (setting.heads, -1)).transpose(2, 3) for x in (q, k, v)
    )
    y = attend(*parts, attn_mask=bias)
    return join_windows(y.transpose(2, 3).flatten(3), tiling)


def attend_by_products(q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor) -> Tensor:
    """Attend with explicit matrix products."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + attn_mask
    return logits.softmax(-1) @ v


def _attend_in_four_axes(q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor) -> Tensor:
    mask = attn_mask.expand(q.shape[1], -1, -1, -1).flatten(0, 1)
    q4, k4, v4 = (x.flatten(1, 2) for x in (q, k, v))
    y = F.scaled_dot_product_attention(q4, k4, v4, attn_mask=mask)
    return y.unflatten(1, q.shape[1:3])


@functools.cache
def _window_constants(setting: Setting, device: torch.device) -> tuple[Tensor, Tensor]:
    tiling = tile((setting.side, setting.side), window=setting.kernel_size, is_shifted=True)
    offsets = pair_offsets(tiling.window, setting.kernel_size, device)
    return offsets, foreign_pairs(tiling, device)


def _window_side(operands: tuple[Tensor, ...], setting: Setting, attend: Function) -> Side:
    return Side(
        function=lambda q, k, v, table: attend_in_windows(q, k, v, table, setting, attend),
        inputs=operands,
    )


def _conv2d(operands: tuple[Tensor, ...], layout: torch.memory_format) -> Side:
    values, weight, bias = operands
    image = values.permute(0, 3, 1, 2).contiguous(memory_format=layout)
    border, groups = weight.shape[-1] // 2, len(weight)
    return Side(
        function=lambda x, w, b: F.conv2d(x, w, b, padding=border, groups=groups),
        inputs=_leaves((image, weight.unsqueeze(1), bias)),
        to_map=lambda y: y.permute(0, 2, 3, 1),
    )


def _are_near(i: Tensor, j: Tensor, side: int, reach: int) -> Tensor:
    """Tell whether tokens, numbered row by row, are neighbours."""
    rows, columns = i // side - j // side, i % side - j % side
    return (rows.abs() <= reach) & (columns.abs() <= reach)


def _token_leaves(operands: tuple[Tensor, ...], setting: Setting) -> tuple[Tensor, ...]:
    """Bring maps into the layout (B, heads, tokens, channels of a head)."""
    heads = (x.flatten(1, 2).unflatten(-1, (setting.heads, -1)) for x in operands)
    return _leaves(x.transpose(1, 2).contiguous() for x in heads)


def _tokens_to_map(setting: Setting, y: Tensor) -> Tensor:
    return y.transpose(1, 2).flatten(2).unflatten(1, (setting.side, setting.side))


def _leaves(tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    return tuple(x.detach().requires_grad_() for x in tensors)
