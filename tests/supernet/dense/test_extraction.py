"""A detector copied out of one with a supernet inside gives the same numbers; so do segmenters."""

from __future__ import annotations

import random

import pytest
import torch

from searchspace.space import MixerChoices, SearchSpace, StageChoices
from supernet.dense.cascade import Detections
from supernet.dense.network import DenseBatch, build_dense, extract_dense
from supernet.dense.options import dense_options
from supernet.dense.proposals import ImageSize
from tests.tiny_dense import recipe


def mixed_space() -> SearchSpace:
    """Two mixers a block, two widths a stage, one or two blocks."""
    choices = MixerChoices(
        kinds={
            "depthwise_conv": {"kernel_size": (3, 5)},
            "window_attention": {"window_size": (7,), "num_heads": (2, 4)},
        }
    )
    stages = tuple(
        StageChoices(
            dims=(dim, dim // 2), depths=(2, 1), mlp_ratios=(2.0, 1.0), choices=(choices, choices)
        )
        for dim in (16, 24, 32, 48)
    )
    return SearchSpace(name="mixed", img_size=224, patch_size=4, num_classes=2, stages=stages)


def randomise(network: torch.nn.Module) -> None:
    """Change norms and biases, whose first values hide mistakes."""
    for value in (*network.parameters(), *network.buffers()):
        if value.is_floating_point() and value.dim() <= 1:
            value.data.uniform_(0.5, 1.5)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["cells_semantic", "mask_rcnn_1x", "cascade_mask_rcnn_1x"])
def test_extracted_gives_what_it_gave_inside(name: str) -> None:
    torch.manual_seed(0)
    space = mixed_space()
    network = build_dense(space, dense_options(recipe(name), 3))
    randomise(network)
    network.eval()
    images = torch.randn(2, 3, 61, 75)
    size = ImageSize(content=(61, 75), padded=(64, 96))
    batch = DenseBatch(images=images, sizes=(size, size))
    rng = random.Random(1)
    for _ in range(4):
        architecture = space.sample(rng)
        with torch.no_grad():
            inside, outside = (
                network(batch, architecture),
                extract_dense(network, architecture)(batch),
            )
        if isinstance(inside, torch.Tensor):
            assert torch.equal(inside, outside)
            continue
        for one, other in zip(inside, outside, strict=True):
            assert isinstance(one, Detections)
            assert len(one.boxes) > 0
            for field in ("boxes", "labels", "scores", "masks"):
                assert torch.equal(getattr(one, field), getattr(other, field))
