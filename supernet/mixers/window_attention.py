"""Attention inside (shifted) windows: Swin's mixer, with any subset of the four terms.

Swin Transformer (https://arxiv.org/abs/2103.14030), eq. (4); terms and normalisation as in Zhou et
al. 2023, Eq. 4 (`supernet.mixers.attention` lists what the papers leave open).

Shape suffixes: B images, W windows of an image, L tokens of a window, N num_heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from searchspace.mixers import WindowAttention
from supernet.mixers.attention import AttentionWeights, normalise
from supernet.mixers.convolutional_attention import convolve_logits, static_in_windows
from supernet.mixers.sharing import Place


class WindowAttentionMixer(nn.Module):
    """Window attention of every setting in ``options``, weights shared.

    Odd blocks shift the windows by half a window, unless one window covers the map. A map that the
    window does not divide is padded with zeros at the bottom and right; padded tokens take part
    as keys, as in the published detection code.

    Args:
        options: The settings that the block offers.
        place: Where the mixer stands; the parity of its block decides the shift, any map size
            works.
    """

    def __init__(self, options: Sequence[WindowAttention], *, place: Place) -> None:
        super().__init__()
        self.is_shifted = place.block % 2 == 1
        largest = max(option.window_size for option in options)
        self.attention = AttentionWeights(options, place=place, taps=2 * largest - 1)

    def select(self, mixer: WindowAttention) -> dict[str, Tensor]:
        """Return the state of the module that has only this setting."""
        state = self.attention.select(mixer, 2 * mixer.window_size - 1)
        return {f"attention.{name}": value for name, value in state.items()}

    def forward(self, x: Tensor, mixer: WindowAttention) -> Tensor:
        """Mix the tokens of a map of shape (B, H, W, C); the shape stays."""
        _, height, width, _ = x.shape
        window = min(mixer.window_size, max(height, width))
        shift = window // 2 if self.is_shifted and window < min(height, width) else 0
        grid = (height + -height % window, width + -width % window)

        def cut(map_BHWC: Tensor) -> Tensor:
            padded = F.pad(map_BHWC, (0, 0, 0, grid[1] - width, 0, grid[0] - height))
            return _partition(padded.roll((-shift, -shift), (1, 2)) if shift else padded, window)

        convolved = self.attention.convolve(x, mixer)
        cut_convolved = None if convolved is None else cut(convolved)
        mixed = self._attend(cut(x), cut_convolved, mixer, window, grid, shift)
        y = _merge(mixed, window, grid)
        if shift:
            y = y.roll((shift, shift), (1, 2))
        return y[:, :height, :width]

    def _attend(
        self,
        x_BWLC: Tensor,
        convolved: Tensor | None,
        mixer: WindowAttention,
        window: int,
        grid: tuple[int, int],
        shift: int,
    ) -> Tensor:
        heads = (mixer.num_heads, -1)
        tokens = self.attention.project_in(x_BWLC, mixer, convolved)
        q, k, v = (
            tokens[part].unflatten(-1, heads).transpose(2, 3) if part in tokens else None
            for part in "qkv"
        )  # (B, W, N, L, D)
        assert v is not None
        scale = v.shape[-1] ** -0.5
        tables = self.attention.tables(mixer, 2 * mixer.window_size - 1)
        offsets = _offsets(window, mixer.window_size, x_BWLC.device)
        logits: Tensor | None = None
        if "qk" in mixer.terms and q is not None and k is not None:
            logits = (q * scale) @ k.transpose(-2, -1)
            if (kernel := self.attention.post_kernel_of(mixer)) is not None:
                logits = convolve_logits(logits.transpose(2, 3), kernel).transpose(2, 3)
        if "qr" in tables and q is not None:
            r = tables["qr"][offsets].unflatten(-1, heads)  # (L, L, N, D)
            logits = _add(logits, torch.einsum("bwnid,ijnd->bwnij", q * scale, r))
        if "rk" in tables and k is not None:
            r = tables["rk"][offsets].unflatten(-1, heads)
            logits = _add(logits, torch.einsum("ijnd,bwnjd->bwnij", r, k * scale))
        if "static" in tables:
            logits = _add(logits, static_in_windows(x_BWLC, tables["static"], offsets))
        if "bias" in tables:
            logits = _add(logits, tables["bias"][offsets].permute(2, 0, 1))
        masked = _foreign_pairs(*grid, window, shift, x_BWLC.device) if shift else None
        assert logits is not None
        weights = normalise(logits, mixer.norm, masked)
        return self.attention.proj((weights @ v).transpose(2, 3).flatten(-2))


def _add(logits: Tensor | None, term: Tensor) -> Tensor:
    return term if logits is None else logits + term


def _partition(x_BHWC: Tensor, window: int) -> Tensor:
    """Cut (B, H, W, C) into (B, windows, tokens of a window, C), both row-major."""
    batch, height, width, dim = x_BHWC.shape
    x = x_BHWC.view(batch, height // window, window, width // window, window, dim)
    return x.transpose(2, 3).reshape(batch, -1, window * window, dim)


def _merge(x_BWLC: Tensor, window: int, grid: tuple[int, int]) -> Tensor:
    """Invert `_partition` for a map of ``grid`` = (H, W) tokens."""
    batch, _, _, dim = x_BWLC.shape
    rows, columns = grid[0] // window, grid[1] // window
    x = x_BWLC.view(batch, rows, columns, window, window, dim)
    return x.transpose(2, 3).reshape(batch, *grid, dim)


# Cached tensors outlive the call: made in inference mode, they could not be used in training.
@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _offsets(window: int, table_window: int, device: torch.device) -> Tensor:
    """Index the table of side 2 * table_window - 1 by (query, key): the offset key minus query."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    y, x = y.flatten(), x.flatten()
    reach, side = table_window - 1, 2 * table_window - 1
    index = (y[None] - y[:, None] + reach) * side + x[None] - x[:, None] + reach
    return index.to(device)  # (L, L)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _foreign_pairs(
    height: int, width: int, window: int, shift: int, device: torch.device
) -> Tensor:
    """Mark the pairs of a shifted window that were not neighbours before the roll.

    Returns:
        Booleans of shape (windows, 1, L, L).
    """
    region = torch.zeros(1, height, width, 1)
    spans = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for index, (rows, columns) in enumerate((r, c) for r in spans for c in spans):
        region[:, rows, columns] = index
    ids = _partition(region, window)[0, :, :, 0]  # (windows, L)
    return (ids[:, None, :, None] != ids[:, None, None, :]).to(device)
