"""Decoupled dynamic filters (Zhou et al. 2021, DDF, https://arxiv.org/abs/2104.14107).

Two generated filters, one at every position for each head (spatial) and one for every channel of
each image (channel), both filter-normalised over their K x K taps (eq. 4-5), are multiplied or
added (eq. 3) and applied to the map. Where the paper is silent we follow the published code:

* The deviation is the unbiased one, with 1e-10 added. The spatial filter has the fixed gain
  sqrt(2) / K, the channel filter a learned deviation for each tap and channel and no mean.
* Head h owns the contiguous channels h*C/heads to (h+1)*C/heads.

In the place of attention (Han et al. 2022, Table 6 "DDF"; no published code) the filters act on
values, between the value and output projections, and both generators read the values, as DDF's
module reads what it filters. A single tap (K = 1) has no deviation: its filter is zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from searchspace.mixers import DecoupledDynamicFilter
from supernet.kernels import aggregate, depthwise_conv, normalise
from supernet.mixers.sharing import Place, centre_taps, head_rows, new_linear, state_of


class DecoupledDynamicFilterMixer(nn.Module):
    """Decoupled dynamic filters of every setting in ``options``, weights shared.

    A narrower channel branch is the first hidden channels of a wider one; both ways to combine and
    all dilations share all weights.

    Args:
        options: The settings that the block offers.
        place: Where the mixer stands; any map size works.
    """

    def __init__(self, options: Sequence[DecoupledDynamicFilter], *, place: Place) -> None:
        super().__init__()
        dim = self.dim = place.dim
        hidden = self.hidden = max(int(dim * option.se_ratio) for option in options)
        heads = max(option.num_heads for option in options)
        taps = max(option.kernel_size for option in options) ** 2
        self.value = new_linear(dim, dim, bias=place.qkv_bias)
        self.proj = new_linear(dim, dim)
        self.reduce = nn.Linear(dim, hidden)
        spatial, channel = nn.Linear(dim, heads * taps), nn.Linear(hidden, dim * taps)
        # Tables over taps come first on axis 0, so that one function slices them all.
        self.spatial_weight = _taps_first(spatial.weight, heads)  # (K*K, heads, C)
        self.spatial_bias = _taps_first(spatial.bias, heads)
        self.channel_weight = _taps_first(channel.weight, dim)  # (K*K, C, hidden)
        self.channel_bias = _taps_first(channel.bias, dim)
        self.deviation = nn.Parameter(torch.randn(taps, dim) * math.sqrt(2 / taps))

    def select(self, mixer: DecoupledDynamicFilter) -> dict[str, Tensor]:
        """Return the state of the module that has only this setting."""
        hidden = int(self.dim * mixer.se_ratio)
        return {
            **state_of(self.value, "value"),
            **state_of(self.proj, "proj"),
            "reduce.weight": self.reduce.weight[:hidden],
            "reduce.bias": self.reduce.bias[:hidden],
            **self._slices(mixer),
        }

    def forward(self, x: Tensor, mixer: DecoupledDynamicFilter) -> Tensor:
        """Mix the tokens of a map of shape (B, H, W, C); the shape stays."""
        return self.proj(self.filter(self.value(x), mixer))

    def filter(self, values: Tensor, mixer: DecoupledDynamicFilter) -> Tensor:
        """Filter a map (B, H, W, C) with what it generates: DDF without the projections."""
        slices, size, dilation = self._slices(mixer), mixer.kernel_size, mixer.dilation
        spatial = self._spatial(values, slices, mixer)
        channel = self._channel(values, slices, mixer)
        values = values.to(spatial.dtype)
        if mixer.combine == "mul":
            return aggregate(spatial, values, size, channel, dilation=dilation)
        kernel = channel.transpose(1, 2).unflatten(-1, (size, size))
        added = depthwise_conv(values, kernel, dilation=dilation)
        return aggregate(spatial, values, size, dilation=dilation) + added

    def _spatial(
        self, values: Tensor, slices: dict[str, Tensor], mixer: DecoupledDynamicFilter
    ) -> Tensor:
        """Generate a filter for each position and head: (B, H, W, heads, K*K)."""
        weight = slices["spatial_weight"].transpose(0, 1).flatten(0, 1)
        filters = F.linear(values, weight, slices["spatial_bias"].t().flatten())
        return normalise(filters.unflatten(-1, (mixer.num_heads, -1)), "filter_norm")

    def _channel(
        self, values: Tensor, slices: dict[str, Tensor], mixer: DecoupledDynamicFilter
    ) -> Tensor:
        """Generate a filter for each channel of each image: (B, K*K, C)."""
        reduced = self._reduce(values.mean((1, 2)), int(self.dim * mixer.se_ratio))
        weight = slices["channel_weight"].flatten(0, 1)
        filters = F.linear(F.relu(reduced), weight, slices["channel_bias"].flatten())
        filters = filters.unflatten(-1, (-1, self.dim)).transpose(1, 2)
        # Its deviation takes the place of the fixed gain.
        gain = math.sqrt(2) / mixer.kernel_size
        return normalise(filters, "filter_norm").transpose(1, 2) * (slices["deviation"] / gain)

    def _reduce(self, means: Tensor, hidden: int) -> Tensor:
        if hidden == self.hidden:
            return self.reduce(means)
        return F.linear(means, self.reduce.weight[:hidden], self.reduce.bias[:hidden])

    def _slices(self, mixer: DecoupledDynamicFilter) -> dict[str, Tensor]:
        heads, hidden = mixer.num_heads, int(self.dim * mixer.se_ratio)
        tables = {
            "spatial_weight": head_rows(self.spatial_weight, heads, dim=1),
            "spatial_bias": head_rows(self.spatial_bias, heads, dim=1),
            "channel_weight": self.channel_weight[..., :hidden],
            "channel_bias": self.channel_bias,
            "deviation": self.deviation,
        }
        return {name: centre_taps(table, mixer.kernel_size) for name, table in tables.items()}


def _taps_first(parameter: Tensor, parts: int) -> nn.Parameter:
    """Reorder (parts * taps, ...) as (taps, parts, ...)."""
    return nn.Parameter(parameter.detach().unflatten(0, (parts, -1)).transpose(0, 1).contiguous())
