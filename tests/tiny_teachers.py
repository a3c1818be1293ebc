"""A small trained network that others learn from, and a retraining's folder of one."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from search.retraining.network import RetrainOptions, retrain
from searchspace.architecture import Architecture, Stage
from searchspace.mixers import DepthwiseConv
from supernet.data import ImageData
from supernet.network.supernet import build_subnet
from supernet.training import Teacher, make_teacher
from tests.tiny_data import PLAIN, changed


def small(img_size: int, num_classes: int) -> Architecture:
    """Return the architecture of a teacher for these images."""
    stage = Stage(dim=4, mixers=(DepthwiseConv(kernel_size=3),))
    return Architecture(img_size=img_size, patch_size=2, num_classes=num_classes, stages=(stage,))


def tiny_teacher(
    network: nn.Module | None = None, *, img_size: int = 8, num_classes: int = 2
) -> Teacher:
    """Make a teacher with weights of a fixed seed, which says all but the same of any image."""
    torch.manual_seed(7)
    found = network or build_subnet(small(img_size, num_classes))
    for parameter in found.parameters():
        nn.init.normal_(parameter, std=0.5)
    return make_teacher(
        found,
        "a teacher",
        img_size=img_size,
        num_classes=num_classes,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.25, 0.5),
    )


def retrained_teacher(data: ImageData, folder: Path) -> Path:
    """Train one for an epoch on these images; return the folder of the retraining."""
    recipe = changed("quick", **PLAIN, batch_size=8, epochs=1, warmup_epochs=0)
    retrain(small(data.img_size, data.num_classes), data, recipe, RetrainOptions(out=folder))
    return folder
