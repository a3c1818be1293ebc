"""The convolution of Hadamard logits in Triton: float32, float16 and bfloat16 with float32 sums.

Groups are narrower than the matrices that tensor cores multiply, so that several groups make one
block of channels, with zeros between groups: of 16 channels and groups of 4 a quarter is used. The
product of queries and keys is made of what is loaded and never stored; the gradient of the weight
is summed in parts. Programs own their results, which repeat to the bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from supernet.kernels.hadamard.in_torch import Grads
from supernet.kernels.layout import even_pixels
from supernet.kernels.tiles import (
    check_offsets,
    load_pixels,
    neighbour,
    split_pixels,
    tile_pixels,
    tile_shape,
)

# Tensor cores multiply matrices of at least so many rows and columns.
MIN_BLOCK, MAX_BLOCK = 16, 64


def serves(weight: Tensor) -> bool:
    """Tell whether the groups are a power of two of channels, not wider than a block."""
    width = weight.shape[2]
    return width <= MAX_BLOCK and width & (width - 1) == 0


def hadamard_conv(
    queries: Tensor, keys: Tensor, weight: Tensor, bias: Tensor | None, dilation: int
) -> Tensor:
    """Convolve the product of queries and keys."""
    queries, keys = even_pixels(queries), even_pixels(keys)
    result = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    tensors = (result, result, queries, queries, keys, _blocks(weight))
    _launch(tensors, bias, weight, dilation, backward=False)
    return result


def hadamard_conv_grad(
    grad: Tensor, queries: Tensor, keys: Tensor, weight: Tensor, dilation: int
) -> Grads:
    """Compute the gradients of queries, keys, weight and bias; the product is computed again."""
    grad, queries, keys = grad.contiguous(), even_pixels(queries), even_pixels(keys)
    q_grad, k_grad = torch.empty_like(grad), torch.empty_like(grad)
    tensors = (q_grad, k_grad, grad, queries, keys, _blocks(weight))
    _launch(tensors, None, weight, dilation, backward=True)
    return q_grad, k_grad, _weight_grad(grad, queries, keys, weight, dilation), grad.sum((0, 1, 2))


def _launch(
    tensors: tuple[Tensor, ...],
    bias: Tensor | None,
    weight: Tensor,
    dilation: int,
    *,
    backward: bool,
) -> None:
    batch, height, width, channels = tensors[0].shape
    if tensors[0].numel() == 0:
        return
    for map_ in tensors[:5]:
        check_offsets(map_)
    block = tensors[5].shape[-1]
    rows, columns = tile_shape(block)
    tiles = triton.cdiv(height, rows) * triton.cdiv(width, columns)
    with torch.cuda.device_of(weight):
        _convolve[tiles, triton.cdiv(channels, block), batch](
            *tensors,
            weight if bias is None else bias.contiguous(),
            tensors[3].stride(2),
            tensors[4].stride(2),
            height,
            width,
            channels,
            dilation,
            kernel_size=round(weight.shape[0] ** 0.5),
            has_bias=bias is not None,
            backward=backward,
            rows=rows,
            columns=columns,
            block=block,
        )


def _weight_grad(
    grad: Tensor, queries: Tensor, keys: Tensor, weight: Tensor, dilation: int
) -> Tensor:
    taps, channels, width = weight.shape
    if grad.numel() == 0:
        return torch.zeros_like(weight)
    block = _block_size(weight)
    rows, columns = tile_shape(block)
    pixels = grad[..., 0].numel()
    parts, length = split_pixels(pixels, rows * columns)
    blocks = triton.cdiv(channels, block)
    sums = grad.new_empty((parts, taps, blocks, block, block), dtype=torch.float32)
    with torch.cuda.device_of(grad):
        _weight_sums[blocks, parts](
            sums,
            grad,
            queries,
            keys,
            pixels,
            length,
            queries.stride(2),
            keys.stride(2),
            grad.shape[1],
            grad.shape[2],
            channels,
            dilation,
            kernel_size=round(taps**0.5),
            block_pixels=rows * columns,
            block=block,
        )
    # (taps, blocks, inputs, outputs) -> the groups on the diagonal, (taps, C, width).
    groups = sums.sum(0).unflatten(3, (-1, width)).unflatten(2, (-1, width))
    found = groups.diagonal(dim1=2, dim2=4).permute(0, 1, 4, 3, 2)
    return found.reshape(taps, -1, width)[:, :channels].to(weight.dtype).contiguous()


def _block_size(weight: Tensor) -> int:
    return max(MIN_BLOCK, weight.shape[2])


def _blocks(weight: Tensor) -> Tensor:
    """Lay weights (taps, C, width) out as matrices (taps, blocks, inputs, outputs) of blocks."""
    taps, channels, width = weight.shape
    block = _block_size(weight)
    blocks = triton.cdiv(channels, block)
    padded = weight.new_zeros(taps, blocks * block, width)
    padded[:, :channels] = weight
    # (taps, blocks, groups, outputs, inputs) -> (taps, blocks, inputs, outputs, groups)
    groups = padded.view(taps, blocks, block // width, width, width).permute(0, 1, 4, 3, 2)
    dense = torch.diag_embed(groups, dim1=2, dim2=4)  # (..., groups, inputs, groups, outputs)
    return dense.reshape(taps, blocks, block, block)


@triton.jit
def _convolve(
    result: tl.tensor,
    k_grad: tl.tensor,
    grad: tl.tensor,
    q: tl.tensor,
    k: tl.tensor,
    blocks: tl.tensor,
    bias: tl.tensor,
    q_pitch: tl.tensor,
    k_pitch: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    channels: tl.tensor,
    dilation: tl.tensor,
    kernel_size: tl.constexpr,
    has_bias: tl.constexpr,
    backward: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Sum the taps for a tile of pixels and a block of channels; backward, transposed, from grad.

    Backward, ``result`` is the gradient of the queries.
    """
    place, before = tl.program_id(1), tl.program_id(2).to(tl.int64) * height * width
    row, column, is_pixel = tile_pixels(tl.program_id(0), height, width, rows, columns)
    lane = tl.arange(0, block)
    channel = place * block + lane
    is_channel, pixel = channel < channels, row * width + column
    q += before * q_pitch
    k += before * k_pitch
    grad += before * channels
    sign: tl.constexpr = -1 if backward else 1
    total = tl.zeros((rows * columns, block), tl.float32)
    for tap in range(kernel_size * kernel_size):
        other, inside = neighbour(row, column, height, width, tap, dilation, kernel_size, sign)
        mask = (is_pixel & inside)[:, None] & is_channel[None, :]
        matrix = blocks + (tap * tl.num_programs(1) + place) * block * block
        if backward:
            x = load_pixels(grad, other, channels, channel, mask)
            matrix += lane[None, :] * block + lane[:, None]
        else:
            x = load_pixels(q, other, q_pitch, channel, mask)
            x *= load_pixels(k, other, k_pitch, channel, mask)
            matrix += lane[:, None] * block + lane[None, :]
        factors = tl.load(matrix)
        total = tl.dot(x.to(factors.dtype), factors, total, input_precision="ieee")
    index = before * channels + pixel[:, None] * channels + channel[None, :]
    mask = is_pixel[:, None] & is_channel[None, :]
    if backward:
        q_grad = total * load_pixels(k, pixel, k_pitch, channel, mask)
        k_total = total * load_pixels(q, pixel, q_pitch, channel, mask)
        tl.store(result + index, q_grad.to(result.dtype.element_ty), mask=mask)
        tl.store(k_grad + index, k_total.to(k_grad.dtype.element_ty), mask=mask)
    else:
        if has_bias:
            total += tl.load(bias + channel, mask=is_channel, other=0.0).to(tl.float32)[None, :]
        tl.store(result + index, total.to(result.dtype.element_ty), mask=mask)


@triton.jit
def _weight_sums(
    sums: tl.tensor,
    grad: tl.tensor,
    q: tl.tensor,
    k: tl.tensor,
    pixels: tl.tensor,
    length: tl.tensor,
    q_pitch: tl.tensor,
    k_pitch: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    channels: tl.tensor,
    dilation: tl.tensor,
    kernel_size: tl.constexpr,
    block_pixels: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Sum product times grad over ``length`` pixels, for a block of channels, tap after tap."""
    place, part = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, block)
    channel = place * block + lane
    is_channel, start = channel < channels, part * length
    before = start.to(tl.int64)
    q += before * q_pitch
    k += before * k_pitch
    grad += before * channels
    taps: tl.constexpr = kernel_size * kernel_size
    for tap in range(taps):
        total = tl.zeros((block, block), tl.float32)
        for offset in range(0, length, block_pixels):
            local = offset + tl.arange(0, block_pixels)
            position = (start + local) % (height * width)
            row, column = position // width, position % width
            other, inside = neighbour(row, column, height, width, tap, dilation, kernel_size, 1)
            other += local - position
            mask = (inside & (start + local < pixels))[:, None] & is_channel[None, :]
            x = load_pixels(q, other, q_pitch, channel, mask)
            x *= load_pixels(k, other, k_pitch, channel, mask)
            y = load_pixels(grad, local, channels, channel, mask).to(grad.dtype.element_ty)
            total = tl.dot(tl.trans(x.to(y.dtype)), y, total, input_precision="ieee")
        matrix = sums + ((part * taps + tap) * tl.num_programs(0) + place) * block * block
        tl.store(matrix + lane[:, None] * block + lane[None, :], total)
