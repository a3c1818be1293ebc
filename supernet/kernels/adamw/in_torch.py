"""AdamW on used elements by torch's operators over lists: any device, any dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from supernet.kernels.adamw.part import Part, Rule


def update(parts: Sequence[Part], rule: Rule) -> None:
    """Take a step; each line is one for all parts."""
    parameters, gradients = [p.parameter for p in parts], [p.gradient for p in parts]
    masks, steps = [p.mask for p in parts], [p.step for p in parts]
    means, squares = [p.mean for p in parts], [p.square for p in parts]
    torch._foreach_add_(steps, masks)
    torch._foreach_lerp_(means, gradients, torch._foreach_mul(masks, 1 - rule.beta1))
    torch._foreach_mul_(squares, _complements(torch._foreach_mul(masks, 1 - rule.beta2)))
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - rule.beta2)
    taken = torch._foreach_clamp_min(steps, 1)  # never used: all else is zero there
    second = _complements(torch._foreach_pow(rule.beta2, taken))
    torch._foreach_sqrt_(second)
    spreads = torch._foreach_sqrt(squares)
    torch._foreach_div_(spreads, second)
    torch._foreach_add_(spreads, rule.eps)
    changes = torch._foreach_div(means, spreads)
    shares = torch._foreach_div(masks, _complements(torch._foreach_pow(rule.beta1, taken)))
    if rule.weight_decay:
        kept = _complements(torch._foreach_mul(masks, rule.lr * rule.weight_decay))
        torch._foreach_mul_(parameters, kept)
    torch._foreach_addcmul_(parameters, changes, shares, -rule.lr)


def _complements(values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Turn each x into 1 - x, in place."""
    torch._foreach_mul_(values, -1)
    torch._foreach_add_(values, 1)
    return values
