"""A record's smallest content."""

from __future__ import annotations

from search.record.record import Record
from searchspace.architecture import Architecture, Stage
from searchspace.mixers import DepthwiseConv


def make_architecture(num_classes: int = 10) -> Architecture:
    """Make the smallest network."""
    stage = Stage(dim=8, mixers=(DepthwiseConv(kernel_size=3),))
    return Architecture(img_size=8, patch_size=2, stages=(stage,), num_classes=num_classes)


def add_trial(record: Record, *, seed: int = 0, fidelity: str = "inherited") -> int:
    """Add a trial of the smallest network; return its id."""
    architecture_id = record.add_architecture(make_architecture(), params=5, macs=7)
    return record.add_trial(architecture_id, fidelity=fidelity, seed=seed, origin="test")
