"""The primitives in Triton for GPUs: float32, float16 and bfloat16 with float32 sums.

Signatures and conventions are those of `supernet.kernels.aggregation.in_torch`. Programs own their
outputs, so results repeat to the bit; beside operands and results there are only the partial sums
of `multiplier_grad`. A program holds a tile of pixels by channels, reads its neighbours tap by tap
and leaves their reuse to the cache.

Checked in Triton's interpreter and compiled for GPUs; not yet tuned on one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from supernet.kernels.aggregation.in_torch import skew
from supernet.kernels.layout import dense
from supernet.kernels.tiles import (
    check_offsets,
    load_pixels,
    neighbour,
    split_pixels,
    tile_pixels,
    tile_shape,
)

__all__ = ["aggregate", "logits", "multiplier_grad", "skew"]

CHANNELS = 64
# A program whose channels all have one filter reads it once for each pixel.
MIN_SHARED_FILTER = 16


def aggregate(
    filters: Tensor | None,
    values: Tensor,
    kernel_size: int,
    dilation: int,
    multiplier: Tensor | None,
    bias: Tensor | None,
    transposed: bool,
) -> Tensor:
    """Compute ``y[i] = sum_o f[i, o] v[i + o]``, or transposed ``sum_o f[i - o, o] v[i - o]``."""
    values, filters = values.contiguous(), dense(filters)
    for read in (values, filters):
        if read is not None:
            check_offsets(read)
    result = torch.empty_like(values)
    batch, height, width, channels = values.shape
    if values.numel() == 0:
        return result
    groups = 1 if filters is None else filters.shape[3]
    shares_filter = filters is not None and channels // groups >= MIN_SHARED_FILTER
    span = channels // groups if shares_filter else channels
    block = min(triton.next_power_of_2(span), CHANNELS)
    rows, columns = tile_shape(block)
    tiles = triton.cdiv(height, rows) * triton.cdiv(width, columns)
    with torch.cuda.device_of(values):
        _aggregate[tiles, channels // span * triton.cdiv(span, block), batch](
            result,
            values if filters is None else filters,
            values,
            values if multiplier is None else multiplier.contiguous(),
            values if bias is None else bias.contiguous(),
            height,
            width,
            channels,
            groups,
            span,
            dilation,
            kernel_size=kernel_size,
            has_filters=filters is not None,
            shares_filter=shares_filter,
            has_multiplier=multiplier is not None,
            per_image=multiplier is not None and multiplier.dim() == 3,
            has_bias=bias is not None,
            sign=-1 if transposed else 1,
            rows=rows,
            columns=columns,
            block_channels=block,
        )
    return result


def logits(
    x: Tensor,
    values: Tensor,
    groups: int,
    kernel_size: int,
    dilation: int,
    multiplier: Tensor | None,
) -> Tensor:
    """Compute ``s[i, g, o] = sum over c in g of multiplier[o, c] x[i, c] values[i + o, c]``."""
    x, values = x.contiguous(), values.contiguous()
    check_offsets(values)
    batch, height, width, channels = x.shape
    result = x.new_empty(batch, height, width, groups, kernel_size**2)
    check_offsets(result)
    if result.numel() == 0:
        return result
    block = triton.next_power_of_2(channels // groups)
    rows, columns = tile_shape(block)
    tiles = triton.cdiv(height, rows) * triton.cdiv(width, columns)
    with torch.cuda.device_of(values):
        _logits[tiles, groups, batch](
            result,
            x,
            values,
            values if multiplier is None else multiplier.contiguous(),
            height,
            width,
            channels,
            groups,
            dilation,
            kernel_size=kernel_size,
            has_multiplier=multiplier is not None,
            per_image=multiplier is not None and multiplier.dim() == 3,
            rows=rows,
            columns=columns,
            block_channels=block,
        )
    return result


def multiplier_grad(
    filters: Tensor | None,
    x: Tensor,
    values: Tensor,
    kernel_size: int,
    dilation: int,
    per_image: bool,
) -> Tensor:
    """Compute ``m[o, c] = sum_i filters[i, g(c), o] x[i, c] values[i + o, c]``, (K*K, C).

    With ``per_image`` the sum is over the pixels of each image: (B, K*K, C).
    """
    x, values = x.contiguous(), values.contiguous()
    batch, height, width, channels = x.shape
    shape = (*x.shape[: int(per_image)], kernel_size**2, channels)
    if x.numel() == 0:
        return x.new_zeros(shape)
    images = batch if per_image else 1
    pixels = batch // images * height * width
    block = min(triton.next_power_of_2(channels), CHANNELS)
    rows, columns = tile_shape(block)
    parts, length = split_pixels(pixels, rows * columns)
    sums = x.new_empty((images, parts, kernel_size**2, channels), dtype=torch.float32)
    with torch.cuda.device_of(values):
        _multiplier_grad[triton.cdiv(channels, block) * kernel_size, parts, images](
            sums,
            values if filters is None else dense(filters),
            x,
            values,
            pixels,
            length,
            height,
            width,
            channels,
            1 if filters is None else filters.shape[3],
            dilation,
            kernel_size=kernel_size,
            has_filters=filters is not None,
            block_taps=triton.next_power_of_2(kernel_size),
            block_pixels=rows * columns,
            block_channels=block,
        )
    return sums.sum(1).to(x.dtype).view(shape)


@triton.jit
def _aggregate(
    result: tl.tensor,
    filters: tl.tensor,
    values: tl.tensor,
    multiplier: tl.tensor,
    bias: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    channels: tl.tensor,
    groups: tl.tensor,
    span: tl.tensor,
    dilation: tl.tensor,
    kernel_size: tl.constexpr,
    has_filters: tl.constexpr,
    shares_filter: tl.constexpr,
    has_multiplier: tl.constexpr,
    per_image: tl.constexpr,
    has_bias: tl.constexpr,
    sign: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    block_channels: tl.constexpr,
) -> None:
    """Sum the neighbours of a tile of pixels, in a block of the channels of one span."""
    image = tl.program_id(2).to(tl.int64)
    before = image * height * width
    row, column, is_pixel = tile_pixels(tl.program_id(0), height, width, rows, columns)
    blocks = tl.cdiv(span, block_channels)
    lane = tl.program_id(1) % blocks * block_channels + tl.arange(0, block_channels)
    channel, is_lane = tl.program_id(1) // blocks * span + lane, lane < span
    taps: tl.constexpr = kernel_size * kernel_size
    pixel = row * width + column
    values += before * channels
    filters += before * groups * taps
    if per_image:
        multiplier += image * taps * channels
    total = tl.zeros((rows * columns, block_channels), tl.float32)
    for tap in range(taps):
        other, inside = neighbour(row, column, height, width, tap, dilation, kernel_size, sign)
        mask = (is_pixel & inside)[:, None] & is_lane[None, :]
        term = load_pixels(values, other, channels, channel, mask)
        if has_filters:
            owner = pixel if sign > 0 else other
            if shares_filter:
                index = (owner * groups + tl.program_id(1) // blocks) * taps + tap
                filter_ = tl.load(filters + index, mask=is_pixel & inside, other=0.0)
                term *= filter_.to(tl.float32)[:, None]
            else:
                group = channel // (channels // groups)
                index = (owner[:, None] * groups + group[None, :]) * taps + tap
                term *= tl.load(filters + index, mask=mask, other=0.0).to(tl.float32)
        if has_multiplier:
            factor = tl.load(multiplier + tap * channels + channel, mask=is_lane, other=0.0)
            term *= factor.to(tl.float32)[None, :]
        total += term
    if has_bias:
        total += tl.load(bias + channel, mask=is_lane, other=0.0).to(tl.float32)[None, :]
    place = result + before * channels + pixel[:, None] * channels + channel[None, :]
    mask = is_pixel[:, None] & is_lane[None, :]
    tl.store(place, total.to(result.dtype.element_ty), mask=mask)


@triton.jit
def _logits(
    result: tl.tensor,
    x: tl.tensor,
    values: tl.tensor,
    multiplier: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    channels: tl.tensor,
    groups: tl.tensor,
    dilation: tl.tensor,
    kernel_size: tl.constexpr,
    has_multiplier: tl.constexpr,
    per_image: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    block_channels: tl.constexpr,
) -> None:
    """Multiply a tile of pixels with their neighbours, in one group."""
    image = tl.program_id(2).to(tl.int64)
    before = image * height * width
    row, column, is_pixel = tile_pixels(tl.program_id(0), height, width, rows, columns)
    group, depth = tl.program_id(1), channels // groups
    lane = tl.arange(0, block_channels)
    channel, is_lane = group * depth + lane, lane < depth
    taps: tl.constexpr = kernel_size * kernel_size
    pixel = row * width + column
    values += before * channels
    result += before * groups * taps
    if per_image:
        multiplier += image * taps * channels
    mask = is_pixel[:, None] & is_lane[None, :]
    mine = load_pixels(x + before * channels, pixel, channels, channel, mask)
    for tap in range(taps):
        other, inside = neighbour(row, column, height, width, tap, dilation, kernel_size, 1)
        mask = (is_pixel & inside)[:, None] & is_lane[None, :]
        term = mine * load_pixels(values, other, channels, channel, mask)
        if has_multiplier:
            factor = tl.load(multiplier + tap * channels + channel, mask=is_lane, other=0.0)
            term *= factor.to(tl.float32)[None, :]
        place = result + (pixel * groups + group) * taps + tap
        tl.store(place, tl.sum(term, 1).to(result.dtype.element_ty), mask=is_pixel)


@triton.jit
def _multiplier_grad(
    sums: tl.tensor,
    filters: tl.tensor,
    x: tl.tensor,
    values: tl.tensor,
    pixels: tl.tensor,
    length: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    channels: tl.tensor,
    groups: tl.tensor,
    dilation: tl.tensor,
    kernel_size: tl.constexpr,
    has_filters: tl.constexpr,
    block_taps: tl.constexpr,
    block_pixels: tl.constexpr,
    block_channels: tl.constexpr,
) -> None:
    """Sum over a part of the pixels, in a block of channels, for one row of taps."""
    part, parts = tl.program_id(1), tl.num_programs(1)
    block, tap_row = tl.program_id(0) // kernel_size, tl.program_id(0) % kernel_size
    channel = block * block_channels + tl.arange(0, block_channels)
    is_channel, group = channel < channels, channel // (channels // groups)
    taps: tl.constexpr = kernel_size * kernel_size
    image, start = tl.program_id(2).to(tl.int64), part * length
    before = image * pixels + start
    x += before * channels
    values += before * channels
    filters += before * groups * taps
    sums += (image * parts + part) * taps * channels
    tap_column = tl.arange(0, block_taps)
    total = tl.zeros((block_taps, block_channels), tl.float32)
    for offset in range(0, length, block_pixels):
        local = offset + tl.arange(0, block_pixels)
        position = (start + local) % (height * width)
        row, column = position // width, position % width
        pixel_mask = (start + local < pixels)[:, None] & is_channel[None, :]
        mine = load_pixels(x, local, channels, channel, pixel_mask)
        for tap_place in range(kernel_size):
            tap = tap_row * kernel_size + tap_place
            other, inside = neighbour(row, column, height, width, tap, dilation, kernel_size, 1)
            mask = pixel_mask & inside[:, None]
            term = mine * load_pixels(values, other + local - position, channels, channel, mask)
            if has_filters:
                index = (local[:, None] * groups + group[None, :]) * taps + tap
                term *= tl.load(filters + index, mask=mask, other=0.0).to(tl.float32)
            is_tap = (tap_column == tap_place)[:, None]
            total += tl.where(is_tap, tl.sum(term, 0)[None, :], 0.0)
    tap = tap_row * kernel_size + tap_column
    index = tap[:, None] * channels + channel[None, :]
    mask = (tap_column < kernel_size)[:, None] & is_channel[None, :]
    tl.store(sums + index, total, mask=mask)
