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

from searchspace.mixers import WindowAttention, split_terms
from supernet.kernels.normalisation import normalise
from supernet.kernels.select import prefers_sdpa
from supernet.mixers.attention import AttentionWeights
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
        padded = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
        if shift:
            padded = padded.roll((-shift, -shift), (1, 2))
        grid = (padded.shape[1], padded.shape[2])
        mixed = self._attend(_partition(padded, window), mixer, window, grid, shift)
        y = _merge(mixed, window, grid)
        if shift:
            y = y.roll((shift, shift), (1, 2))
        return y[:, :height, :width]

    def _attend(
        self,
        x_BWLC: Tensor,
        mixer: WindowAttention,
        window: int,
        grid: tuple[int, int],
        shift: int,
    ) -> Tensor:
        heads = (mixer.num_heads, -1)
        tokens = self.attention.project_in(x_BWLC, mixer)
        q, k, v = (
            tokens[part].unflatten(-1, heads).transpose(2, 3) if part in tokens else None
            for part in "qkv"
        )  # (B, W, N, L, D)
        assert v is not None
        scale = v.shape[-1] ** -0.5
        tables = self.attention.tables(mixer, 2 * mixer.window_size - 1)
        offsets = _offsets(window, mixer.window_size, x_BWLC.device)
        masked = _foreign_pairs(*grid, window, shift, x_BWLC.device) if shift else None
        terms: list[Tensor] = []  # each broadcasts to (B, W, N, L, L)
        if "bias" in tables:
            bias = _gather(tables["bias"], offsets).permute(2, 0, 1)
            if masked is not None and mixer.norm == "softmax":
                # One tensor for bias and mask: the logits are then passed over once, not twice.
                bias, masked = bias.masked_fill(masked, -torch.inf), None
            terms.append(bias)
        if "qr" in tables and q is not None:
            r = _gather(tables["qr"], offsets).unflatten(-1, heads)  # (L, L, N, D)
            terms.append(torch.einsum("bwnid,ijnd->bwnij", q * scale, r))
        if "rk" in tables and k is not None:
            r = _gather(tables["rk"], offsets).unflatten(-1, heads)
            terms.append(torch.einsum("ijnd,bwnjd->bwnij", r, k * scale))
        if "qk" in split_terms(mixer.terms) and q is not None and k is not None:
            if mixer.norm == "softmax" and prefers_sdpa(q):
                return self._leave(_sdpa(q, k, v, terms, masked))
            terms.append((q * scale) @ k.transpose(-2, -1))
        weights = normalise(sum(terms[1:], start=terms[0]), mixer.norm, masked)
        return self._leave(weights @ v)

    def _leave(self, y_BWNLD: Tensor) -> Tensor:
        return self.attention.proj(y_BWNLD.transpose(2, 3).flatten(-2))


def _sdpa(q: Tensor, k: Tensor, v: Tensor, terms: list[Tensor], masked: Tensor | None) -> Tensor:
    """Attend with additive terms through PyTorch's fused kernel, which scales q.k itself."""
    if masked is not None:
        terms = [*terms, torch.zeros_like(masked, dtype=q.dtype).masked_fill(masked, -torch.inf)]
    mask = sum(terms[1:], start=terms[0]) if terms else None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _gather(table: Tensor, offsets: Tensor) -> Tensor:
    """Read rows (L, L, ...) of a table of offsets.

    `index_select` has the cheapest gradient: 2 to 6 times cheaper than that of indexing for the
    wide tables r^k and r^q.
    """
    return table.index_select(0, offsets.flatten()).unflatten(0, offsets.shape)


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
