"""AdamW for shared weights: a step changes what its architectures use, and nothing else.

Plain AdamW moves a weight as long as its first moment is not zero, whether or not the step used it,
and decays all of it. Here every element of a weight (not only every tensor) lives as if it were
trained alone: in a step that does not use it, its value, both moments and its step count stay; in
a step that does, AdamW's formulas hold with the element's own count, so that the bias correction
of a slice that is used for the first time is that of a first step (else the step would be more than
three times too large). Decoupled weight decay likewise counts used steps only.

Parameters that are always used whole take torch's fused kernel. Only those that a step uses in part
count the steps of their parts from then on: one count for all elements that were always used
together along an axis, as the rows of a projection are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from supernet.shared_weights.usage import Usage


class SharedAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101) over used elements.

    The state has torch's names (``step``, ``exp_avg``, ``exp_avg_sq``); ``step`` has a shape that
    broadcasts to its parameter's once that was used in part.
    """

    def update(self, used: Usage) -> None:
        """Take a step with the gradients that are there, on the used elements only.

        Args:
            used: From `usage.UsedWeights`; gradients of other parameters are dropped.
                Elements that are not used have gradient zero, as backward leaves them.
        """
        in_parts = []
        for group in self.param_groups:
            members = [parameter for parameter in group["params"] if parameter.grad is not None]
            parts = []
            for parameter in members:
                if parameter not in used:
                    parameter.grad = None
                elif used[parameter] is not None or self.uses(parameter).dim() > 0:
                    parts.append((parameter, parameter.grad))
                    parameter.grad = None  # hidden from torch's own step
            in_parts.append((group, parts))
        self.step()
        with torch.no_grad():
            for group, parts in in_parts:
                if parts:
                    self._update_parts(parts, used, group)
                for parameter, gradient in parts:
                    parameter.grad = gradient

    def uses(self, parameter: Tensor) -> Tensor:
        """Return how often a parameter was used: a number, or one for each part (broadcasts)."""
        state = self.state.get(parameter)
        return state["step"] if state else torch.zeros((), device=parameter.device)

    def _update_parts(
        self, parts: list[tuple[Tensor, Tensor]], used: Usage, group: dict[str, Any]
    ) -> None:
        """Update parameters that count their elements' steps; each line is one for all of them."""
        parameters, gradients = [p for p, _ in parts], [gradient for _, gradient in parts]
        masks = [torch.ones((), device=p.device) if (m := used[p]) is None else m for p, _ in parts]
        states = [self._state_in_parts(p, mask) for p, mask in zip(parameters, masks, strict=True)]
        means = [state["exp_avg"] for state in states]
        squares = [state["exp_avg_sq"] for state in states]
        steps = [state["step"] for state in states]
        beta1, beta2 = group["betas"]
        lr, weight_decay = group["lr"], group["weight_decay"]
        torch._foreach_add_(steps, masks)
        torch._foreach_lerp_(means, gradients, torch._foreach_mul(masks, 1 - beta1))
        torch._foreach_mul_(squares, _complements(torch._foreach_mul(masks, 1 - beta2)))
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        taken = torch._foreach_clamp_min(steps, 1)  # never used: all else is zero there
        second = _complements(torch._foreach_pow(beta2, taken))
        torch._foreach_sqrt_(second)
        spreads = torch._foreach_sqrt(squares)
        torch._foreach_div_(spreads, second)
        torch._foreach_add_(spreads, group["eps"])
        changes = torch._foreach_div(means, spreads)
        shares = torch._foreach_div(masks, _complements(torch._foreach_pow(beta1, taken)))
        if weight_decay:
            kept = _complements(torch._foreach_mul(masks, lr * weight_decay))
            torch._foreach_mul_(parameters, kept)
        torch._foreach_addcmul_(parameters, changes, shares, -lr)

    def _state_in_parts(self, parameter: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return the parameter's state, with a step count for each part of the mask."""
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        shape = torch.broadcast_shapes(state["step"].shape, mask.shape)
        if state["step"].shape != shape:
            state["step"] = state["step"].expand(shape).clone()
        return state


def _complements(values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Turn each x into 1 - x, in place."""
    torch._foreach_mul_(values, -1)
    torch._foreach_add_(values, 1)
    return values
