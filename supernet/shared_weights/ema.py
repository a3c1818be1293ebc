"""Averaged weights of a supernet: elements that a step does not use keep their average too."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from supernet.network import Supernet
from supernet.shared_weights.shared_adamw import SharedAdamW
from supernet.shared_weights.usage import Usage


class SharedEma:
    """Exponential moving average of shared weights, over the steps that used each element.

    Running statistics of batch norms are copied, not averaged: they mix all architectures, and
    judging recalibrates them for each.

    Args:
        supernet: Its present weights are the first average.
        decay: Of the average.
        warmup: Average over fewer steps at first, with timm's formula: the n-th use of an element
            has the decay min(decay, 1 - n^(-2/3)), so that its initial value does not stay.
    """

    def __init__(self, supernet: Supernet, *, decay: float, warmup: bool) -> None:
        self.supernet = copy.deepcopy(supernet).requires_grad_(False).eval()
        self._decay, self._warmup = decay, warmup

    @torch.no_grad()
    def update(
        self,
        supernet: Supernet,
        optimizer: SharedAdamW,
        used: Usage,
        applies: Tensor | None = None,
    ) -> None:
        """Take in the weights after a step, whose optimiser counts how often each was used.

        Args:
            applies: Whether the step was taken, a number on the device; the average stays if not.
        """
        for mean, now in zip(self.supernet.parameters(), supernet.parameters(), strict=True):
            if now in used:
                share = self._share(optimizer.uses(now).to(now.device)).to(now.dtype)
                mask = used[now]
                share = share if mask is None else share * mask.values
                mean.lerp_(now, share if applies is None else share * applies)
        for copied, buffer in zip(self.supernet.buffers(), supernet.buffers(), strict=True):
            copied.copy_(buffer)

    def _share(self, uses: Tensor) -> Tensor:
        """Return what the new weights count for: 1 - decay."""
        share = torch.full_like(uses, 1 - self._decay)
        return torch.maximum(share, uses.clamp_min(1) ** (-2 / 3)) if self._warmup else share
