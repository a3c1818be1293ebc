"""AdamW for shared weights: a step changes what its architectures use, and nothing else.

Plain AdamW moves a weight as long as its first moment is not zero, whether or not the step used it,
and decays all of it. Here every element of a weight (not only every tensor) lives as if it were
trained alone: in a step that does not use it, its value, both moments and its step count stay; in
a step that does, AdamW's formulas hold with the element's own count, so that the bias correction
of a slice that is used for the first time is that of a first step (else it would be more than
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
            used: From `supernet.usage.used_weights`; gradients of other parameters are dropped.
        """
        in_parts: list[tuple[dict[str, Any], Tensor, Tensor]] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                if parameter not in used:
                    parameter.grad = None
                elif used[parameter] is not None or self._counts_elements(parameter):
                    in_parts.append((group, parameter, gradient))
                    parameter.grad = None  # hidden from torch's own step
        self.step()
        with torch.no_grad():
            for group, parameter, gradient in in_parts:
                self._update_part(parameter, gradient, used[parameter], group)
                parameter.grad = gradient

    def uses(self, parameter: Tensor) -> Tensor:
        """Return how often a parameter was used: a number, or one for each element."""
        state = self.state.get(parameter)
        return torch.zeros(()) if not state else state["step"]

    def _counts_elements(self, parameter: Tensor) -> bool:
        return self.uses(parameter).dim() > 0

    def _update_part(
        self, parameter: Tensor, gradient: Tensor, mask: Tensor | None, group: dict[str, Any]
    ) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        if state["step"].dim() == 0:
            state["step"] = state["step"].expand_as(parameter).clone()
        used = torch.ones_like(parameter) if mask is None else mask.to(parameter.dtype)
        beta1, beta2 = group["betas"]
        steps, mean, square = state["step"], state["exp_avg"], state["exp_avg_sq"]
        steps += used
        mean += (gradient - mean).mul_(used * (1 - beta1))
        square += (gradient**2 - square).mul_(used * (1 - beta2))
        taken = steps.clamp_min(1)  # never used: all else is zero there
        spread = (square / (1 - beta2**taken)).sqrt_().add_(group["eps"])
        change = (mean / (1 - beta1**taken)).div_(spread)
        change += group["weight_decay"] * parameter
        parameter -= change.mul_(used).mul_(group["lr"])
