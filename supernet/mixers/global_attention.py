"""Attention of every token to all tokens (ViT), or to a smaller map (PVT, Twins-SVT's GSA).

Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929, eq. (5-8) of its appendix; spatial
reduction as in Chu et al. 2021, https://arxiv.org/abs/2104.13840, section 3.2: a convolution with
kernel and stride ``sr_ratio`` and a layer norm (eps 1e-5) in front of keys and values. Rows and
columns of a map that the ratio does not divide are left out at the bottom and right, as the
published convolution does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from searchspace.mixers import GlobalAttention
from supernet.mixers.projections import Rows, blocks_of_rows, named_rows, rows_of
from supernet.mixers.sharing import Place, new_linear, state_of


class GlobalAttentionMixer(nn.Module):
    """Global attention of every setting in ``options``, weights shared.

    Heads share all weights. Every ratio has a reduction of its own. Queries have a layer of their
    own where all settings make keys and values of a reduced map.

    Args:
        options: The settings that the block offers.
        place: Where the mixer stands; any map works that is at least ``sr_ratio`` on a side.
    """

    def __init__(self, options: Sequence[GlobalAttention], *, place: Place) -> None:
        super().__init__()
        ratios = sorted({option.sr_ratio for option in options} - {1})
        dim = self.dim = place.dim
        self.query = None
        rows: tuple[int, ...] = (dim,) * 3
        if all(option.sr_ratio > 1 for option in options):
            self.query, rows = new_linear(dim, dim, bias=place.qkv_bias), (dim,) * 2
        self.in_proj = new_linear(dim, sum(rows), bias=place.qkv_bias)
        self.channel_blocks = blocks_of_rows("in_proj", *rows)
        self.proj = new_linear(dim, dim)
        self.reductions = nn.ModuleDict({str(r): Reduction(place.dim, r) for r in ratios})

    def select(self, mixer: GlobalAttention) -> dict[str, Tensor]:
        """Return the state of the module that has only this setting."""
        state = state_of(self.proj, "proj")
        if mixer.sr_ratio == 1:
            return state | named_rows("in_proj", *rows_of(self.in_proj, (0, 3 * self.dim)))
        query, key_value = self._split_rows()
        name = str(mixer.sr_ratio)
        return {
            **state,
            **named_rows("query", *query),
            **named_rows("in_proj", *key_value),
            **state_of(self.reductions[name], f"reductions.{name}"),
        }

    def forward(self, x: Tensor, mixer: GlobalAttention) -> Tensor:
        """Mix the tokens of a map of shape (B, H, W, C); the shape stays.

        Raises:
            ValueError: If the map is smaller than ``sr_ratio`` on a side: it would have no keys.
        """
        q, k, v = (
            part.flatten(1, 2).unflatten(-1, (mixer.num_heads, -1)).transpose(1, 2)
            for part in self._project_in(x, mixer.sr_ratio)
        )  # (B, heads, tokens, D)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(x.shape))

    def _project_in(self, x: Tensor, ratio: int) -> tuple[Tensor, ...]:
        dim = x.shape[-1]
        if ratio == 1:
            return self.in_proj(x).split(dim, -1)
        if min(x.shape[1:3]) < ratio:
            raise ValueError(
                "global_attention: sr_ratio must be at most the sides of the map, "
                f"got sr_ratio={ratio} and a map of {x.shape[1]} x {x.shape[2]}. "
                "Use a smaller sr_ratio or a larger image."
            )
        reduced = self.reductions[str(ratio)](x)
        if self.query is not None:
            return self.query(x), *self.in_proj(reduced).split(dim, -1)
        query, key_value = self._split_rows()
        return F.linear(x, *query), *F.linear(reduced, *key_value).split(dim, -1)

    def _split_rows(self) -> tuple[Rows, Rows]:
        """Slice what makes queries, and what makes keys and values."""
        if self.query is not None:
            own = (self.query.weight, self.query.bias)
            return own, rows_of(self.in_proj, (0, 2 * self.dim))
        spans = ((0, self.dim), (self.dim, 2 * self.dim))
        query, key_value = (rows_of(self.in_proj, span) for span in spans)
        return query, key_value


class Reduction(nn.Module):
    """Shrink a map ``ratio`` times a side: a convolution of its patches and a layer norm."""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, ratio, stride=ratio)
        # The published initialisation of convolutions in Twins: He et al. 2015, fan out.
        nn.init.normal_(self.conv.weight, std=math.sqrt(2 / (ratio**2 * dim)))
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]  # it has one
        self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H // ratio, W // ratio, C)."""
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
