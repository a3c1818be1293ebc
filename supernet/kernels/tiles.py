"""What the Triton kernels share: tiles of an image's pixels, and their neighbours.

A program serves one image (so that offsets in it fit 32 bits) and a tile of its pixels, two-
dimensional, so that the neighbours of the tile are few and stay in the first-level cache.
Parameters are annotated as `tl.tensor`: Triton resolves annotations when it compiles, and knows
nothing of `typing`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

# Elements of a tile of pixels by channels: 16 for each of 128 threads, in registers.
ELEMENTS = 2048
LARGEST_OFFSET = 2**31
# Sums over all pixels are made in at most so many parts of at least so many pixels: enough for all
# multiprocessors, few enough that the parts are small beside the maps.
MAX_PARTS, MIN_PART = 256, 1024


def tile_shape(channels: int) -> tuple[int, int]:
    """Choose rows and columns of a tile whose pixels have so many channels (a power of two)."""
    pixels = max(ELEMENTS // channels, 4)
    columns = 1 << (pixels.bit_length() // 2)
    return pixels // columns, columns


def split_pixels(pixels: int, block: int) -> tuple[int, int]:
    """Split pixels into parts of one length, a multiple of the block: (parts, length)."""
    length = max(triton.cdiv(pixels, MAX_PARTS), MIN_PART)
    length = triton.cdiv(length, block) * block
    return triton.cdiv(pixels, length), length


def check_offsets(map_: Tensor) -> None:
    """Refuse maps (B, H, W, ...) whose images are too large for offsets of 32 bits.

    Raises:
        ValueError: If an image has 2**31 elements or more between its first and its last.
    """
    if map_.stride(0) >= LARGEST_OFFSET:
        raise ValueError(
            f"Triton's kernels take images of fewer than {LARGEST_OFFSET} elements, got a map "
            f"{tuple(map_.shape)}. Cut the images, or set MIXER_KERNELS=torch."
        )


@triton.jit
def tile_pixels(
    program: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    rows: tl.constexpr,
    columns: tl.constexpr,
) -> tl.tensor:
    """Rows and columns in the image of a tile's pixels, row by row, and whether they are in it."""
    across = tl.cdiv(width, columns)
    pixel = tl.arange(0, rows * columns)
    row = program // across * rows + pixel // columns
    column = program % across * columns + pixel % columns
    return row, column, (row < height) & (column < width)


@triton.jit
def neighbour(
    row: tl.tensor,
    column: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    tap: tl.tensor,
    dilation: tl.tensor,
    kernel_size: tl.constexpr,
    sign: tl.constexpr,
) -> tl.tensor:
    """The index in the image of the pixel at plus or minus a tap, and whether it is in it."""
    row += sign * (tap // kernel_size - kernel_size // 2) * dilation
    column += sign * (tap % kernel_size - kernel_size // 2) * dilation
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return row * width + column, inside


@triton.jit
def load_pixels(
    map_: tl.tensor, pixel: tl.tensor, pitch: tl.tensor, channel: tl.tensor, mask: tl.tensor
) -> tl.tensor:
    """Load (pixels, channels) in float32, zero where masked out."""
    index = pixel[:, None] * pitch + channel[None, :]
    return tl.load(map_ + index, mask=mask, other=0.0).to(tl.float32)
