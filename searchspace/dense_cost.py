"""Parameters and multiply-accumulates of detectors and segmenters, in closed form.

`searchspace.cost` says what counts; pooling, interpolation, RoIAlign and non-maximum suppression
are free. MACs are those of one image in inference: every stage of a cascade sees all proposals and
masks, and the auxiliary head of a segmenter does not run (its parameters count).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from searchspace.architecture import Architecture
from searchspace.cost import Cost, backbone_sizes, count_maps
from searchspace.dense import (
    NUM_MASKS,
    NUM_PROPOSALS,
    DetectionHead,
    Head,
    SegmentationHead,
    check_backbone,
)
from searchspace.map_rules import MapRules
from searchspace.mixer_cost import Size, count_linear, count_norm, total

# The rules of the published detection backbones.
PUBLISHED_RULES = MapRules(keeps_windows=True, pads_convolutions=True)


def count_dense(
    architecture: Architecture,
    head: Head,
    *,
    num_classes: int,
    size: Size,
    rules: MapRules = PUBLISHED_RULES,
) -> Cost:
    """Count a whole detector or segmenter on images of ``size`` = (height, width) pixels."""
    parts = count_dense_parts(architecture, head, num_classes=num_classes, size=size, rules=rules)
    return total(parts.values())


def count_dense_parts(
    architecture: Architecture,
    head: Head,
    *,
    num_classes: int,
    size: Size,
    rules: MapRules = PUBLISHED_RULES,
) -> dict[str, Cost]:
    """Count ``backbone`` (with a norm behind every stage) and the parts of the head.

    Raises:
        ValueError: If the network is no backbone for images of every size.
    """
    check_backbone(architecture)
    maps = backbone_sizes(architecture, size)
    dims = [stage.dim for stage in architecture.stages]
    norms = total(count_norm(dim) for dim in dims)
    parts = {"backbone": total(count_maps(architecture, size, rules).values()) + norms}
    return parts | count_heads(head, dims, maps, num_classes)


def count_heads(
    head: Head, dims: Sequence[int], maps: Sequence[Size], num_classes: int
) -> dict[str, Cost]:
    """Count the parts of a head on maps of so many channels and of these sizes."""
    if isinstance(head, DetectionHead):
        return _count_detection(head, dims, maps, num_classes)
    return _count_segmentation(head, dims, maps, num_classes)


def _count_detection(
    head: DetectionHead, dims: Sequence[int], maps: Sequence[Size], num_classes: int
) -> dict[str, Cost]:
    tokens = [math.prod(size) for size in maps]
    coarsest = math.prod(math.ceil(side / 2) for side in maps[-1])
    channels = head.channels
    pyramid = total(
        count_linear(dim, channels, count) + count_linear(9 * channels, channels, count)
        for dim, count in zip(dims, tokens, strict=True)
    )
    # One head for all levels.
    outputs = 5 * head.num_anchors
    proposals = sum(tokens) + coarsest
    rpn = count_linear(9 * channels, channels, proposals) + count_linear(
        channels, outputs, proposals
    )
    box, mask = _count_box_head(head, num_classes), _count_mask_head(head, num_classes)
    parts = {"pyramid": pyramid, "proposals": rpn, "boxes": total([box] * head.stages)}
    return parts | ({"masks": total([mask] * head.stages)} if head.has_masks else {})


def _count_box_head(head: DetectionHead, num_classes: int) -> Cost:
    channels, area = head.channels, head.box_size**2
    conv = count_linear(9 * channels, channels, NUM_PROPOSALS * area, bias=False)
    layers = [conv + count_norm(channels)] * head.box_convs
    layers.append(count_linear(channels * area, head.fc_dim, NUM_PROPOSALS))
    layers += [count_linear(head.fc_dim, head.fc_dim, NUM_PROPOSALS)] * (head.num_fcs - 1)
    layers.append(count_linear(head.fc_dim, num_classes + 1, NUM_PROPOSALS))
    layers.append(count_linear(head.fc_dim, 4 * num_classes, NUM_PROPOSALS))
    return total(layers)


def _count_mask_head(head: DetectionHead, num_classes: int) -> Cost:
    channels, tokens = head.channels, NUM_MASKS * (2 * head.box_size) ** 2
    convs = [count_linear(9 * channels, channels, tokens)] * head.mask_convs
    # A transposed convolution 2x2 with stride 2 writes every output once.
    upsample = Cost(4 * channels**2 + channels, 4 * tokens * channels**2)
    return total([*convs, upsample, count_linear(channels, num_classes, 4 * tokens)])


def _count_segmentation(
    head: SegmentationHead, dims: Sequence[int], maps: Sequence[Size], num_classes: int
) -> dict[str, Cost]:
    channels, tokens = head.channels, [math.prod(size) for size in maps]
    pooled = [_count_conv(dims[-1], channels, scale**2) for scale in head.pool_scales]
    joined = dims[-1] + channels * len(head.pool_scales)
    pooling = total([*pooled, _count_conv(9 * joined, channels, tokens[-1])])
    levels = [
        _count_conv(dim, channels, count) + _count_conv(9 * channels, channels, count)
        for dim, count in zip(dims[:-1], tokens[:-1], strict=True)
    ]
    fused = _count_conv(9 * channels * len(dims), channels, tokens[0])
    classifier = count_linear(channels, num_classes, tokens[0])
    aux = _count_conv(9 * dims[-2], head.aux_channels, 0)
    return {
        "pooling": pooling,
        "pyramid": total([*levels, fused]),
        "classifier": classifier,
        "auxiliary": aux + count_linear(head.aux_channels, num_classes, 0),
    }


def _count_conv(inputs: int, outputs: int, tokens: int) -> Cost:
    """Count a convolution without bias, and its batch norm."""
    return count_linear(inputs, outputs, tokens, bias=False) + count_norm(outputs)
