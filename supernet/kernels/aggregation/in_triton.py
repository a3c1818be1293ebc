"""The primitives in Triton for GPUs: float32, float16 and bfloat16 with float32 sums.

Signatures and conventions are those of `supernet.kernels.aggregation.in_torch`. Programs own their
outputs, so results repeat; nothing but inputs and results is in memory. A program holds a tile of
pixels by channels, reads its neighbours tap by tap and leaves their reuse to the cache.

Written and checked in Triton's interpreter (``TRITON_INTERPRET=1``), not yet tuned on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from supernet.kernels.aggregation.in_torch import skew

__all__ = ["aggregate", "logits", "multiplier_grad", "skew"]


PIXELS, CHANNELS = 32, 64


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
    values = values.contiguous()
    result = torch.empty_like(values)
    batch, height, width, channels = values.shape
    pixels = batch * height * width
    if pixels == 0:
        return result
    _aggregate[triton.cdiv(pixels, PIXELS), triton.cdiv(channels, CHANNELS)](
        result,
        _dense(filters, values),
        values,
        _dense(multiplier, values),
        _dense(bias, values),
        pixels,
        height,
        width,
        channels,
        1 if filters is None else filters.shape[3],
        dilation,
        kernel_size=kernel_size,
        has_filters=filters is not None,
        has_multiplier=multiplier is not None,
        per_image=multiplier is not None and multiplier.dim() == 3,
        has_bias=bias is not None,
        sign=-1 if transposed else 1,
        block_pixels=PIXELS,
        block_channels=CHANNELS,
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
    batch, height, width, channels = x.shape
    result = x.new_empty(batch, height, width, groups, kernel_size**2)
    pixels, depth = batch * height * width, channels // groups
    if pixels == 0:
        return result
    _logits[triton.cdiv(pixels, PIXELS), groups](
        result,
        x,
        values,
        _dense(multiplier, x),
        pixels,
        height,
        width,
        channels,
        groups,
        dilation,
        kernel_size=kernel_size,
        has_multiplier=multiplier is not None,
        per_image=multiplier is not None and multiplier.dim() == 3,
        block_pixels=PIXELS,
        block_channels=triton.next_power_of_2(depth),
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
    images = batch if per_image else 1
    result = x.new_empty(images, kernel_size**2, channels)
    if images == 0:
        return result
    _multiplier_grad[kernel_size**2, triton.cdiv(channels, CHANNELS), images](
        result,
        _dense(filters, x),
        x,
        values,
        batch // images * height * width,
        height,
        width,
        channels,
        1 if filters is None else filters.shape[3],
        dilation,
        kernel_size=kernel_size,
        has_filters=filters is not None,
        block_pixels=PIXELS,
        block_channels=CHANNELS,
    )
    return result if per_image else result[0]


def _dense(tensor: Tensor | None, instead: Tensor) -> Tensor:
    """Return something with a pointer: the kernel does not read it where the operand is None."""
    return instead if tensor is None else tensor.contiguous()


@triton.jit
def _neighbour(pixel: Any, height: Any, width: Any, down: Any, right: Any) -> Any:
    """The flat index of the pixel at an offset, and whether it is in the same image."""
    row, column = pixel // width % height + down, pixel % width + right
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return pixel + down * width + right, inside


@triton.jit
def _aggregate(
    result: Any,
    filters: Any,
    values: Any,
    multiplier: Any,
    bias: Any,
    pixels: Any,
    height: Any,
    width: Any,
    channels: Any,
    groups: Any,
    dilation: Any,
    kernel_size: tl.constexpr,
    has_filters: tl.constexpr,
    has_multiplier: tl.constexpr,
    per_image: tl.constexpr,
    has_bias: tl.constexpr,
    sign: tl.constexpr,
    block_pixels: tl.constexpr,
    block_channels: tl.constexpr,
) -> None:
    pixel = tl.program_id(0).to(tl.int64) * block_pixels + tl.arange(0, block_pixels)
    channel = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    there = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    group = channel // (channels // groups)
    taps: tl.constexpr = kernel_size * kernel_size
    total = tl.zeros((block_pixels, block_channels), tl.float32)
    for tap in range(taps):
        down = sign * (tap // kernel_size - kernel_size // 2) * dilation
        right = sign * (tap % kernel_size - kernel_size // 2) * dilation
        other, inside = _neighbour(pixel, height, width, down, right)
        mask = there & inside[:, None]
        index = other[:, None] * channels + channel[None, :]
        term = tl.load(values + index, mask=mask, other=0.0).to(tl.float32)
        if has_filters:
            owner = pixel if sign > 0 else other
            index = (owner[:, None] * groups + group[None, :]) * taps + tap
            term *= tl.load(filters + index, mask=mask, other=0.0).to(tl.float32)
        if has_multiplier:
            index = tap * channels + channel[None, :]
            if per_image:
                index += pixel[:, None] // (height * width) * taps * channels
            term *= tl.load(multiplier + index, mask=mask, other=0.0).to(tl.float32)
        total += term
    if has_bias:
        total += tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)[None, :]
    index = pixel[:, None] * channels + channel[None, :]
    tl.store(result + index, total.to(result.dtype.element_ty), mask=there)


@triton.jit
def _logits(
    result: Any,
    x: Any,
    values: Any,
    multiplier: Any,
    pixels: Any,
    height: Any,
    width: Any,
    channels: Any,
    groups: Any,
    dilation: Any,
    kernel_size: tl.constexpr,
    has_multiplier: tl.constexpr,
    per_image: tl.constexpr,
    block_pixels: tl.constexpr,
    block_channels: tl.constexpr,
) -> None:
    pixel = tl.program_id(0).to(tl.int64) * block_pixels + tl.arange(0, block_pixels)
    group, depth = tl.program_id(1), channels // groups
    lane = tl.arange(0, block_channels)
    channel = group * depth + lane
    there = (pixel < pixels)[:, None] & (lane < depth)[None, :]
    taps: tl.constexpr = kernel_size * kernel_size
    index = pixel[:, None] * channels + channel[None, :]
    mine = tl.load(x + index, mask=there, other=0.0).to(tl.float32)
    for tap in range(taps):
        down = (tap // kernel_size - kernel_size // 2) * dilation
        right = (tap % kernel_size - kernel_size // 2) * dilation
        other, inside = _neighbour(pixel, height, width, down, right)
        mask = there & inside[:, None]
        index = other[:, None] * channels + channel[None, :]
        term = mine * tl.load(values + index, mask=mask, other=0.0).to(tl.float32)
        if has_multiplier:
            index = tap * channels + channel[None, :]
            if per_image:
                index += pixel[:, None] // (height * width) * taps * channels
            term *= tl.load(multiplier + index, mask=mask, other=0.0).to(tl.float32)
        place = result + (pixel * groups + group) * taps + tap
        tl.store(place, tl.sum(term, 1).to(result.dtype.element_ty), mask=pixel < pixels)


@triton.jit
def _multiplier_grad(
    result: Any,
    filters: Any,
    x: Any,
    values: Any,
    pixels: Any,
    height: Any,
    width: Any,
    channels: Any,
    groups: Any,
    dilation: Any,
    kernel_size: tl.constexpr,
    has_filters: tl.constexpr,
    block_pixels: tl.constexpr,
    block_channels: tl.constexpr,
) -> None:
    tap, part = tl.program_id(0), tl.program_id(2)
    channel = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    group = channel // (channels // groups)
    taps: tl.constexpr = kernel_size * kernel_size
    down = (tap // kernel_size - kernel_size // 2) * dilation
    right = (tap % kernel_size - kernel_size // 2) * dilation
    total = tl.zeros((block_channels,), tl.float32)
    for start in range(0, pixels, block_pixels):
        local = start + tl.arange(0, block_pixels)
        pixel = part.to(tl.int64) * pixels + local
        other, inside = _neighbour(pixel, height, width, down, right)
        mask = ((local < pixels) & inside)[:, None] & (channel < channels)[None, :]
        index = pixel[:, None] * channels + channel[None, :]
        term = tl.load(x + index, mask=mask, other=0.0).to(tl.float32)
        index = other[:, None] * channels + channel[None, :]
        term *= tl.load(values + index, mask=mask, other=0.0).to(tl.float32)
        if has_filters:
            index = (pixel[:, None] * groups + group[None, :]) * taps + tap
            term *= tl.load(filters + index, mask=mask, other=0.0).to(tl.float32)
        total += tl.sum(term, 0)
    place = result + (part * taps + tap) * channels + channel
    tl.store(place, total.to(result.dtype.element_ty), mask=channel < channels)
