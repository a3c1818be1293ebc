"""UPerNet (Xiao et al. 2018, https://arxiv.org/abs/1807.10221) with an auxiliary FCN head.

mmsegmentation 0.11's ``UPerHead`` and ``FCNHead``: every convolution without bias, with batch norm
and ReLU; maps are resized bilinearly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from searchspace.dense import SegmentationHead
from supernet.mixers import ChannelBlocks


class ConvNorm(nn.Sequential):
    """A convolution without bias, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class UPerHead(nn.Module):
    """Logits at every position of the finest map.

    Args:
        dims: Channels of the stages' maps.
        head: Its shape.
        num_classes: Of the logits.
        dropout: Of whole channels in front of the classifier.
    """

    def __init__(
        self, dims: Sequence[int], head: SegmentationHead, num_classes: int, dropout: float
    ) -> None:
        super().__init__()
        channels, scales = head.channels, head.pool_scales
        self.scales = scales
        self.pooled = nn.ModuleList(ConvNorm(dims[-1], channels, 1) for _ in scales)
        self.bottleneck = ConvNorm(dims[-1] + len(scales) * channels, channels, 3)
        self.laterals = nn.ModuleList(ConvNorm(dim, channels, 1) for dim in dims[:-1])
        self.outputs = nn.ModuleList(ConvNorm(channels, channels, 3) for _ in dims[:-1])
        self.fuse = ConvNorm(len(dims) * channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classes = new_classifier(channels, num_classes)
        # What joins channels of two origins, for narrower networks (`supernet.mixers.width`).
        self.channel_blocks: ChannelBlocks = {
            "bottleneck.0.weight": (1, (dims[-1], len(scales) * channels))
        }

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map the stages' (B, C, H, W), finest first, to logits (B, num_classes, H, W)."""
        last = maps[-1]
        pooled = [
            _resize(conv(F.adaptive_avg_pool2d(last, scale)), last)
            for conv, scale in zip(self.pooled, self.scales, strict=True)
        ]
        found = [conv(x) for conv, x in zip(self.laterals, maps[:-1], strict=True)]
        found.append(self.bottleneck(torch.cat([last, *pooled], 1)))
        for index in range(len(found) - 1, 0, -1):
            found[index - 1] = found[index - 1] + _resize(found[index], found[index - 1])
        smoothed = [conv(x) for conv, x in zip(self.outputs, found[:-1], strict=True)]
        joined = [smoothed[0], *(_resize(x, smoothed[0]) for x in (*smoothed[1:], found[-1]))]
        logits: Tensor = self.classes(self.dropout(self.fuse(torch.cat(joined, 1))))
        return logits


class AuxiliaryHead(nn.Module):
    """A convolution and a classifier on one map: a second loss in training."""

    def __init__(self, dim: int, head: SegmentationHead, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.conv = ConvNorm(dim, head.aux_channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classes = new_classifier(head.aux_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to logits (B, num_classes, H, W)."""
        logits: Tensor = self.classes(self.dropout(self.conv(x)))
        return logits


def new_classifier(channels: int, num_classes: int) -> nn.Conv2d:
    """Make a 1x1 convolution that starts as N(0, .01), bias 0."""
    conv = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # it has one
    return conv


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps (B, C, H, W) bilinearly, corners not aligned."""
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return resize(x, (like.shape[-2], like.shape[-1]))
