"""A run's smallest job, and a clock that only its networks move on."""

from __future__ import annotations

from typing import Any

from torch import nn

from supernet.network.supernet import Supernet

SPACE = """
name: tiny
img_size: 8
patch_size: 4
mlp_ratio: [1, 2]
stages: [{dim: 8, depth: 1}]
mixers:
  window_attention: {window_size: 2, num_heads: [1, 2]}
  depthwise_conv: {kernel_size: [3, 5]}
"""
NUM_TRAIN, NUM_SEARCH, BATCH = 144, 36, 64


class PassClock:
    """A clock that a network's pass moves on; larger networks take longer."""

    def __init__(self) -> None:
        self.now = 0.0
        self.passes: list[tuple[int, int, bool]] = []  # parameters, images, whether it trained

    def monotonic(self) -> float:
        return self.now

    def __call__(self, network: nn.Module, given: tuple[Any, ...]) -> None:
        if isinstance(network, Supernet):
            size = sum(p.numel() for p in network.parameters())
            self.passes.append((size, len(given[0]), network.training))
            self.now += size / 1000
