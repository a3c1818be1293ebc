"""Indices and masks that follow from numbers alone: made once for each device, not in every pass.

On a GPU a handful of tiny kernels for each block of a network is most of what a small batch costs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

Made = TypeVar("Made", bound=Callable[..., Any])

# Of each function; a detector sees maps of many sizes.
MOST_KEPT = 64


def kept(make: Made) -> Made:
    """Keep what a function of hashable values, a device among them, makes; nobody may change it.

    While a graph is traced, or tensors are not real, it is made anew: what is made then belongs to
    the trace.
    """

    @functools.lru_cache(maxsize=MOST_KEPT)
    def make_once(*given: Hashable) -> Tensor:
        # A tensor made in inference mode could not be saved for a backward pass later.
        with torch.inference_mode(mode=False):
            return cast(Tensor, make(*given))

    @functools.wraps(make)
    def get(*given: Hashable) -> Tensor:
        return cast(Tensor, make(*given)) if is_traced() else make_once(*given)

    return cast(Made, get)


def is_traced() -> bool:
    """Tell whether tensors that are made now may be of a trace and not of the network."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined]
        or _get_current_dispatch_mode() is not None
    )
