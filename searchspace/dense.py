"""Heads of detectors and segmenters as values: their shapes, and the papers' three by name.

mmdetection 2.11 and mmsegmentation 0.11 as both papers configure them (Swin-Transformer-Object-
Detection@c7b2011, Swin-Transformer-Semantic-Segmentation@87e6f90).
"""

from __future__ import annotations

from dataclasses import dataclass

from searchspace.architecture import Architecture
from searchspace.families import FAMILIES
from searchspace.mixers import DepthwiseConv, LocalMlp
from searchspace.space import SearchSpace


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectionHead:
    """Feature pyramid, region proposals, and heads for boxes and masks.

    Attributes:
        stages: 1 (Faster or Mask R-CNN), or 3 that refine boxes in turn (Cascade).
        has_masks: Whether every stage has a mask head.
        channels: Of the pyramid and of every convolution in the heads.
        fc_dim: Width of the box heads' fully connected layers.
        box_convs: 3x3 convolutions with batch norm in a box head; 0 has two fully connected layers,
            else there is one.
        mask_convs: 3x3 convolutions in a mask head.
        num_anchors: Boxes that are proposed at each position.
        box_size: Side of what the box head sees of a region; the mask head sees twice as much.
    """

    stages: int = 1
    has_masks: bool = True
    channels: int = 256
    fc_dim: int = 1024
    box_convs: int = 0
    mask_convs: int = 4
    num_anchors: int = 3
    box_size: int = 7

    @property
    def num_fcs(self) -> int:
        """Fully connected layers of a box head."""
        return 1 if self.box_convs else 2


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentationHead:
    """UPerNet (Xiao et al. 2018) with an auxiliary FCN head.

    Attributes:
        channels: Of every map in the head.
        pool_scales: Sides of the pooled maps of the pyramid pooling module.
        aux_channels: Of the auxiliary head on the last stage but one.
    """

    channels: int = 512
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)
    aux_channels: int = 256


Head = DetectionHead | SegmentationHead

HEADS: dict[str, Head] = {
    "faster_rcnn": DetectionHead(has_masks=False),
    "mask_rcnn": DetectionHead(),
    "cascade_mask_rcnn": DetectionHead(stages=3, box_convs=4),
    "upernet": SegmentationHead(),
}
# What each task is done with, and how many classes its usual data has.
TASK_HEADS: dict[str, tuple[str, ...]] = {
    "instance": ("mask_rcnn", "cascade_mask_rcnn"),
    "detection": ("faster_rcnn",),
    "semantic": ("upernet",),
}
TASK_CLASSES = {"instance": 80, "detection": 80, "semantic": 150}
TASK_DATA = {"instance": "COCO", "detection": "COCO", "semantic": "ADE20K"}
# The images at which both papers count FLOPs, height x width.
TASK_SIZES = {"instance": (1280, 800), "detection": (1280, 800), "semantic": (512, 2048)}
NUM_PROPOSALS = 1000
NUM_MASKS = 100


def check_head(task: str, head: str) -> None:
    """Check that a head does a task.

    Raises:
        ValueError: If the task is unknown or the head is another task's.
    """
    if task not in TASK_HEADS:
        raise ValueError(f"A task is one of {', '.join(TASK_HEADS)}, got {task!r}. Write one.")
    if head not in TASK_HEADS[task]:
        raise ValueError(
            f"The task {task} is done by {' or '.join(TASK_HEADS[task])}, got the head {head!r}. "
            "Choose one of these, or another --task."
        )


def check_backbone(backbone: Architecture | SearchSpace) -> None:
    """Check that a network gives maps for images of every size, each half as fine as the last.

    Raises:
        ValueError: If a mixer needs maps of one size, or the family does not halve every map.
    """
    family, stages = backbone.family, len(backbone.stages)
    if FAMILIES[family].halvings < stages - 1 or stages < 2:
        raise ValueError(
            "A backbone for detection or segmentation halves its map behind every stage and has "
            f"at least two, got {stages} stages of the family {family!r}. Choose a network of the "
            "family swin or twins."
        )
    for mixer in _mixers(backbone):
        if isinstance(mixer, LocalMlp | DepthwiseConv) and not mixer.shared_positions:
            raise ValueError(
                f"{mixer.kind} with shared_positions=False has weights for each position of one "
                "map, and images of detection and segmentation have many sizes. Choose a network "
                "whose mixers share positions."
            )


def _mixers(backbone: Architecture | SearchSpace) -> list[object]:
    if isinstance(backbone, Architecture):
        return [mixer for stage in backbone.stages for mixer in stage.mixers]
    return [
        mixer
        for index, stage in enumerate(backbone.stages)
        for block in range(stage.max_depth)
        for mixer in backbone.mixers_of(index, block)
    ]
