"""Whole detectors and segmenters: a backbone and heads. The architecture is an argument.

``network(batch, architecture)`` computes losses in training and predictions in eval mode.
`extract` copies one architecture's own network, which computes the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from searchspace.architecture import Architecture
from searchspace.dense import DetectionHead, SegmentationHead
from searchspace.map_rules import MapRules
from searchspace.space import SearchSpace
from supernet.dense.backbone import Backbone, narrow_part, state_of_part
from supernet.dense.cascade import Detections, Objects, RegionHeads, RegionOptions
from supernet.dense.proposals import ImageSize, ProposalHead, ProposalOptions
from supernet.dense.pyramid import FeaturePyramid
from supernet.dense.timm_backbone import TimmBackbone, TimmTarget
from supernet.dense.upernet import AuxiliaryHead, UPerHead, resize
from supernet.mixers import WeightSharing

IGNORED_LABEL = 255


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseBatch:
    """Images that pass through a network together.

    Attributes:
        images: (B, 3, H, W), normalised, zero-padded at the bottom and right to the largest.
        sizes: Of each image.
        objects: Of each image, for detectors in training.
        labels: Classes (B, H, W), 255 where there is none, for segmenters in training.
    """

    images: Tensor
    sizes: tuple[ImageSize, ...]
    objects: tuple[Objects, ...] | None = None
    labels: Tensor | None = None

    def to(self, device: torch.device) -> DenseBatch:
        """Move it."""
        objects = self.objects
        return DenseBatch(
            images=self.images.to(device),
            sizes=self.sizes,
            objects=None if objects is None else tuple(one.to(device) for one in objects),
            labels=None if self.labels is None else self.labels.to(device),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorOptions:
    """What a detector is beside its backbone's weights."""

    head: DetectionHead
    proposals: ProposalOptions
    regions: RegionOptions
    num_classes: int
    rules: MapRules


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmenterOptions:
    """What a segmenter is beside its backbone's weights."""

    head: SegmentationHead
    num_classes: int
    dropout: float
    aux_weight: float
    rules: MapRules


DenseOptions = DetectorOptions | SegmenterOptions


class Detector(nn.Module):
    """Boxes, and masks where the head has them.

    Args:
        space: The networks that its backbone can be, or one of timm.
        options: Of the heads.
        drop_path_rate: Stochastic depth of the backbone's last block.
        sharing: What the choices of a block of the backbone share.
    """

    def __init__(
        self,
        space: SearchSpace | TimmTarget,
        options: DetectorOptions,
        drop_path_rate: float = 0.0,
        sharing: WeightSharing | None = None,
    ) -> None:
        super().__init__()
        self.options = options
        self.backbone = _new_backbone(space, options.rules, drop_path_rate, sharing)
        channels = options.head.channels
        self.pyramid = FeaturePyramid(self.backbone.dims, channels)
        self.proposals = ProposalHead(channels, options.proposals)
        self.regions = RegionHeads(options.head, options.regions, options.num_classes)
        self._narrow: dict[tuple[int, ...], Any] = {}

    def forward(
        self, batch: DenseBatch, architecture: Architecture | None = None
    ) -> dict[str, Tensor] | list[Detections]:
        """Compute the losses (train mode) or what is found in each image (eval mode)."""
        architecture = self.backbone.checked(architecture)
        strides = self.backbone.strides(architecture)
        strides = [*strides, 2 * strides[-1]]
        maps = self.part_of_maps(architecture)(self.backbone(batch.images, architecture))
        outputs, anchors = self.proposals(maps), self.proposals.anchors(maps, strides)
        proposals = self.proposals.propose(outputs, anchors, batch.sizes)
        if not self.training:
            return self.regions.detect(maps, strides[:-1], proposals, batch.sizes)
        if batch.objects is None:
            raise ValueError("A detector is trained on images with objects, got none.")
        boxes = [objects.boxes for objects in batch.objects]
        losses = self.proposals.loss(outputs, anchors, batch.sizes, strides, boxes)
        return losses | self.regions.loss(maps, strides[:-1], proposals, batch.sizes, batch.objects)

    def select(self, architecture: Architecture) -> dict[str, Tensor]:
        """Return the state of the architecture's own detector."""
        state = _prefixed(self.backbone.select(architecture), "backbone")
        state |= state_of_part(self.part_of_maps(architecture), "pyramid")
        for name in ("proposals", "regions"):
            state |= state_of_part(getattr(self, name), name)
        return state

    def part_of_maps(self, architecture: Architecture | None) -> Any:
        """Return the pyramid for an architecture's maps: a module, or its `NarrowPart`."""
        dims = self.backbone.dims_of(self.backbone.checked(architecture))
        channels = self.options.head.channels
        return _fitting(
            self._narrow, self.pyramid, self.backbone, dims, lambda: FeaturePyramid(dims, channels)
        )


class Segmenter(nn.Module):
    """A class at every pixel (see `Detector` for the arguments)."""

    def __init__(
        self,
        space: SearchSpace | TimmTarget,
        options: SegmenterOptions,
        drop_path_rate: float = 0.0,
        sharing: WeightSharing | None = None,
    ) -> None:
        super().__init__()
        self.options = options
        self.backbone = _new_backbone(space, options.rules, drop_path_rate, sharing)
        self.head = self._new_head(self.backbone.dims)
        self.auxiliary = self._new_auxiliary(self.backbone.dims)
        self._narrow: dict[tuple[int, ...], Any] = {}
        self._narrow_auxiliary: dict[tuple[int, ...], Any] = {}

    def forward(
        self, batch: DenseBatch, architecture: Architecture | None = None
    ) -> dict[str, Tensor] | Tensor:
        """Compute the losses (train mode) or logits (B, num_classes, H, W) at the images' size."""
        architecture = self.backbone.checked(architecture)
        maps = self.backbone(batch.images, architecture)
        size = (batch.images.shape[-2], batch.images.shape[-1])
        logits = resize(self.part_of_maps(architecture)(maps), size)
        if not self.training:
            return logits
        if batch.labels is None:
            raise ValueError("A segmenter is trained on images with labels, got none.")
        auxiliary = resize(self._auxiliary_of(architecture)(maps[-2]), size)
        return {
            "pixels": pixel_loss(logits, batch.labels),
            "auxiliary": self.options.aux_weight * pixel_loss(auxiliary, batch.labels),
        }

    def select(self, architecture: Architecture) -> dict[str, Tensor]:
        """Return the state of the architecture's own segmenter."""
        state = _prefixed(self.backbone.select(architecture), "backbone")
        state |= state_of_part(self.part_of_maps(architecture), "head")
        return state | state_of_part(self._auxiliary_of(architecture), "auxiliary")

    def _new_head(self, dims: Sequence[int]) -> UPerHead:
        options = self.options
        return UPerHead(dims, options.head, options.num_classes, options.dropout)

    def _new_auxiliary(self, dims: Sequence[int]) -> AuxiliaryHead:
        options = self.options
        return AuxiliaryHead(dims[-2], options.head, options.num_classes, options.dropout)

    def part_of_maps(self, architecture: Architecture | None) -> Any:
        """Return the head for an architecture's maps: a module, or its `NarrowPart`."""
        dims = self.backbone.dims_of(self.backbone.checked(architecture))
        return _fitting(self._narrow, self.head, self.backbone, dims, lambda: self._new_head(dims))

    def _auxiliary_of(self, architecture: Architecture | None) -> Any:
        dims = self.backbone.dims_of(architecture)
        return _fitting(
            self._narrow_auxiliary,
            self.auxiliary,
            self.backbone,
            dims,
            lambda: self._new_auxiliary(dims),
        )


DenseNetwork = Detector | Segmenter


def _new_backbone(
    space: SearchSpace | TimmTarget,
    rules: MapRules,
    drop_path_rate: float,
    sharing: WeightSharing | None,
) -> Any:
    if isinstance(space, TimmTarget):
        return TimmBackbone(space, drop_path_rate)
    return Backbone(space, rules=rules, drop_path_rate=drop_path_rate, sharing=sharing)


def build_dense(
    space: SearchSpace | TimmTarget,
    options: DenseOptions,
    drop_path_rate: float = 0.0,
    sharing: WeightSharing | None = None,
) -> DenseNetwork:
    """Build a detector or segmenter with fresh weights; a space of one point has one network."""
    if isinstance(options, DetectorOptions):
        return Detector(space, options, drop_path_rate, sharing)
    return Segmenter(space, options, drop_path_rate, sharing)


def extract_dense(network: DenseNetwork, architecture: Architecture) -> DenseNetwork:
    """Copy an architecture's own network out of one whose backbone is a supernet.

    Returns:
        A network in the same mode that shares no memory with it and computes exactly what it
        computes for the architecture.
    """
    with torch.device("meta"):
        own = build_dense(SearchSpace.of(architecture), network.options)
    state = {name: value.detach().clone() for name, value in network.select(architecture).items()}
    own.load_state_dict(state, assign=True)
    for parameter in own.parameters():
        parameter.requires_grad_(True)
    return own.train(network.training)


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy over all pixels; those without a label add nothing to the sum.

    mmsegmentation 0.11 divides by all pixels, also by those it ignores.
    """
    total = F.cross_entropy(
        logits.float(), labels.long(), ignore_index=IGNORED_LABEL, reduction="sum"
    )
    return total / labels.numel()


def _fitting(
    cache: dict[tuple[int, ...], Any],
    wide: nn.Module,
    backbone: Any,
    dims: tuple[int, ...],
    build: Callable[[], nn.Module],
) -> Any:
    """Return a head for maps of these channels: the wide one, or first channels of its weights."""
    if dims == backbone.dims:
        return wide
    if dims not in cache:
        cache[dims] = narrow_part(wide, build)
    return cache[dims]


def _prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in state.items()}
