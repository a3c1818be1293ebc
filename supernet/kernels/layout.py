"""How operands lie in memory before a kernel reads them through their pointers."""

from __future__ import annotations

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
    strides = (height * width * pitch, width * pitch, pitch, 1)
    return map_ if map_.stride() == strides and pitch >= channels else map_.contiguous()
