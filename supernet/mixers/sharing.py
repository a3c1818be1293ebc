"""How one large weight serves many settings: the slices that weight sharing is made of.

Rules, so that a weight's meaning never depends on which other settings a space offers: a smaller
kernel or window is the *centre* of a larger one; a coarser head uses the row of the finest head
that starts at the same channel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def centre_taps(table: Tensor, size: int) -> Tensor:
    """Cut the centre out of a table over offsets.

    Args:
        table: Shape (S * S, ...), row-major over offsets, with S of the same parity as ``size``.
        size: Side of the wanted table, at most S.

    Returns:
        Shape (size * size, ...); the table itself when nothing is cut.
    """
    full = round(table.shape[0] ** 0.5)
    if size == full:
        return table
    start = (full - size) // 2
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
    rows = torch.arange(num_heads, device=table.device) * full // num_heads
    return table.index_select(dim, rows)


def state_of(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Return a module's parameters and buffers under names that start with ``prefix.``."""
    return {f"{prefix}.{name}": value for name, value in module.state_dict(keep_vars=True).items()}


def new_table(*shape: int) -> nn.Parameter:
    """Make a learned table with the initialisation of relative position tables: N(0, .02) cut."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(*shape), std=0.02))


def new_linear(in_features: int, out_features: int, *, bias: bool = True) -> nn.Linear:
    """Make a linear layer with the initialisation of Swin: weights N(0, .02) cut, bias 0."""
    linear = nn.Linear(in_features, out_features, bias=bias)
    nn.init.trunc_normal_(linear.weight, std=0.02)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation of channels-last maps (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel over the batch and all positions."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
