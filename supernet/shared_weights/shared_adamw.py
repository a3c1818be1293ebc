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

On a CPU, of a part only the block that has all its used elements is passed over. On a GPU all of it
is: there many small tensors at once are faster than few elements of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from supernet.kernels import Part, Rule, update_parts
from supernet.shared_weights.usage import Box, Mask, Usage, narrowed


@dataclass(frozen=True, eq=False, slots=True)
class _Block:
    """What a step may change of a parameter, cut once: views of it and of its state.

    Attributes:
        whole: The parameter's memory and its state, whose views they are.
        box: Where in the parameter they are.
        part: The views; in place of its gradient stands the parameter.
    """

    whole: tuple[int, Tensor, Tensor, Tensor]
    box: Box
    part: Part

    @classmethod
    def of(
        cls, parameter: Tensor, state: dict[str, Tensor], mask: Mask | None, values: Tensor
    ) -> _Block:
        """Cut a block; on a GPU it is all of the parameter."""
        step, mean, square = state["step"], state["exp_avg"], state["exp_avg_sq"]
        whole = (parameter.data_ptr(), step, mean, square)
        box: Box = ()
        if mask is not None and parameter.device.type == "cpu":
            values, box = mask.inside, mask.box
            step = narrowed(step, box)
        cut = parameter.detach()[box]
        return cls(whole, box, Part(cut, cut, values, mean[box], square[box], step, {}))

    def is_of(self, parameter: Tensor, state: dict[str, Tensor]) -> bool:
        """Tell whether the parameter and its state are still where they were."""
        address, step, mean, square = self.whole
        return (
            state.get("step") is step
            and state.get("exp_avg") is mean
            and state.get("exp_avg_sq") is square
            and parameter.data_ptr() == address
        )


class SharedAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101) over used elements.

    The state has torch's names (``step``, ``exp_avg``, ``exp_avg_sq``); ``step`` has a shape that
    broadcasts to its parameter's once that was used in part.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        # Masks are few and the same objects in every step, see `usage.UsedWeights`.
        self._blocks: dict[tuple[Tensor, Mask | None], _Block] = {}

    def update(self, used: Usage, applies: Tensor | None = None) -> None:
        """Take a step with the gradients that are there, on the used elements only.

        Args:
            used: From `usage.UsedWeights`; gradients of other parameters are dropped.
                Elements that are not used have gradient zero, as backward leaves them.
            applies: Whether anything changes, a number on the device: nobody waits for it.
        """
        if applies is not None and applies.is_cpu:
            if not applies:
                return
            applies = None
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
        self._update_whole(applies)
        with torch.no_grad():
            for group, parts in in_parts:
                if parts:
                    update_parts([self._part(*part, used, applies) for part in parts], _rule(group))
                for parameter, gradient in parts:
                    parameter.grad = gradient

    def uses(self, parameter: Tensor) -> Tensor:
        """Return how often a parameter was used: a number, or one for each part (broadcasts)."""
        state = self.state.get(parameter)
        return state["step"] if state else torch.zeros((), device=parameter.device)

    def _update_whole(self, applies: Tensor | None) -> None:
        """Let torch's fused kernel change what is used whole."""
        # torch's own way to leave a step out by a number of the device, for its GradScaler.
        self.found_inf = None if applies is None else 1 - applies.float()
        self.step()

    def _part(
        self, parameter: Tensor, gradient: Tensor, used: Usage, applies: Tensor | None
    ) -> Part:
        """Return the block of a parameter that a step may change."""
        mask = used[parameter]
        known = self._blocks.get((parameter, mask))
        if known is None or not known.is_of(parameter, self.state[parameter]):
            values = torch.ones((), device=parameter.device) if mask is None else mask.values
            state = self._state_in_parts(parameter, values)
            known = self._blocks[parameter, mask] = _Block.of(parameter, state, mask, values)
        part = known.part._replace(gradient=gradient[known.box])
        if applies is not None:
            part = part._replace(
                gradient=torch.where(applies, part.gradient, 0.0),
                mask=part.mask * applies,
                memory=None,  # which is of the other mask
            )
        return part

    def _state_in_parts(self, parameter: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return the parameter's state, with a step count for each part of the mask."""
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        # Not `torch.broadcast_shapes`, which takes longer than all the rest of a parameter's step.
        steps = state["step"].shape or (1,) * mask.dim()
        shape = tuple(map(max, steps, mask.shape)) if mask.dim() else state["step"].shape
        if state["step"].shape != shape:
            state["step"] = state["step"].expand(shape).clone()
        return state


def _rule(group: dict[str, Any]) -> Rule:
    beta1, beta2 = group["betas"]
    return Rule(group["lr"], beta1, beta2, group["eps"], group["weight_decay"])
