"""The memory that a network needs: its weights and, at their peak, the maps of one forward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed._tools.mem_tracker import MemTracker


def peak_memory_mib(network: nn.Module, images: Tensor) -> float:
    """Return the MiB that tensors take at the peak of an inference, on the device of the network.

    Counted are weights, buffers, images and every tensor that an operator makes, for as long as it
    lives: the same on every machine and beside any other work. What operators use inside (cuDNN's
    workspaces, the rows that the C kernels hold) is not counted.

    Args:
        network: In eval mode.
        images: Shape (B, 3, img_size, img_size).
    """
    tracker = MemTracker()
    tracker.track_external(network, images)
    with torch.no_grad(), tracker:
        network(images)
    peak = tracker.get_tracker_snapshot("peak")
    return sum(found["Total"] for found in peak.values()) / 2**20
