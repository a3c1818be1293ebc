"""From the logits of an area to its weights, and back in the backward pass."""

from __future__ import annotations

import torch
from torch import Tensor


def normalise(logits: Tensor, norm: str, masked: Tensor | None = None) -> Tensor:
    """Turn logits into weights over the last axis (the taps of the area).

    Args:
        logits: Shape (..., taps).
        norm: ``softmax``, ``filter_norm`` or ``identity``.
        masked: Boolean, broadcastable to the logits: pairs that get weight zero. For filter
            normalisation they still count in the statistics.

    Returns:
        The weights, shaped like the logits.
    """
    if norm == "softmax":
        if masked is not None:
            # Not -100 as published: exp(-100) is a denormal number in float32, and many processors
            # multiply those tens of times slower, in the backward pass above all.
            logits = logits.masked_fill(masked, -torch.inf)
        return logits.softmax(-1)
    if norm == "filter_norm":
        std = _std(logits)
        logits = (logits - logits.mean(-1, keepdim=True)) / (std + 1e-10) * _gain(logits)
    if masked is not None:
        logits = logits.masked_fill(masked, 0.0)
    return logits


def normalise_grad(grad: Tensor, weights: Tensor, logits: Tensor, norm: str) -> Tensor:
    """Compute the gradient of the logits from that of the weights, all (..., taps), unmasked."""
    if norm == "identity":
        return grad
    dot = (grad * weights).sum(-1, keepdim=True)
    if norm == "softmax":
        return weights * (grad - dot)
    std, gain, taps = _std(logits), _gain(logits), logits.shape[-1]
    centred = gain / (std + 1e-10) * (grad - grad.mean(-1, keepdim=True))
    slope = dot / (gain * max(taps - 1, 1) * std)
    return centred - weights * slope.masked_fill(std == 0, 0.0)


def _std(logits: Tensor) -> Tensor:
    """Unbiased, as published; a single tap has no spread. Its gradient at zero spread is zero."""
    return logits.std(-1, keepdim=True, correction=min(logits.shape[-1] - 1, 1))


def _gain(logits: Tensor) -> float:
    return (2 / logits.shape[-1]) ** 0.5
