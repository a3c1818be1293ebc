"""Feature pyramid network (Lin et al. 2017, https://arxiv.org/abs/1612.03144), mmdetection's."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class FeaturePyramid(nn.Module):
    """Maps of the stages to maps of equal channels, and one more: each second pixel of the last.

    Args:
        dims: Channels of the stages' maps.
        channels: Of what comes out.
    """

    def __init__(self, dims: Sequence[int], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(dim, channels, 1) for dim in dims)
        self.outputs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in dims)
        for conv in (*self.laterals, *self.outputs):
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map the stages' (B, C, H, W), finest first, to one more of (B, channels, H, W)."""
        laterals = [conv(x) for conv, x in zip(self.laterals, maps, strict=True)]
        for index in range(len(laterals) - 1, 0, -1):
            finer = laterals[index - 1]
            laterals[index - 1] = finer + F.interpolate(laterals[index], finer.shape[-2:])
        found = [conv(x) for conv, x in zip(self.outputs, laterals, strict=True)]
        return [*found, F.max_pool2d(found[-1], 1, stride=2)]
