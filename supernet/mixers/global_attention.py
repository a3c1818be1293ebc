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
from supernet.mixers.projections import InProjection
from supernet.mixers.sharing import Place, new_linear, start_linear, state_of


class GlobalAttentionMixer(nn.Module):
    """Global attention of every setting in ``options``, weights shared.

    Heads share all weights. Every ratio has a reduction of its own.

    Args:
        options: The settings that the block offers.
        place: Where the mixer stands; any map works that is at least ``sr_ratio`` on a side.
    """

    def __init__(self, options: Sequence[GlobalAttention], *, place: Place) -> None:
        super().__init__()
        self.in_proj = start_linear(
            InProjection(place.dim, [place.dim] * 2, place.dim, bias=place.qkv_bias)
        )
        self.proj = new_linear(place.dim, place.dim)
        ratios = sorted({option.sr_ratio for option in options} - {1})
        self.reductions = nn.ModuleDict({str(r): Reduction(place.dim, r) for r in ratios})

    def select(self, mixer: GlobalAttention) -> dict[str, Tensor]:
        """Return the state of the module that has only this setting."""
        weight, bias = self.in_proj.rows((0, self.in_proj.out_features))
        state = {
            "in_proj.weight": weight,
            **({} if bias is None else {"in_proj.bias": bias}),
            **state_of(self.proj, "proj"),
        }
        if mixer.sr_ratio == 1:
            return state
        name = str(mixer.sr_ratio)
        return state | state_of(self.reductions[name], f"reductions.{name}")

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
        sizes = (dim, 2 * dim)
        weight, bias = self.in_proj.rows((0, 3 * dim))
        weights = weight.split(sizes)
        biases = (None, None) if bias is None else bias.split(sizes)
        reduced = self.reductions[str(ratio)](x)
        q = F.linear(x, weights[0], biases[0])
        return q, *F.linear(reduced, weights[1], biases[1]).split(dim, -1)


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
