"""What the heads see of regions, and the heads themselves: boxes, classes, masks.

mmdetection 2.11's ``SingleRoIExtractor`` with mmcv's aligned RoIAlign (He et al. 2017, Mask R-CNN;
sampling as fine as the region needs), ``Shared2FCBBoxHead``, ``Shared4Conv1FCBBoxHead`` and
``FCNMaskHead``. The last class is the background.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from searchspace.dense import DetectionHead
from supernet.dense.boxes import precise


def pool_regions(
    maps: Sequence[Tensor],
    boxes: Sequence[Tensor],
    *,
    strides: Sequence[int],
    size: int,
    finest_scale: float,
) -> Tensor:
    """Cut regions out of the level that fits their size.

    Level k has the regions whose root of the area is in finest_scale * [2^k, 2^(k+1)).

    Args:
        maps: (B, C, H, W) of every level that has a stride.
        boxes: Of each image, (N, 4) in pixels.
        size: Side of what is cut out.

    Returns:
        Shape (all regions, C, size, size), image by image.
    """
    regions = with_image_numbers(boxes)
    areas = (regions[:, 3:] - regions[:, 1:3]).clamp(min=0).prod(1)
    levels = (areas.sqrt() / finest_scale + 1e-6).log2().floor().clamp(0, len(strides) - 1)
    found = maps[0].new_zeros(len(regions), maps[0].shape[1], size, size)
    for level, (x, stride) in enumerate(zip(maps, strides, strict=False)):
        chosen = torch.nonzero(levels == level).flatten()
        # Also where there is none: every level then has a gradient.
        cut = roi_align(x, regions[chosen], size, 1 / stride, sampling_ratio=0, aligned=True)
        found = found.index_add(0, chosen, cut)
    return found


def with_image_numbers(boxes: Sequence[Tensor]) -> Tensor:
    """Put the number of its image in front of every box: (all boxes, 5)."""
    numbered = [F.pad(own, (1, 0), value=number) for number, own in enumerate(boxes)]
    return torch.cat(numbered)


class BoxHead(nn.Module):
    """Classes and offsets of regions (N, C, size, size)."""

    def __init__(self, head: DetectionHead, num_classes: int) -> None:
        super().__init__()
        channels = head.channels
        layers: list[nn.Module] = []
        for _ in range(head.box_convs):
            conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            layers += [_kaiming(conv), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        layers.append(nn.Flatten())
        inputs = channels * head.box_size**2
        for _ in range(head.num_fcs):
            linear = nn.Linear(inputs, head.fc_dim)
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.ReLU(inplace=True)]
            inputs = head.fc_dim
        self.layers = nn.Sequential(*layers)
        self.classes = _normal(nn.Linear(inputs, num_classes + 1), 0.01)
        self.moves = _normal(nn.Linear(inputs, 4 * num_classes), 0.001)

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits (N, num_classes + 1) and offsets for every class (N, num_classes, 4)."""
        hidden = self.layers(regions)
        return precise(self.classes(hidden)), precise(self.moves(hidden)).unflatten(1, (-1, 4))


class MaskHead(nn.Module):
    """Logits of one mask for every class, (N, num_classes, 2 * size, 2 * size), of regions."""

    def __init__(self, head: DetectionHead, num_classes: int) -> None:
        super().__init__()
        channels = head.channels
        layers: list[nn.Module] = []
        for _ in range(head.mask_convs):
            layers += [
                _kaiming(nn.Conv2d(channels, channels, 3, padding=1)),
                nn.ReLU(inplace=True),
            ]
        upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        layers += [_kaiming(upsample), nn.ReLU(inplace=True)]
        layers.append(_kaiming(nn.Conv2d(channels, num_classes, 1)))
        self.layers = nn.Sequential(*layers)

    def forward(self, regions: Tensor) -> Tensor:
        """Compute the masks' logits."""
        return precise(self.layers(regions))


def _kaiming(layer: nn.Conv2d | nn.ConvTranspose2d) -> nn.Module:
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _normal(linear: nn.Linear, std: float) -> nn.Linear:
    nn.init.normal_(linear.weight, std=std)
    nn.init.zeros_(linear.bias)
    return linear
