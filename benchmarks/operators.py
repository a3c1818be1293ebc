"""The neighbourhood operators at a shape, for benchmarks: operands, rivals, work to be done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import rivals
from benchmarks.rivals import Rival, Setting
from benchmarks.timing import leaves
from supernet.kernels import (
    Area,
    aggregate,
    depthwise_conv,
    hadamard_conv,
    neighborhood_attention,
    neighborhood_logits,
)
from supernet.kernels.aggregation.operators import aggregate_op


@dataclass(frozen=True, kw_only=True, slots=True)
class Operator:
    """An operator at a shape.

    Attributes:
        operands: The shapes of its operands.
        function: Computes it in the formulation that is forced.
        counted: The same in a form that torch's FLOP counter knows, where ``function`` is not.
        formulations: Ours to time; None for those of the device.
        rivals: Others to time.
    """

    operands: tuple[tuple[int, ...], ...]
    function: Callable[..., Tensor]
    counted: Callable[..., Tensor] | None = None
    formulations: tuple[str, ...] | None = None
    rivals: tuple[Rival, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a pass must do: bytes to move and operations."""

    bytes: int
    flops: int

    def limit_seconds(self, copy_bytes: float, flops: float) -> float:
        """Return the roofline time for rates a second."""
        return max(self.bytes / copy_bytes, self.flops / flops)


def count_work(operator: Operator, dtype: torch.dtype) -> dict[str, Work]:
    """Count bytes and operations of both passes; nothing is computed."""
    inputs = leaves(*operator.operands, device=torch.device("meta"), dtype=dtype)
    function = operator.counted or operator.function
    with FlopCounterMode(display=False) as forward:
        y = function(*inputs)
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(y, inputs, torch.empty_like(y))
    read = sum(x.nbytes for x in inputs)
    return {
        "forward": Work(bytes=read + y.nbytes, flops=forward.get_total_flops()),
        "backward": Work(bytes=2 * read + y.nbytes, flops=backward.get_total_flops()),
    }


def aggregate_at(batch: int, channels: int, setting: Setting) -> Operator:
    """Aggregation with filters of each position and head."""
    size = setting.kernel_size
    map_ = (batch, setting.side, setting.side)
    return Operator(
        operands=((*map_, setting.heads, size**2), (*map_, channels)),
        function=lambda filters, values: aggregate(filters, values, size),
    )


def depthwise_conv_at(batch: int, channels: int, setting: Setting) -> Operator:
    """Aggregation without filters: a depth-wise convolution."""
    size = setting.kernel_size

    def counted(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # `depthwise_conv` itself is `F.conv2d` on the device of shapes without values.
        multiplier = weight.flatten(-2).transpose(-2, -1)
        return aggregate_op(None, values, size, 1, multiplier, bias, False)

    return Operator(
        operands=(
            (batch, setting.side, setting.side, channels),
            (channels, size, size),
            (channels,),
        ),
        function=depthwise_conv,
        counted=counted,
        rivals=(rivals.conv2d_channels_last, rivals.conv2d_channels_first),
    )


def logits_at(batch: int, channels: int, setting: Setting) -> Operator:
    """Products of queries with the keys of their neighbours."""
    map_ = (batch, setting.side, setting.side, channels)
    area = (setting.heads, setting.kernel_size)
    return Operator(operands=(map_, map_), function=lambda q, k: neighborhood_logits(q, k, *area))


def attention_at(batch: int, channels: int, setting: Setting) -> Operator:
    """Neighbourhood attention with the product alone."""
    map_ = (batch, setting.side, setting.side, channels)
    area = _area(channels, setting)
    return Operator(
        operands=(map_,) * 3,
        function=lambda q, k, v: neighborhood_attention(v, area, queries=q, keys=k),
        rivals=(rivals.natten, rivals.flex_attention, rivals.dense_sdpa),
    )


def four_terms_at(batch: int, channels: int, setting: Setting) -> Operator:
    """Neighbourhood attention with all four terms."""
    map_, taps = (batch, setting.side, setting.side, channels), setting.kernel_size**2
    area = _area(channels, setting)

    def function(
        q: Tensor, k: Tensor, v: Tensor, query_table: Tensor, key_table: Tensor, bias: Tensor
    ) -> Tensor:
        tables = {"query_table": query_table, "key_table": key_table, "bias": bias}
        return neighborhood_attention(v, area, queries=q, keys=k, **tables)

    tables = ((taps, channels), (taps, channels), (taps, setting.heads))
    return Operator(operands=(*(map_,) * 3, *tables), function=function)


def hadamard_at(batch: int, channels: int, setting: Setting) -> Operator:
    """The convolution of Hadamard logits, in ELSA's groups of 4 channels."""
    map_, taps = (batch, setting.side, setting.side, channels), setting.kernel_size**2
    return Operator(operands=(map_, map_, (taps, channels, 4), (channels,)), function=hadamard_conv)


def windows_at(batch: int, channels: int, setting: Setting) -> Operator:
    """Attention in shifted windows with a bias, by explicit products; without projections."""
    map_ = (batch, setting.side, setting.side, channels)
    table = ((2 * setting.kernel_size - 1) ** 2, setting.heads)
    return Operator(
        operands=(*(map_,) * 3, table),
        function=lambda q, k, v, table: rivals.attend_in_windows(
            q, k, v, table, setting, rivals.attend_by_products
        ),
        formulations=("torch",),
        rivals=(rivals.window_sdpa, rivals.window_sdpa_five_axes),
    )


def _area(channels: int, setting: Setting) -> Area:
    scale = (channels // setting.heads) ** -0.5
    return Area(setting.heads, setting.kernel_size, 1, scale, True, "softmax")


OPERATORS: dict[str, Callable[[int, int, Setting], Operator]] = {
    "aggregate": aggregate_at,
    "depthwise_conv": depthwise_conv_at,
    "neighborhood_logits": logits_at,
    "hadamard_conv": hadamard_at,
    "neighborhood_attention": attention_at,
    "neighborhood_attention_four_terms": four_terms_at,
    "window_attention": windows_at,
}
