"""How one large weight serves many settings: the slices that weight sharing is made of.

Rules, so that a weight's meaning never depends on which other settings a space offers: a smaller
kernel or window is the *centre* of a larger one; a coarser head uses the row of the finest head
that starts at the same channel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isqrt
from typing import TypeVar

import torch
from torch import Tensor, nn

from searchspace.architecture import BlockNorm
from searchspace.map_rules import CLASSIFIER, MapRules
from searchspace.mixers import Mixer
from supernet.mixers.constants import kept
from supernet.mixers.weight_sharing import WeightSharing

LinearT = TypeVar("LinearT", bound=nn.Linear)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where in a network a mixer stands: what a mixer's module needs to know beside its settings.

    Attributes:
        dim: Channels.
        size: Side of the map in tokens that the network was designed for.
        block: Index of the block in its stage.
        qkv_bias: Whether projections to queries, keys and values have biases.
        norm: The norms that the stage asks for; see `searchspace.architecture.Stage`.
        sharing: What the choices of a block share.
        rules: What is done at the border of a map.
    """

    dim: int
    size: int
    block: int = 0
    qkv_bias: bool = True
    norm: BlockNorm = "default"
    sharing: WeightSharing = field(default_factory=WeightSharing)
    rules: MapRules = CLASSIFIER


def centre_taps(table: Tensor, size: int) -> Tensor:
    """Cut the centre out of a table over offsets.

    Args:
        table: Shape (S * S, ...), row-major over offsets; offset zero is at S // 2.
        size: Side of the wanted table, at most S; its offset zero is at size // 2.

    Returns:
        Shape (size * size, ...); the table itself when nothing is cut.
    """
    full = isqrt(table.shape[0])
    if size == full:
        return table
    start = full // 2 - size // 2
    square = table.unflatten(0, (full, full))
    return square[start : start + size, start : start + size].flatten(0, 1)


def head_rows(table: Tensor, num_heads: int, *, dim: int) -> Tensor:
    """Pick a row for each of ``num_heads`` heads from a table over finer heads.

    Args:
        table: Shape (H, ...), one row for each of H >= ``num_heads`` heads.
        dim: Axis of the heads, counted from the front.

    Returns:
        The same shape with ``num_heads`` on that axis; head j takes row floor(j * H / num_heads),
        the fine head that begins at the same channel.
    """
    full = table.shape[dim]
    if num_heads == full:
        return table
    if full % num_heads == 0:
        step = full // num_heads
        return table.unflatten(dim, (num_heads, step)).select(dim + 1, 0)
    return table.index_select(dim, _fine_heads(num_heads, full, table.device))


@kept
def _fine_heads(num_heads: int, full: int, device: torch.device) -> Tensor:
    """Number the fine heads that begin where each of ``num_heads`` heads does."""
    return torch.arange(num_heads, device=device) * full // num_heads


def check_map_size(x: Tensor, mixer: Mixer, *, size: int) -> None:
    """Refuse a map (B, H, W, C) that is not ``size`` x ``size``, for weights of each position.

    Raises:
        ValueError: If the map has another size.
    """
    if x.shape[1:3] != (size, size):
        raise ValueError(
            f"{mixer.kind} with shared_positions=False has weights for each position of "
            f"{size} x {size} tokens, got a map of {x.shape[1]} x {x.shape[2]}. Build the network "
            "for images of this size, or share the positions."
        )


def state_of(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Return a module's parameters and buffers under names that start with ``prefix.``."""
    return {f"{prefix}.{name}": value for name, value in module.state_dict(keep_vars=True).items()}


def new_table(*shape: int) -> nn.Parameter:
    """Make a learned table with the initialisation of relative position tables: N(0, .02) cut."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(*shape), std=0.02))


def new_linear(in_features: int, out_features: int, *, bias: bool = True) -> nn.Linear:
    """Make a linear layer with the initialisation of Swin: weights N(0, .02) cut, bias 0."""
    return start_linear(nn.Linear(in_features, out_features, bias=bias))


def start_linear(linear: LinearT) -> LinearT:
    """Give a linear layer the initialisation of Swin: weights N(0, .02) cut, bias 0."""
    nn.init.trunc_normal_(linear.weight, std=0.02)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear
