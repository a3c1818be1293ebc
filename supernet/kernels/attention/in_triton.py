"""Neighbourhood attention in Triton, fused: float32, float16 and bfloat16 with float32 sums.

A program holds the queries of a tile of pixels and of one head, and visits their neighbours tap by
tap: logit, normalisation and sum of values happen in registers. The softmax keeps a running maximum
(Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867), filter normalisation running
moments (Welford 1962).

The backward pass computes the logits again, three times: for the queries and the bias (and for two
or four numbers of each pixel and head, from which any weight follows), for keys and values, each of
which gathers from the queries that see it, and for the tables, one row of taps after the other, in
parts that are summed at the end.
Every program owns its results, so they repeat to the bit, and nothing of the size of the weights
(B, H, W, heads, K*K) is stored.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from supernet.kernels.attention.area import NORMS, Area, Grads, Operands
from supernet.kernels.attention.triton_parts import (
    FILTER_NORM,
    IDENTITY,
    SOFTMAX,
    filter_gain,
    filter_std,
    load_statistics,
    logit_grad,
    store_statistics,
    tap_logit,
    tap_weight,
)
from supernet.kernels.layout import dense, empty_slices, even_pixels
from supernet.kernels.tiles import (
    check_offsets,
    load_pixels,
    neighbour,
    split_pixels,
    tile_pixels,
    tile_shape,
)

# Numbers of a pixel and head from which its weights and their gradients follow.
NUM_STATISTICS = {"softmax": 2, "filter_norm": 4, "identity": 0}


def attention(operands: Operands, area: Area) -> Tensor:
    """Compute `supernet.kernels.attention.in_torch.attention`."""
    launch = _Launch(operands, area)
    result = torch.empty(operands[2].shape, dtype=operands[2].dtype, device=operands[2].device)
    if result.numel() == 0:
        return result
    with torch.cuda.device_of(result):
        _attention[launch.tiles](result, *launch.operands, **launch.settings)
    return result


def attention_grad(grad: Tensor, operands: Operands, area: Area) -> Grads:
    """Compute the gradients of the operands; the weights are computed again."""
    if grad.numel() == 0:
        return tuple(None if x is None else torch.zeros_like(x) for x in operands)
    launch, grad = _Launch(operands, area), grad.contiguous()
    numbers = (*grad.shape[:3], area.num_heads, NUM_STATISTICS[area.norm])
    statistics = grad.new_empty(numbers, dtype=torch.float32)
    dq, dk, dv = empty_slices(grad, operands[:3])
    check_offsets(dv)
    bias = operands[5]
    # Of each tile, in the order of the grid.
    tiles = (grad.shape[0], launch.tiles[0], *(() if bias is None else bias.shape))
    dbias = None if bias is None else grad.new_empty(tiles, dtype=torch.float32)
    with torch.cuda.device_of(grad):
        if dq is not None or dbias is not None or statistics.numel():
            _query_grad[launch.tiles](
                grad if dq is None else dq,
                statistics if dbias is None else dbias,
                statistics,
                grad,
                *launch.operands,
                result_pitch=dv.stride(2),
                has_grad=dq is not None,
                **launch.settings,
            )
        _key_grad[launch.tiles](
            dv if dk is None else dk,
            dv,
            statistics,
            grad,
            *launch.operands,
            result_pitch=dv.stride(2),
            has_grad=dk is not None,
            **launch.settings,
        )
        dqr, drk = _table_grads(operands, statistics, grad, launch)
    return dq, dk, dv, dqr, drk, None if dbias is None else dbias.sum((0, 1)).to(grad.dtype)


def _table_grads(
    operands: Operands, statistics: Tensor, grad: Tensor, launch: _Launch
) -> tuple[Tensor | None, Tensor | None]:
    """Sum the gradients of the two tables over all pixels, part by part."""
    tables = operands[3:5]
    if all(table is None for table in tables):
        return None, None
    pixels = grad[..., 0].numel()
    parts, length = split_pixels(pixels, launch.num_pixels)
    sums = [
        None if x is None else grad.new_empty((parts, *x.shape), dtype=torch.float32)
        for x in tables
    ]
    size = launch.settings["kernel_size"]
    _table_grad[parts, launch.tiles[1], size](
        *(statistics if x is None else x for x in sums),
        statistics,
        grad,
        *launch.operands,
        pixels=pixels,
        length=length,
        block_taps=triton.next_power_of_2(size),
        **launch.settings,
    )
    dqr, drk = (None if x is None else x.sum(0).to(grad.dtype) for x in sums)
    return dqr, drk


class _Launch:
    """How the kernels are started for these operands."""

    def __init__(self, operands: Operands, area: Area) -> None:
        values = operands[2]
        _, height, width, channels = values.shape
        depth = channels // area.num_heads
        block = triton.next_power_of_2(depth)
        rows, columns = tile_shape(block)
        maps = [values if x is None else even_pixels(x) for x in operands[:3]]
        for map_ in maps:
            check_offsets(map_)
        tables = [values if x is None else dense(x) for x in operands[3:]]
        self.num_pixels = rows * columns
        self.tiles = (
            triton.cdiv(height, rows) * triton.cdiv(width, columns),
            area.num_heads,
            values.shape[0],
        )
        self.operands = (*maps, *tables)
        self.settings: dict[str, Any] = {
            "q_pitch": maps[0].stride(2),
            "k_pitch": maps[1].stride(2),
            "v_pitch": maps[2].stride(2),
            "height": height,
            "width": width,
            "heads": area.num_heads,
            "depth": depth,
            "dilation": area.dilation,
            "scale": float(area.scale),
            "kernel_size": area.kernel_size,
            "has_product": area.has_product,
            "has_qr": operands[3] is not None,
            "has_rk": operands[4] is not None,
            "has_bias": operands[5] is not None,
            "norm": NORMS.index(area.norm),
            "rows": rows,
            "columns": columns,
            "block_depth": block,
        }


@triton.jit
def _attention(
    result: tl.tensor,
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    qr: tl.tensor,
    rk: tl.tensor,
    bias: tl.tensor,
    q_pitch: tl.tensor,
    k_pitch: tl.tensor,
    v_pitch: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    heads: tl.tensor,
    depth: tl.tensor,
    dilation: tl.tensor,
    scale: tl.tensor,
    kernel_size: tl.constexpr,
    has_product: tl.constexpr,
    has_qr: tl.constexpr,
    has_rk: tl.constexpr,
    has_bias: tl.constexpr,
    norm: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    block_depth: tl.constexpr,
) -> None:
    """Attend: y of a tile of pixels and one head."""
    head, before = tl.program_id(1), tl.program_id(2).to(tl.int64) * height * width
    row, column, is_pixel = tile_pixels(tl.program_id(0), height, width, rows, columns)
    lane = tl.arange(0, block_depth)
    channel, is_lane = head * depth + lane, lane < depth
    pixel = row * width + column
    mask = is_pixel[:, None] & is_lane[None, :]
    query = tl.zeros(mask.shape, tl.float32)
    if has_product or has_qr:
        query = load_pixels(q + before * q_pitch, pixel, q_pitch, channel, mask)
    key = tl.zeros(mask.shape, tl.float32)
    total = tl.zeros(mask.shape, tl.float32)
    plain_total = tl.zeros(mask.shape, tl.float32)
    largest = tl.full(pixel.shape, float("-inf"), tl.float32)
    first = tl.zeros(pixel.shape, tl.float32)
    mean = tl.zeros(pixel.shape, tl.float32)
    spread = tl.zeros(pixel.shape, tl.float32)
    for tap in range(kernel_size * kernel_size):
        other, inside = neighbour(row, column, height, width, tap, dilation, kernel_size, 1)
        mask = inside[:, None] & is_lane[None, :]
        value = load_pixels(v + before * v_pitch, other, v_pitch, channel, mask)
        if has_product or has_rk:
            key = load_pixels(k + before * k_pitch, other, k_pitch, channel, mask)
        logit, _, _ = tap_logit(
            query,
            key,
            qr,
            rk,
            bias,
            tap,
            head,
            heads,
            depth,
            scale,
            has_product,
            has_qr,
            has_rk,
            has_bias,
        )
        if norm == SOFTMAX:
            # `spread` is the sum of the weights so far, relative to the largest.
            now = tl.maximum(largest, logit)
            shrink, weight = tl.exp(largest - now), tl.exp(logit - now)
            total = total * shrink[:, None] + weight[:, None] * value
            spread = spread * shrink + weight
            largest = now
        elif norm == FILTER_NORM:
            # Logits relative to the first: their mean may be far from zero.
            first = tl.where(tap == 0, logit, first)
            logit -= first
            total += logit[:, None] * value
            plain_total += value
            step = logit - mean
            mean += step / (tap + 1)
            spread += step * (logit - mean)
        else:
            total += logit[:, None] * value
    if norm == SOFTMAX:
        total /= spread[:, None]
    elif norm == FILTER_NORM:
        total = filter_gain(spread, kernel_size)[:, None] * (total - mean[:, None] * plain_total)
    index = pixel[:, None] * (heads * depth) + channel[None, :]
    mask = is_pixel[:, None] & is_lane[None, :]
    place = result + before * heads * depth + index
    tl.store(place, total.to(result.dtype.element_ty), mask=mask)


@triton.jit
def _query_grad(
    dq: tl.tensor,
    dbias: tl.tensor,
    statistics: tl.tensor,
    grad: tl.tensor,
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    qr: tl.tensor,
    rk: tl.tensor,
    bias: tl.tensor,
    q_pitch: tl.tensor,
    k_pitch: tl.tensor,
    v_pitch: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    heads: tl.tensor,
    depth: tl.tensor,
    dilation: tl.tensor,
    scale: tl.tensor,
    result_pitch: tl.tensor,
    has_grad: tl.constexpr,
    kernel_size: tl.constexpr,
    has_product: tl.constexpr,
    has_qr: tl.constexpr,
    has_rk: tl.constexpr,
    has_bias: tl.constexpr,
    norm: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    block_depth: tl.constexpr,
) -> None:
    """Compute the statistics of a tile of pixels and one head, and the gradient of its queries.

    The slopes that make it are those of the bias, too, whose sum over the tile is stored.
    """
    head, before = tl.program_id(1), tl.program_id(2).to(tl.int64) * height * width
    row, column, is_pixel = tile_pixels(tl.program_id(0), height, width, rows, columns)
    lane = tl.arange(0, block_depth)
    channel, is_lane = head * depth + lane, lane < depth
    channels = heads * depth
    pixel = row * width + column
    mask = is_pixel[:, None] & is_lane[None, :]
    query = tl.zeros(mask.shape, tl.float32)
    if has_product or has_qr:
        query = load_pixels(q + before * q_pitch, pixel, q_pitch, channel, mask)
    mine = load_pixels(grad + before * channels, pixel, channels, channel, mask)
    key = tl.zeros(mask.shape, tl.float32)
    a = tl.zeros(pixel.shape, tl.float32)
    b = tl.zeros(pixel.shape, tl.float32)
    c = tl.zeros(pixel.shape, tl.float32)
    d = tl.zeros(pixel.shape, tl.float32)
    if norm != IDENTITY:
        largest = tl.full(pixel.shape, float("-inf"), tl.float32)
        for tap in range(kernel_size * kernel_size):
            other, inside = neighbour(row, column, height, width, tap, dilation, kernel_size, 1)
            mask = inside[:, None] & is_lane[None, :]
            value = load_pixels(v + before * v_pitch, other, v_pitch, channel, mask)
            if has_product or has_rk:
                key = load_pixels(k + before * k_pitch, other, k_pitch, channel, mask)
            logit, _, _ = tap_logit(
                query,
                key,
                qr,
                rk,
                bias,
                tap,
                head,
                heads,
                depth,
                scale,
                has_product,
                has_qr,
                has_rk,
                has_bias,
            )
            response = tl.sum(mine * value, 1)
            if norm == SOFTMAX:
                now = tl.maximum(largest, logit)
                shrink, weight = tl.exp(largest - now), tl.exp(logit - now)
                a = a * shrink + weight
                b = b * shrink + weight * response
                largest = now
            else:
                step = logit - a
                a += step / (tap + 1)
                b += step * (logit - a)
                c += (response - c) / (tap + 1)
                d += step * (response - c)
        if norm == SOFTMAX:
            b /= a
            a = largest + tl.log(a)
        else:
            gain = filter_gain(b, kernel_size)
            # ds = gain (t - mean t) - w slope, where slope = w.t / (sqrt(2) / K * n * std) and
            # n std^2 = spread (b), w.t = gain d.
            slope = gain * d * filter_std(b, kernel_size) * kernel_size / 1.4142135623730951
            d = tl.where(b > 0, slope / tl.where(b > 0, b, 1.0), 0.0)
            b = gain
        store_statistics(statistics, before, pixel, is_pixel, head, heads, a, b, c, d, norm)
    if has_grad or has_bias:
        total = tl.zeros(mine.shape, tl.float32)
        tile = tl.program_id(2).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
        dbias += tile * kernel_size * kernel_size * heads + head
        for tap in range(kernel_size * kernel_size):
            other, inside = neighbour(row, column, height, width, tap, dilation, kernel_size, 1)
            mask = inside[:, None] & is_lane[None, :]
            value = load_pixels(v + before * v_pitch, other, v_pitch, channel, mask)
            if has_product or has_rk:
                key = load_pixels(k + before * k_pitch, other, k_pitch, channel, mask)
            logit, query_row, _ = tap_logit(
                query,
                key,
                qr,
                rk,
                bias,
                tap,
                head,
                heads,
                depth,
                scale,
                has_product,
                has_qr,
                has_rk,
                has_bias,
            )
            weight = tap_weight(logit, a, b, norm)
            slope = logit_grad(weight, tl.sum(mine * value, 1), b, c, d, norm)
            if has_bias:
                tl.store(dbias + tap * heads, tl.sum(tl.where(is_pixel, slope, 0.0), 0))
            slope *= scale
            if has_product:
                total += slope[:, None] * key
            if has_qr:
                total += slope[:, None] * query_row[None, :]
        if has_grad:
            index = before * result_pitch + pixel[:, None] * result_pitch + channel[None, :]
            mask = is_pixel[:, None] & is_lane[None, :]
            tl.store(dq + index, total.to(dq.dtype.element_ty), mask=mask)


@triton.jit
def _key_grad(
    dk: tl.tensor,
    dv: tl.tensor,
    statistics: tl.tensor,
    grad: tl.tensor,
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    qr: tl.tensor,
    rk: tl.tensor,
    bias: tl.tensor,
    q_pitch: tl.tensor,
    k_pitch: tl.tensor,
    v_pitch: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    heads: tl.tensor,
    depth: tl.tensor,
    dilation: tl.tensor,
    scale: tl.tensor,
    result_pitch: tl.tensor,
    has_grad: tl.constexpr,
    kernel_size: tl.constexpr,
    has_product: tl.constexpr,
    has_qr: tl.constexpr,
    has_rk: tl.constexpr,
    has_bias: tl.constexpr,
    norm: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    block_depth: tl.constexpr,
) -> None:
    """Compute the gradients of a tile of keys and values from the queries that see them."""
    head, before = tl.program_id(1), tl.program_id(2).to(tl.int64) * height * width
    row, column, is_pixel = tile_pixels(tl.program_id(0), height, width, rows, columns)
    lane = tl.arange(0, block_depth)
    channel, is_lane = head * depth + lane, lane < depth
    channels = heads * depth
    pixel = row * width + column
    mask = is_pixel[:, None] & is_lane[None, :]
    value = load_pixels(v + before * v_pitch, pixel, v_pitch, channel, mask)
    key = tl.zeros(mask.shape, tl.float32)
    if has_product or has_rk:
        key = load_pixels(k + before * k_pitch, pixel, k_pitch, channel, mask)
    query = tl.zeros(mask.shape, tl.float32)
    value_total = tl.zeros(mask.shape, tl.float32)
    key_total = tl.zeros(mask.shape, tl.float32)
    for tap in range(kernel_size * kernel_size):
        other, inside = neighbour(row, column, height, width, tap, dilation, kernel_size, -1)
        mask = inside[:, None] & is_lane[None, :]
        theirs = load_pixels(grad + before * channels, other, channels, channel, mask)
        if has_product or has_qr:
            query = load_pixels(q + before * q_pitch, other, q_pitch, channel, mask)
        logit, _, key_row = tap_logit(
            query,
            key,
            qr,
            rk,
            bias,
            tap,
            head,
            heads,
            depth,
            scale,
            has_product,
            has_qr,
            has_rk,
            has_bias,
        )
        a, b, c, d = load_statistics(statistics, before, other, inside, head, heads, norm)
        weight = tl.where(inside, tap_weight(logit, a, b, norm), 0.0)
        value_total += weight[:, None] * theirs
        if has_grad:
            slope = scale * logit_grad(weight, tl.sum(theirs * value, 1), b, c, d, norm)
            slope = tl.where(inside, slope, 0.0)
            if has_product:
                key_total += slope[:, None] * query
            if has_rk:
                key_total += slope[:, None] * key_row[None, :]
    index = before * result_pitch + pixel[:, None] * result_pitch + channel[None, :]
    mask = is_pixel[:, None] & is_lane[None, :]
    tl.store(dv + index, value_total.to(dv.dtype.element_ty), mask=mask)
    if has_grad:
        tl.store(dk + index, key_total.to(dk.dtype.element_ty), mask=mask)


@triton.jit
def _table_grad(
    dqr: tl.tensor,
    drk: tl.tensor,
    statistics: tl.tensor,
    grad: tl.tensor,
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    qr: tl.tensor,
    rk: tl.tensor,
    bias: tl.tensor,
    pixels: tl.tensor,
    length: tl.tensor,
    q_pitch: tl.tensor,
    k_pitch: tl.tensor,
    v_pitch: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    heads: tl.tensor,
    depth: tl.tensor,
    dilation: tl.tensor,
    scale: tl.tensor,
    block_taps: tl.constexpr,
    kernel_size: tl.constexpr,
    has_product: tl.constexpr,
    has_qr: tl.constexpr,
    has_rk: tl.constexpr,
    has_bias: tl.constexpr,
    norm: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    block_depth: tl.constexpr,
) -> None:
    """Sum the gradients of the tables' parts of one head over ``length`` pixels of all images.

    A program has one row of taps: what it reads of the pixels serves all of them.
    """
    part, head, tap_row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    lane, tap_column = tl.arange(0, block_depth), tl.arange(0, block_taps)
    channel, is_lane = head * depth + lane, lane < depth
    channels = heads * depth
    start = part * length
    before = start.to(tl.int64)
    query_total = tl.zeros((block_taps, block_depth), tl.float32)
    key_total = tl.zeros((block_taps, block_depth), tl.float32)
    for offset in range(0, length, rows * columns):
        local = offset + tl.arange(0, rows * columns)
        is_pixel = start + local < pixels
        position = (start + local) % (height * width)
        row, column = position // width, position % width
        pixel_mask = is_pixel[:, None] & is_lane[None, :]
        query = tl.zeros(pixel_mask.shape, tl.float32)
        if has_product or has_qr:
            query = load_pixels(q + before * q_pitch, local, q_pitch, channel, pixel_mask)
        mine = load_pixels(grad + before * channels, local, channels, channel, pixel_mask)
        a, b, c, d = load_statistics(statistics, before, local, is_pixel, head, heads, norm)
        for tap_place in range(kernel_size):
            tap = tap_row * kernel_size + tap_place
            other, inside = neighbour(row, column, height, width, tap, dilation, kernel_size, 1)
            other += local - position
            mask = pixel_mask & inside[:, None]
            value = load_pixels(v + before * v_pitch, other, v_pitch, channel, mask)
            key = tl.zeros(mask.shape, tl.float32)
            if has_product or has_rk:
                key = load_pixels(k + before * k_pitch, other, k_pitch, channel, mask)
            logit, _, _ = tap_logit(
                query,
                key,
                qr,
                rk,
                bias,
                tap,
                head,
                heads,
                depth,
                scale,
                has_product,
                has_qr,
                has_rk,
                has_bias,
            )
            weight = tap_weight(logit, a, b, norm)
            slope = logit_grad(weight, tl.sum(mine * value, 1), b, c, d, norm)
            slope = tl.where(is_pixel, slope, 0.0)[:, None]
            is_tap = (tap_column == tap_place)[:, None]
            if has_qr:
                query_total += tl.where(is_tap, tl.sum(slope * query, 0)[None, :], 0.0)
            if has_rk:
                key_total += tl.where(is_tap, tl.sum(slope * key, 0)[None, :], 0.0)
    taps: tl.constexpr = kernel_size * kernel_size
    tap = tap_row * kernel_size + tap_column
    index = (part * taps + tap[:, None]) * channels + channel[None, :]
    mask = (tap_column < kernel_size)[:, None] & is_lane[None, :]
    if has_qr:
        tl.store(dqr + index, scale * query_total, mask=mask)
    if has_rk:
        tl.store(drk + index, scale * key_total, mask=mask)
