"""What a transfer trains: an architecture of ours, or a network of timm."""

from __future__ import annotations

import math

import torch
from torch.utils.flop_counter import FlopCounterMode

from search.run_folder import load_target
from searchspace.architecture import Architecture, check_colours
from searchspace.cost import Cost
from searchspace.dense import TASK_SIZES, check_backbone
from searchspace.dense_cost import count_dense, count_heads
from searchspace.mixer_cost import total
from supernet.dense.target import Target
from supernet.dense.timm_backbone import PREFIX, TimmBackbone, TimmTarget
from supernet.recipes import DenseRecipe


def transfer_target(text: str) -> Target:
    """Find what a user names: ``timm:NAME``, or an architecture (`load_target`).

    Raises:
        ValueError: If there is none.
    """
    if text.startswith(PREFIX):
        return TimmTarget(text.removeprefix(PREFIX))
    return load_target(text)


def check_target(target: Target) -> None:
    """Check that it is a backbone for images of every size.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(target, Architecture):
        check_colours(target.in_chans)
        check_backbone(target)
        return
    with torch.device("meta"):
        TimmBackbone(target)


def count_target(target: Target, recipe: DenseRecipe, num_classes: int) -> Cost:
    """Count the whole detector or segmenter at the size at which both papers count."""
    head, size = recipe.head_shape(), TASK_SIZES[recipe.task]
    if isinstance(target, Architecture):
        return count_dense(target, head, num_classes=num_classes, size=size, rules=recipe.rules)
    with torch.device("meta"):
        backbone = TimmBackbone(target).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            maps = backbone(torch.empty(1, 3, *size))
    own = Cost(
        sum(math.prod(one.shape) for one in backbone.parameters()), counter.get_total_flops() // 2
    )
    sizes = [(one.shape[-2], one.shape[-1]) for one in maps]
    return total([own, *count_heads(head, backbone.dims, sizes, num_classes).values()])
