"""From the logits of an area to its weights, and back in the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def normalise(logits: Tensor, norm: str, masked: Tensor | None = None) -> Tensor:
    """Turn logits into weights over the last axis (the taps of the area).

    Args:
        logits: Shape (..., taps). Those of low precision are filter-normalised in float32.
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
        # A compiler fuses plain operators itself.
        if torch.compiler.is_compiling():
            exact = _exact(logits)
            logits = _filter_norm(exact, _std(exact)).to(logits.dtype)
        else:
            logits, _ = _FilterNorm.apply(logits)
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
    return _filter_norm_grad(grad, dot, weights, _std(logits))


def _exact(logits: Tensor) -> Tensor:
    """Return logits that 1e-10 is a number beside: in float16 it is zero."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _filter_norm(logits: Tensor, std: Tensor) -> Tensor:
    """Compute the weights in one tensor: autograd does not see the steps."""
    centred = logits - logits.mean(-1, keepdim=True)
    return centred.div_(std + 1e-10).mul_(_gain(logits))


class _FilterNorm(torch.autograd.Function):
    """Filter normalisation that keeps nothing but what it returns: weights, and deviations.

    The weights are kept by what follows anyway. Written in plain operators, autograd keeps two
    more tensors of the logits' size and passes over them twice as often.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> tuple[Tensor, Tensor]:
        exact = _exact(logits)
        std = _std(exact)
        weights = _filter_norm(exact, std).to(logits.dtype)
        ctx.save_for_backward(weights, std)
        ctx.set_materialize_grads(False)
        return weights, std

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_std: Tensor | None) -> Tensor | None:
        weights, std = ctx.saved_tensors
        dtype, weights = weights.dtype, weights.to(std.dtype)
        found = None
        if grad is not None:
            grad = grad.to(std.dtype)
            dot = (grad * weights).sum(-1, keepdim=True)
            found = _filter_norm_grad(grad, dot, weights, std)
        # Only second derivatives ask for it: the deviations are no one's input.
        if grad_std is not None:
            slope = grad_std * _slope(weights, std) * (std + 1e-10)
            found = weights * slope if found is None else found + weights * slope
        return None if found is None else found.to(dtype)


def _filter_norm_grad(grad: Tensor, dot: Tensor, weights: Tensor, std: Tensor) -> Tensor:
    """Compute the gradient of the logits; ``dot`` is that of the weights times the weights."""
    centred = _gain(weights) / (std + 1e-10) * (grad - grad.mean(-1, keepdim=True))
    return torch.addcmul(centred, weights, dot * _slope(weights, std), value=-1)


def _slope(weights: Tensor, std: Tensor) -> Tensor:
    """How a deviation changes with its logits, in units of their weights; zero at no spread."""
    spread = std.masked_fill(std == 0, torch.inf)
    return 1 / (_gain(weights) * max(weights.shape[-1] - 1, 1) * spread)


def _std(logits: Tensor) -> Tensor:
    """Unbiased, as published; a single tap has no spread. Its gradient at zero spread is zero."""
    return logits.std(-1, keepdim=True, correction=min(logits.shape[-1] - 1, 1))


def _gain(logits: Tensor) -> float:
    return (2 / logits.shape[-1]) ** 0.5
