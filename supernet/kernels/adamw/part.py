"""What a step of AdamW is given: blocks of weights, and its settings."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class Part(NamedTuple):
    """A block of a parameter, of its gradient and of its state.

    Attributes:
        parameter, gradient, mean, square: Of one shape; all but the gradient are changed.
        mask: 1 where the step uses an element, 0 elsewhere; broadcasts to ``step`` and the block.
        step: How many steps used an element before this one; broadcasts to the block; changed.
        memory: Where a kernel may note what it knows of all but the gradient, for later steps of
            the same tensors. None: it notes nothing.
    """

    parameter: Tensor
    gradient: Tensor
    mask: Tensor
    mean: Tensor
    square: Tensor
    step: Tensor
    memory: dict[str, Any] | None = None


class Rule(NamedTuple):
    """AdamW's settings (Loshchilov and Hutter 2019, algorithm 2)."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
