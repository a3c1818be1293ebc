"""Which elements of the shared weights the architectures of a step use.

The one definition is `Supernet.select`: what is in an architecture's own state dict is used, all
else is not. Slices are traced back by autograd, so that every way of selecting (a centre, a row, a
concatenation, a learned transform) gives its elements without code of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import torch
from torch import Tensor

from searchspace.architecture import Architecture
from supernet.network import Supernet

Usage: TypeAlias = dict[Tensor, Tensor | None]


def used_weights(supernet: Supernet, architectures: Iterable[Architecture]) -> Usage:
    """Map each parameter that is used to None (all of it) or a mask of the used elements.

    A parameter that is not in the result is not used by any of the architectures.

    Args:
        architectures: Of one step; what any of them uses is used.

    Returns:
        Masks are boolean and shaped like their parameter.
    """
    whole: Usage = {}
    slices: dict[tuple[object, ...], Tensor] = {}
    with torch.enable_grad():
        for architecture in architectures:
            for name, value in supernet.select(architecture).items():
                if value.grad_fn is not None:
                    slices[name, architecture] = value
                elif value.requires_grad:
                    whole[value] = None
    return whole | _masks(
        [parameter for parameter in supernet.parameters() if parameter not in whole],
        list(slices.values()),
    )


def _masks(parameters: list[Tensor], slices: list[Tensor]) -> Usage:
    """Find the elements of the parameters that the slices depend on."""
    reaching = [value for value in slices if value.numel()]
    if not parameters or not reaching:
        return {}
    found = torch.autograd.grad(
        reaching, parameters, [torch.ones_like(value) for value in reaching], allow_unused=True
    )
    return {
        parameter: gradient != 0
        for parameter, gradient in zip(parameters, found, strict=True)
        if gradient is not None
    }
