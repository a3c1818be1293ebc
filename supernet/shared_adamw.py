"""AdamW for shared weights: a step changes what its architectures use, and nothing else.

Plain AdamW moves a weight as long as its first moment is not zero, whether or not the step used it,
and decays all of it. Here every element of a weight (not only every tensor) lives as if it were
trained alone: in a step that does not use it, its value, both moments and its step count stay; in
a step that does, AdamW's formulas hold with the element's own count, so that the bias correction
of a slice that is used for the first time is that of a first step (else the step would be more than
three times too large). Decoupled weight decay likewise counts used steps only.

Parameters that are always used whole take torch's fused kernel. Only those that a step uses in part
keep a count for each element, from then on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from supernet.usage import Usage


class SharedAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101) over used elements.

    The state has torch's names (``step``, ``exp_avg``, ``exp_avg_sq``); ``step`` has the shape of
    its parameter once that was used in part.
    """

    def update(self, used: Usage) -> None:
        """Take a step with the gradients that are there, on the used elements only.

        Args:
            used: From `supernet.usage.UsedWeights`; gradients of other parameters are dropped.
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
        """Return how often a parameter was used: a number, or one for each element."""
        state = self.state.get(parameter)
        return state["step"] if state else torch.zeros((), device=parameter.device)

    def _update_parts(
        self, parts: list[tuple[Tensor, Tensor]], used: Usage, group: dict[str, Any]
    ) -> None:
        """Update parameters that count their elements' steps; each line is one for all of them."""
        parameters, gradients = [p for p, _ in parts], [gradient for _, gradient in parts]
        states = [self._state_in_elements(parameter) for parameter in parameters]
        masks = [torch.ones_like(p) if (m := used[p]) is None else m for p in parameters]
        means = [state["exp_avg"] for state in states]
        squares = [state["exp_avg_sq"] for state in states]
        steps = [state["step"] for state in states]
        beta1, beta2 = group["betas"]
        torch._foreach_add_(steps, masks)
        torch._foreach_lerp_(means, gradients, torch._foreach_mul(masks, 1 - beta1))
        torch._foreach_lerp_(
            squares, torch._foreach_mul(gradients, gradients), torch._foreach_mul(masks, 1 - beta2)
        )
        taken = torch._foreach_clamp_min(steps, 1)  # never used: all else is zero there
        spreads = torch._foreach_div(squares, _corrections(beta2, taken))
        torch._foreach_sqrt_(spreads)
        torch._foreach_add_(spreads, group["eps"])
        changes = torch._foreach_div(means, _corrections(beta1, taken))
        torch._foreach_div_(changes, spreads)
        if group["weight_decay"]:
            torch._foreach_add_(changes, parameters, alpha=group["weight_decay"])
        torch._foreach_mul_(changes, masks)
        torch._foreach_add_(parameters, changes, alpha=-group["lr"])

    def _state_in_elements(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return the parameter's state with a step count for each element."""
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros_like(parameter)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        elif state["step"].dim() == 0:
            state["step"] = state["step"].expand_as(parameter).clone()
        return state


def _corrections(beta: float, steps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return 1 - beta^t, what the moments are divided by."""
    found: tuple[Tensor, ...] = torch._foreach_pow(beta, steps)
    torch._foreach_mul_(found, -1)
    torch._foreach_add_(found, 1)
    return found
