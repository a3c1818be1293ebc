"""Attention inside (shifted) windows: Swin's mixer, with any subset of the four terms.

Swin Transformer (https://arxiv.org/abs/2103.14030), eq. (4); terms and normalisation as in Zhou et
al. 2023, Eq. 4 (`supernet.mixers.attention` lists what the papers leave open).

Shape suffixes: B images, W windows of an image, L tokens of a window, N num_heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from searchspace.mixers import WindowAttention, split_terms
from supernet.kernels import normalise, prefers_sdpa
from supernet.mixers.attention import AttentionWeights, Tables, Tokens
from supernet.mixers.convolutional_attention import convolve_logits, static_in_windows
from supernet.mixers.sharing import Place
from supernet.mixers.windows import (
    Tiling,
    cut_windows,
    foreign_logits,
    foreign_pairs,
    join_windows,
    pair_offsets,
    tile,
)

# CUDA's grids have no more places along the axis that PyTorch's fused kernels give the batch.
MOST_FUSED = 65_535


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
        self.is_shifted, self.rules = place.block % 2 == 1, place.rules
        largest = max(option.window_size for option in options)
        self.attention = AttentionWeights(options, place=place, taps=2 * largest - 1)

    def select(self, mixer: WindowAttention) -> dict[str, Tensor]:
        """Return the state of the module that has only this setting."""
        state = self.attention.select(mixer, 2 * mixer.window_size - 1)
        return {f"attention.{name}": value for name, value in state.items()}

    def forward(self, x: Tensor, mixer: WindowAttention) -> Tensor:
        """Mix the tokens of a map of shape (B, H, W, C); the shape stays."""
        tiling = tile(
            (x.shape[1], x.shape[2]),
            window=mixer.window_size,
            is_shifted=self.is_shifted,
            rules=self.rules,
        )
        convolved = self.attention.convolve(x, mixer)
        cut_convolved = None if convolved is None else cut_windows(convolved, tiling)
        x_BWLC = cut_windows(x, tiling)
        mixed = self.attention(
            x_BWLC,
            mixer,
            partial(_attend, x_BWLC, mixer, tiling),
            taps=2 * mixer.window_size - 1,
            convolved=cut_convolved,
        )
        return join_windows(mixed, tiling)


def _attend(
    x_BWLC: Tensor, mixer: WindowAttention, tiling: Tiling, tokens: Tokens, tables: Tables
) -> Tensor:
    """Attend inside windows: (B, W, L, C)."""
    q, k, v = (
        tokens[part].unflatten(-1, (mixer.num_heads, -1)).transpose(2, 3)
        if part in tokens
        else None
        for part in "qkv"
    )  # (B, W, N, L, D)
    assert v is not None
    masked = foreign_pairs(tiling, x_BWLC.device)[:, None] if tiling.shift else None
    offsets = pair_offsets(tiling.window, mixer.window_size, x_BWLC.device)
    terms: list[Tensor] = []  # each broadcasts to (B, W, N, L, L)
    if "bias" in tables:
        bias = _gather(tables["bias"], offsets).permute(2, 0, 1)
        if masked is not None and mixer.norm == "softmax":
            # One tensor for bias and mask: the logits are then passed over once, not twice.
            bias, masked = bias.masked_fill(masked, -torch.inf), None
        terms.append(bias)
    terms += _relative_terms(q, k, tables, offsets)
    if "static" in tables:
        terms.append(static_in_windows(x_BWLC, tables["static"], offsets))
    if "qk" in split_terms(mixer.terms) and q is not None and k is not None:
        if "post" not in tables and mixer.norm == "softmax" and prefers_sdpa(q):
            if masked is not None:
                terms.append(foreign_logits(tiling, q.dtype, q.device)[:, None])
            return _joined(_sdpa(q, k, v, terms))
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        if "post" in tables:
            logits = convolve_logits(logits.transpose(2, 3), tables["post"]).transpose(2, 3)
        terms.append(logits)
    weights = normalise(sum(terms[1:], start=terms[0]), mixer.norm, masked)
    return _joined(weights @ v)


def _relative_terms(
    q: Tensor | None, k: Tensor | None, tables: Tables, offsets: Tensor
) -> Iterator[Tensor]:
    """Yield q_i.r^k_{j-i} and r^q_{j-i}.k_j, scaled, where they are terms: (B, W, N, L, L)."""
    if "qr" in tables and q is not None:
        r = _gather(tables["qr"], offsets).unflatten(-1, (q.shape[2], -1))  # (L, L, N, D)
        yield torch.einsum("bwnid,ijnd->bwnij", q * q.shape[-1] ** -0.5, r)
    if "rk" in tables and k is not None:
        r = _gather(tables["rk"], offsets).unflatten(-1, (k.shape[2], -1))
        yield torch.einsum("ijnd,bwnjd->bwnij", r, k * k.shape[-1] ** -0.5)


def _joined(y_BWNLD: Tensor) -> Tensor:
    """Join the channels of the heads: (B, W, L, C)."""
    return y_BWNLD.transpose(2, 3).flatten(-2)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, terms: list[Tensor]) -> Tensor:
    """Attend with additive terms through PyTorch's fused kernels, which scale q.k themselves.

    They take tensors of four axes only. Windows join the images, or the heads where what is added
    differs from window to window and not from image to image: then it is not repeated.
    """
    mask = sum(terms[1:], start=terms[0]) if terms else None
    differs = mask is not None and mask.dim() == 4
    joined = (1, 2) if differs or q.shape[0] * q.shape[1] > MOST_FUSED else (0, 1)
    flat_q, flat_k, flat_v = (x.flatten(*joined) for x in (q, k, v))
    if mask is not None and (mask.dim() > 3 or joined == (1, 2)):
        mask = mask[None] if mask.dim() == 3 else mask
        first = 5 - mask.dim()
        mask = mask.expand(*q.shape[first:3], *mask.shape[-2:])
        mask = mask.flatten(joined[0] - first, joined[1] - first)
    if mask is not None and mask.dim() == 3:
        mask = mask[None]
    y = F.scaled_dot_product_attention(flat_q, flat_k, flat_v, attn_mask=mask)
    return y.unflatten(joined[0], q.shape[joined[0] : joined[1] + 1])


def _gather(table: Tensor, offsets: Tensor) -> Tensor:
    """Read rows (L, L, ...) of a table of offsets.

    `index_select` has the cheapest gradient: 2 to 6 times cheaper than that of indexing for the
    wide tables r^k and r^q.
    """
    return table.index_select(0, offsets.flatten()).unflatten(0, offsets.shape)
