"""The primitives in Triton for GPUs: float32, float16 and bfloat16 with float32 sums.

Signatures and conventions are those of `supernet.kernels.outlook.in_torch`. Programs own their
outputs, so results repeat to the bit, and nothing is stored but results: a program of `aggregate`
holds a tile of pixels by channels and visits the tokens that reach them, at most ceil(K / s)^2; one
of `products` holds a tile of tokens, in one head and for one of their outputs.

Checked in Triton's interpreter and compiled for GPUs; not yet tuned on one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from supernet.kernels.tiles import check_offsets, load_pixels, tile_pixels, tile_shape

CHANNELS = 64


def aggregate(
    weights: Tensor, values: Tensor, kernel_size: int, stride: int, transposed: bool
) -> Tensor:
    """Compute ``y[t + o] = sum_{t,u} w[t, o, u] v[t + u]``, or transposed with ``w[t, u, o]``."""
    weights, values = weights.contiguous(), values.contiguous()
    check_offsets(weights)
    check_offsets(values)
    result = torch.empty_like(values)
    if values.numel() == 0:
        return result
    batch, height, width, channels = values.shape
    heads = weights.shape[3]
    block = min(triton.next_power_of_2(channels // heads), CHANNELS)
    rows, columns = tile_shape(block)
    tiles = triton.cdiv(height, rows) * triton.cdiv(width, columns)
    with torch.cuda.device_of(values):
        _aggregate[tiles, heads * triton.cdiv(channels // heads, block), batch](
            result,
            weights,
            values,
            height,
            width,
            heads,
            channels // heads,
            kernel_size=kernel_size,
            stride=stride,
            transposed=transposed,
            rows=rows,
            columns=columns,
            block_channels=block,
        )
    return result


def products(x: Tensor, values: Tensor, heads: int, kernel_size: int, stride: int) -> Tensor:
    """Compute ``p[t, h, o, u] = sum over c in h of x[t + o, c] values[t + u, c]``."""
    x, values = x.contiguous(), values.contiguous()
    check_offsets(values)
    batch, height, width, channels = x.shape
    tokens, taps = (triton.cdiv(height, stride), triton.cdiv(width, stride)), kernel_size**2
    result = x.new_empty((batch, *tokens, heads, taps, taps))
    check_offsets(result)
    if result.numel() == 0:
        return result
    block = triton.next_power_of_2(channels // heads)
    rows, columns = tile_shape(block)
    tiles = triton.cdiv(tokens[0], rows) * triton.cdiv(tokens[1], columns)
    with torch.cuda.device_of(values):
        _products[tiles * taps, heads, batch](
            result,
            x,
            values,
            height,
            width,
            channels // heads,
            kernel_size=kernel_size,
            stride=stride,
            rows=rows,
            columns=columns,
            block_channels=block,
        )
    return result


@triton.jit
def _aggregate(
    result: tl.tensor,
    weights: tl.tensor,
    values: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    heads: tl.tensor,
    depth: tl.tensor,
    kernel_size: tl.constexpr,
    stride: tl.constexpr,
    transposed: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    block_channels: tl.constexpr,
) -> None:
    """Sum what all tokens say about a tile of pixels, in a block of the channels of one head."""
    image = tl.program_id(2).to(tl.int64)
    row, column, is_pixel = tile_pixels(tl.program_id(0), height, width, rows, columns)
    blocks = tl.cdiv(depth, block_channels)
    head = tl.program_id(1) // blocks
    lane = tl.program_id(1) % blocks * block_channels + tl.arange(0, block_channels)
    channel, is_lane = head * depth + lane, lane < depth
    token_rows, token_columns = tl.cdiv(height, stride), tl.cdiv(width, stride)
    channels, before = heads * depth, kernel_size // 2
    taps: tl.constexpr = kernel_size * kernel_size
    reach: tl.constexpr = (kernel_size + stride - 1) // stride
    output_step: tl.constexpr = 1 if transposed else taps
    value_step: tl.constexpr = taps if transposed else 1
    result += image * height * width * channels
    values += image * height * width * channels
    weights += image * token_rows * token_columns * heads * taps * taps
    total = tl.zeros((rows * columns, block_channels), tl.float32)
    for visit in range(reach * reach):
        token_row = (row + before) // stride - visit // reach
        token_column = (column + before) // stride - visit % reach
        output_row = row + before - token_row * stride
        output_column = column + before - token_column * stride
        is_token = (token_row >= 0) & (token_row < token_rows) & (output_row < kernel_size)
        is_token &= (token_column >= 0) & (token_column < token_columns)
        is_token &= (output_column < kernel_size) & is_pixel
        output = output_row * kernel_size + output_column
        token = (token_row * token_columns + token_column) * heads + head
        place = token * taps * taps + output * output_step
        for tap in range(taps):
            other, inside = _around(
                token_row, token_column, height, width, tap, kernel_size, stride
            )
            mask = is_token & inside
            weight = tl.load(weights + place + tap * value_step, mask=mask, other=0.0)
            mask = mask[:, None] & is_lane[None, :]
            value = load_pixels(values, other, channels, channel, mask)
            total += weight.to(tl.float32)[:, None] * value
    index = (row * width + column)[:, None] * channels + channel[None, :]
    mask = is_pixel[:, None] & is_lane[None, :]
    tl.store(result + index, total.to(result.dtype.element_ty), mask=mask)


@triton.jit
def _products(
    result: tl.tensor,
    x: tl.tensor,
    values: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    depth: tl.tensor,
    kernel_size: tl.constexpr,
    stride: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    block_channels: tl.constexpr,
) -> None:
    """Multiply one output of a tile of tokens with all of their values, in one head."""
    taps: tl.constexpr = kernel_size * kernel_size
    image = tl.program_id(2).to(tl.int64)
    token_rows, token_columns = tl.cdiv(height, stride), tl.cdiv(width, stride)
    tile, output = tl.program_id(0) // taps, tl.program_id(0) % taps
    row, column, is_token = tile_pixels(tile, token_rows, token_columns, rows, columns)
    head, heads = tl.program_id(1), tl.num_programs(1)
    lane = tl.arange(0, block_channels)
    channel, is_lane = head * depth + lane, lane < depth
    channels = heads * depth
    x += image * height * width * channels
    values += image * height * width * channels
    result += image * token_rows * token_columns * heads * taps * taps
    place = (((row * token_columns + column) * heads + head) * taps + output) * taps
    pixel, inside = _around(row, column, height, width, output, kernel_size, stride)
    mask = (is_token & inside)[:, None] & is_lane[None, :]
    mine = load_pixels(x, pixel, channels, channel, mask)
    for tap in range(taps):
        other, inside = _around(row, column, height, width, tap, kernel_size, stride)
        mask = (is_token & inside)[:, None] & is_lane[None, :]
        found = tl.sum(mine * load_pixels(values, other, channels, channel, mask), 1)
        tl.store(result + place + tap, found.to(result.dtype.element_ty), mask=is_token)


@triton.jit
def _around(
    row: tl.tensor,
    column: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    tap: tl.tensor,
    kernel_size: tl.constexpr,
    stride: tl.constexpr,
) -> tl.tensor:
    """The index in the image of the pixel at a tap of a token, and whether it is in it."""
    row = row * stride + tap // kernel_size - kernel_size // 2
    column = column * stride + tap % kernel_size - kernel_size // 2
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return row * width + column, inside
