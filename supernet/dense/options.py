"""From a recipe to the networks that it builds."""

from __future__ import annotations

from searchspace.dense import DetectionHead, SegmentationHead
from supernet.dense.boxes import Matching
from supernet.dense.cascade import RegionOptions, StageOptions
from supernet.dense.network import DenseOptions, DetectorOptions, SegmenterOptions
from supernet.dense.proposals import ProposalOptions
from supernet.recipes import DenseRecipe, Proposals, Regions


def dense_options(recipe: DenseRecipe, num_classes: int) -> DenseOptions:
    """Say what network a recipe builds for so many classes."""
    head = recipe.head_shape()
    if isinstance(head, SegmentationHead):
        assert recipe.segmentation is not None
        return SegmenterOptions(
            head=head,
            num_classes=num_classes,
            dropout=recipe.segmentation.dropout,
            aux_weight=recipe.segmentation.aux_weight,
            rules=recipe.rules,
        )
    assert isinstance(head, DetectionHead)
    assert recipe.proposals is not None
    assert recipe.regions is not None
    return DetectorOptions(
        head=head,
        proposals=_proposals(recipe.proposals),
        regions=_regions(recipe.regions),
        num_classes=num_classes,
        rules=recipe.rules,
    )


def _proposals(found: Proposals) -> ProposalOptions:
    values = found.model_dump(exclude={"positive", "negative", "lowest"})
    matching = Matching(positive=found.positive, negative=found.negative, lowest=found.lowest)
    return ProposalOptions(matching=matching, **values)


def _regions(found: Regions) -> RegionOptions:
    stages = tuple(
        StageOptions(
            matching=Matching(
                positive=stage.positive, negative=stage.negative, lowest=stage.lowest
            ),
            stds=stage.stds,
            weight=stage.weight,
        )
        for stage in found.stages
    )
    return RegionOptions(stages=stages, **found.model_dump(exclude={"stages"}))
