"""How operands and gradients lie in memory: kernels read and write them through pointers.

Queries, keys and values are slices of one projection's channels, and so are their gradients, so
that neither is copied on its way between the projection and the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def dense(tensor: Tensor | None) -> Tensor | None:
    """Return the tensor contiguous in memory, or None."""
    return None if tensor is None else tensor.contiguous()


def even_pixels(map_: Tensor) -> Tensor:
    """Copy a map (B, H, W, C) unless its pixels lie evenly, as those of a packed projection do.

    Then ``stride(2)``, the pitch, is the number of elements from one pixel to the next.
    """
    _, height, width, channels = map_.shape
    pitch = map_.stride(2)
    if map_.stride() == _strides(height, width, pitch) and pitch >= channels:
        return map_
    # Along an axis of one place a tensor may have any stride and still be contiguous.
    return map_.contiguous().as_strided(map_.shape, _strides(height, width, channels))


def _strides(height: int, width: int, pitch: int) -> tuple[int, int, int, int]:
    return height * width * pitch, width * pitch, pitch, 1


def empty_slices(like: Tensor, wanted: Sequence[object | None]) -> list[Any]:
    """Make a tensor (B, H, W, C) for each that is wanted, slices of one; None for the others."""
    count = sum(x is not None for x in wanted)
    packed = like.new_empty((*like.shape[:3], count * like.shape[3]))
    slices = iter(packed.split(like.shape[3], -1))
    return [None if x is None else next(slices) for x in wanted]


def split_channels(packed: Tensor, size: int) -> tuple[Tensor, ...]:
    """Split (..., n * size) into n views (..., size); neighbouring gradients are not copied."""
    if torch.compiler.is_compiling():
        return packed.split(size, -1)
    return _SplitChannels.apply(packed, size)


def join_channels(parts: Sequence[Tensor]) -> Tensor:
    """Return (..., C) of the parts' channels: a view where they are neighbouring slices."""
    first = parts[0]
    storage, place = first.untyped_storage().data_ptr(), first.storage_offset()
    for part in parts:
        lies_next = part.untyped_storage().data_ptr() == storage and part.storage_offset() == place
        if not lies_next or part.stride() != first.stride() or part.stride(-1) != 1:
            return torch.cat(tuple(parts), -1)
        place += part.shape[-1]
    return first.as_strided((*first.shape[:-1], place - first.storage_offset()), first.stride())


class _SplitChannels(torch.autograd.Function):
    """`torch.split` of the last axis, whose backward pass need not copy."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, size: int) -> tuple[Tensor, ...]:
        return packed.split(size, -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # A view of one gradient would hide the others from second derivatives.
        if torch.is_grad_enabled():
            return torch.cat(grads, -1), None
        return join_channels(grads), None
