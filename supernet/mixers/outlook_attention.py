"""Outlook attention of VOLO (Yuan et al. 2021, https://arxiv.org/abs/2106.13112, Algorithm 1).

A token of the pooled map generates, through one linear layer, K*K x K*K weights a head: how each of
the K x K outputs around it is made of the K x K values around it. The softmax is over the values,
zeros outside the map among them; what several pooled tokens say about a pixel is summed and not
normalised. As in the published code, only ``v`` follows ``qkv_bias`` (the generator always has a
bias), a cell of the pooling at the border averages only real pixels, and the scale is
head_dim^-0.5.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from searchspace.mixers import OutlookAttention
from supernet.kernels import outlook_aggregate
from supernet.mixers.sharing import Place, centre_taps, head_rows, new_linear, new_table, state_of


class OutlookAttentionMixer(nn.Module):
    """Outlook attention of every setting in ``options``, weights shared.

    A smaller kernel generates the weights between the central outputs and the central values of a
    larger one. Strides share all weights.

    Args:
        options: The settings that the block offers.
        place: Where the mixer stands; any map size works.
    """

    def __init__(self, options: Sequence[OutlookAttention], *, place: Place) -> None:
        super().__init__()
        heads = max(option.num_heads for option in options)
        taps = max(option.kernel_size for option in options) ** 2
        self.value = new_linear(place.dim, place.dim, bias=place.qkv_bias)
        self.proj = new_linear(place.dim, place.dim)
        self.weight = new_table(taps, taps, heads, place.dim)  # (outputs, values, heads, C)
        self.bias = nn.Parameter(self.weight.new_zeros(taps, taps, heads).detach())

    def select(self, mixer: OutlookAttention) -> dict[str, Tensor]:
        """Return the state of the module that has only this setting."""
        weight, bias = self._generator(mixer)
        shared = {**state_of(self.value, "value"), **state_of(self.proj, "proj")}
        return {**shared, "weight": weight, "bias": bias}

    def forward(self, x: Tensor, mixer: OutlookAttention) -> Tensor:
        """Mix the tokens of a map of shape (B, H, W, C); the shape stays."""
        weights, values = self._weights(x, mixer), self.value(x)
        weights = weights.to(values.dtype)
        return self.proj(outlook_aggregate(weights, values, mixer.kernel_size, mixer.stride))

    def _weights(self, x: Tensor, mixer: OutlookAttention) -> Tensor:
        """Generate what makes outputs of values: (B, pooled, heads, outputs, values)."""
        taps, heads, stride = mixer.kernel_size**2, mixer.num_heads, mixer.stride
        pooled = F.avg_pool2d(x.permute(0, 3, 1, 2), stride, stride, ceil_mode=True)
        weight, bias = self._generator(mixer)
        weight, bias = weight.movedim(2, 0).flatten(0, 2), bias.movedim(2, 0).flatten()
        logits = F.linear(pooled.permute(0, 2, 3, 1), weight, bias)
        logits = logits.unflatten(-1, (heads, taps, taps))
        return (logits * (x.shape[-1] // heads) ** -0.5).softmax(-1)

    def _generator(self, mixer: OutlookAttention) -> tuple[Tensor, Tensor]:
        """Slice the generator: (outputs, values, heads, C) and (outputs, values, heads)."""
        size, heads = mixer.kernel_size, mixer.num_heads
        weight, bias = (
            centre_taps(centre_taps(table, size).transpose(0, 1), size).transpose(0, 1)
            for table in (self.weight, self.bias)
        )
        return head_rows(weight, heads, dim=2), head_rows(bias, heads, dim=2)
