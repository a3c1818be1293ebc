"""The value and output projections that all mixers of a block can share.

A mixer projects its input to values, moves them between tokens and projects what comes out. With
shared projections the first and the last are one weight for all kinds of a block; `LAYERS` says
which layers of each kind these are. Queries, keys, generators, tables and filters stay its own.

* Attention kinds have biases, one for all of them (for values where the family has them);
  convolution kinds have none, and a batch norm behind either layer, which stays each kind's own:
  its statistics are those of what that kind filters.
* Attention kinds read a normed map, convolution kinds the map itself. With ``sr_ratio`` above 1
  global attention makes values of its reduced map, by the same weights as with 1.
* ELSA with fewer channels of values has the first of them, with more than ``dim`` its own layers.
* Shared weights start as attention's do, N(0, .02) cut: the norms behind those of convolutions
  undo the scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.mixers.sharing import Place, new_linear
from supernet.mixers.width import ChannelBlocks

_ATTENTION = ("attention.in_proj", "attention.proj")  # the last rows of in_proj make the values
_POINTWISE = ("pointwise.conv_in", "pointwise.conv_out")
_FILTERED = ("value", "proj")
LAYERS = {
    "window_attention": _ATTENTION,
    "neighborhood_attention": _ATTENTION,
    "local_mlp": _FILTERED,
    "depthwise_conv": _POINTWISE,
    "dynamic_depthwise_conv": _POINTWISE,
    "inhomogeneous_depthwise_conv": _POINTWISE,
    "involution": _POINTWISE,
    "decoupled_dynamic_filter": _FILTERED,
    "outlook_attention": _FILTERED,
    "elsa": ("in_proj", "proj"),
    "global_attention": ("in_proj", "proj"),
}


class InProjection(nn.Linear):
    """Queries, keys and values as one layer; the values are the last rows.

    Args:
        in_features: Channels of the input.
        others: Rows of queries and of keys, whichever there are.
        num_values: Rows of values.
        bias: Whether there are biases.
    """

    def __init__(
        self, in_features: int, others: Sequence[int], num_values: int, *, bias: bool
    ) -> None:
        super().__init__(in_features, sum(others) + num_values, bias=bias)
        self.others, self.num_others, self.num_values = tuple(others), sum(others), num_values
        self.value: nn.Linear | None = None

    @property
    def channel_blocks(self) -> ChannelBlocks:
        """Queries, keys and values are blocks of rows (see `supernet.mixers.width`)."""
        values = () if self.value is not None else (self.num_values,)
        return dict.fromkeys(("weight", "bias"), (0, (*self.others, *values)))

    def forward(self, x: Tensor) -> Tensor:
        """Project (..., in_features) to all rows, (..., num_others + num_values)."""
        return F.linear(x, *self.rows((0, self.out_features)))

    def rows(self, *spans: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """Slice the weight (rows, in_features) and the bias (rows,), if there is one.

        Args:
            spans: First row and number of rows, in order.
        """
        parts = [part for start, rows in _joined(spans) for part in self._parts(start, rows)]
        weight = _cat([_narrow(layer.weight, start, rows) for layer, start, rows in parts])
        if parts[0][0].bias is None:
            return weight, None
        return weight, _cat([_narrow(layer.bias, start, rows) for layer, start, rows in parts])

    def use_values(self, value: nn.Linear) -> None:
        """Make the values with the first rows of another layer from now on."""
        self.value = value
        for name in ("weight", "bias"):
            full = getattr(self, name)
            kept = None
            if full is not None and self.num_others:
                kept = nn.Parameter(full.detach()[: self.num_others].clone())
            self.register_parameter(name, kept)

    def _parts(self, start: int, rows: int) -> list[tuple[nn.Linear, int, int]]:
        """Say which layers have the rows of a span, and from which row on."""
        if self.value is None:
            return [(self, start, rows)]
        own = max(min(self.num_others - start, rows), 0)
        parts: list[tuple[nn.Linear, int, int]] = [(self, start, own)] if own else []
        if own < rows:
            parts.append((self.value, max(start - self.num_others, 0), rows - own))
        return parts


def share_projections(mixers: Mapping[str, nn.Module], place: Place) -> None:
    """Give the mixers of a block, by kind, one value and one output projection.

    A layer whose shape is another one stays its kind's own. The same parameters then stand under
    the names of several kinds, as tied weights do.
    """
    value = new_linear(place.dim, place.dim, bias=place.qkv_bias)
    output = new_linear(place.dim, place.dim)
    for kind, mixer in mixers.items():
        enter, leave = (cast(nn.Linear, mixer.get_submodule(name)) for name in LAYERS[kind])
        if leave.in_features > place.dim:
            continue
        leave.in_features = place.dim
        _tie(leave, output)
        if isinstance(enter, InProjection):
            enter.use_values(value)
        else:
            _tie(enter, value)


def _tie(layer: nn.Linear, shared: nn.Linear) -> None:
    layer.weight = shared.weight
    if layer.bias is not None:
        layer.bias = shared.bias


def _joined(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join spans that follow each other, so that their rows are one slice."""
    found: list[tuple[int, int]] = []
    for start, rows in spans:
        if found and sum(found[-1]) == start:
            start, rows = found[-1][0], found.pop()[1] + rows
        found.append((start, rows))
    return found


def _narrow(tensor: Tensor, start: int, rows: int) -> Tensor:
    """Slice rows; all of them are the tensor itself."""
    return tensor if rows == len(tensor) else tensor[start : start + rows]


def _cat(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tuple(tensors))
