"""How (shifted) windows cover a map, as in Swin Transformer (https://arxiv.org/abs/2103.14030).

A map that the window does not divide is padded with zeros at the bottom and right. Shifted windows
are those of a map that is rolled up and left by half a window; they join tokens from opposite
borders, which were no neighbours before the roll.

Shape suffixes: B images, W windows of an image, L tokens of a window, both row-major, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from searchspace.map_rules import CLASSIFIER, MapRules
from supernet.mixers.constants import kept


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiling:
    """A map of ``size`` = (H, W) tokens, cut into windows.

    Attributes:
        window: Side of a window.
        shift: Rows and columns that the map is rolled by; 0 for none.
        grid: The sides of the padded map, multiples of the window.
    """

    window: int
    shift: int
    size: tuple[int, int]
    grid: tuple[int, int]


def tile(
    size: tuple[int, int], *, window: int, is_shifted: bool, rules: MapRules = CLASSIFIER
) -> Tiling:
    """Cover a map with windows.

    They are no larger than it, and one that spans a side is never shifted, unless the rules say
    that windows keep their size.
    """
    window = rules.window(window, size)
    return Tiling(
        window=window,
        shift=window // 2 if is_shifted and (rules.keeps_windows or window < min(size)) else 0,
        size=size,
        grid=(-(-size[0] // window) * window, -(-size[1] // window) * window),
    )


def cut_windows(x_BHWC: Tensor, tiling: Tiling) -> Tensor:
    """Cut a map into windows (B, W, L, C)."""
    (height, width), (rows, columns) = tiling.size, tiling.grid
    x = F.pad(x_BHWC, (0, 0, 0, columns - width, 0, rows - height))
    if tiling.shift:
        x = x.roll((-tiling.shift, -tiling.shift), (1, 2))
    return _partition(x, tiling.window)


def join_windows(x_BWLC: Tensor, tiling: Tiling) -> Tensor:
    """Invert `cut_windows`: a map (B, H, W, C)."""
    window, (height, width) = tiling.window, tiling.size
    x = x_BWLC.unflatten(2, (window, window)).unflatten(1, (-1, tiling.grid[1] // window))
    x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    if tiling.shift:
        x = x.roll((tiling.shift, tiling.shift), (1, 2))
    return x[:, :height, :width]


@kept
def pair_offsets(window: int, table_window: int, device: torch.device) -> Tensor:
    """Index a table of side 2 * table_window - 1 by (query, key): the offset key minus query.

    Returns:
        Integers of shape (L, L).
    """
    y = torch.arange(window, device=device)[:, None].expand(window, window).flatten()
    x = torch.arange(window, device=device).repeat(window)
    reach, side = table_window - 1, 2 * table_window - 1
    return (y[None] - y[:, None] + reach) * side + x[None] - x[:, None] + reach


@kept
def foreign_pairs(tiling: Tiling, device: torch.device) -> Tensor:
    """Mark the pairs of tokens of a shifted window that were no neighbours before the roll.

    Returns:
        Booleans of shape (W, L, L).
    """
    rows, columns = (_bands(side, tiling, device) for side in tiling.grid)
    regions = (3 * rows[:, None] + columns)[None, :, :, None]
    ids = _partition(regions, tiling.window)[0, :, :, 0]
    return ids[:, :, None] != ids[:, None, :]


@kept
def foreign_logits(tiling: Tiling, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return what `foreign_pairs` adds to logits: minus infinity, and zero to all other pairs.

    Returns:
        Shape (W, L, L).
    """
    masked = foreign_pairs(tiling, device)
    return torch.zeros_like(masked, dtype=dtype).masked_fill(masked, -torch.inf)


def _bands(side: int, tiling: Tiling, device: torch.device) -> Tensor:
    """Number the parts of a side that a roll keeps together: 0, 1 and 2, of shape (side,)."""
    index = torch.arange(side, device=device)
    return (index >= side - tiling.window).long() + (index >= side - tiling.shift).long()


def _partition(x_BHWC: Tensor, window: int) -> Tensor:
    x = x_BHWC.unflatten(2, (-1, window)).unflatten(1, (-1, window))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
