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
from typing import Any, TypeAlias, cast

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


Rows: TypeAlias = tuple[Tensor, Tensor | None]  # weight (rows, in_features) and bias (rows,)


class SharedInProjection(nn.Module):
    """Queries and keys of a mixer of its own, and values of a layer that a block's kinds share.

    Args:
        own: The layer of all three, whose values are left out.
        blocks: Its rows of queries and keys, whichever there are, and of values.
        value: Makes the values, with its first rows.
    """

    def __init__(self, own: nn.Linear, blocks: Sequence[int], value: nn.Linear) -> None:
        super().__init__()
        self.others, self.num_values = tuple(blocks[:-1]), blocks[-1]
        self.num_others = sum(self.others)
        for name in ("weight", "bias"):
            full = getattr(own, name)
            kept = None
            if full is not None and self.num_others:
                kept = nn.Parameter(full.detach()[: self.num_others].clone())
            self.register_parameter(name, kept)
        self.value = value

    @property
    def channel_blocks(self) -> ChannelBlocks:
        """Queries and keys are blocks of rows (see `supernet.mixers.width`)."""
        return dict.fromkeys(("weight", "bias"), (0, self.others))

    def forward(self, x: Tensor) -> Tensor:
        """Project (..., in_features) to all rows, (..., num_others + num_values)."""
        return F.linear(x, *rows_of(self, (0, self.num_others + self.num_values)))


class FirstInputs(nn.Linear):
    """A layer with weights for more channels than it is given; it uses the first."""

    def forward(self, x: Tensor) -> Tensor:
        """Project (..., C), C at most ``in_features``, to (..., out_features)."""
        return F.linear(x, self.weight[:, : x.shape[-1]], self.bias)


def blocks_of_rows(name: str, *sizes: int) -> ChannelBlocks:
    """Say of a layer that its rows are several projections (see `supernet.mixers.width`)."""
    return {f"{name}.{part}": (0, sizes) for part in ("weight", "bias")}


def named_rows(name: str, weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    """Write rows as the state of a layer of this name."""
    return {f"{name}.weight": weight, **({} if bias is None else {f"{name}.bias": bias})}


def rows_of(layer: nn.Linear | SharedInProjection, *spans: tuple[int, int]) -> Rows:
    """Slice the weight and the bias, if there is one, of a layer.

    Args:
        spans: First row and number of rows, in order.
    """
    parts = [part for start, rows in _joined(spans) for part in _parts(layer, start, rows)]
    weight = _cat([_narrow(one.weight, start, rows) for one, start, rows in parts])
    if parts[0][0].bias is None:
        return weight, None
    return weight, _cat([_narrow(one.bias, start, rows) for one, start, rows in parts])


def share_projections(mixers: Mapping[str, nn.Module], place: Place) -> None:
    """Give the mixers of a block, by kind, one value and one output projection.

    A layer whose shape is another one stays its kind's own. The same parameters then stand under
    the names of several kinds, as tied weights do.
    """
    value = new_linear(place.dim, place.dim, bias=place.qkv_bias)
    output = new_linear(place.dim, place.dim)
    for kind, mixer in mixers.items():
        if kind not in LAYERS:  # it has no projections
            continue
        enter, leave = (cast(nn.Linear, mixer.get_submodule(name)) for name in LAYERS[kind])
        if leave.in_features > place.dim:
            continue
        if leave.in_features < place.dim:
            leave = FirstInputs(place.dim, place.dim)
            mixer.set_submodule(LAYERS[kind][1], leave)
        _tie(leave, output)
        path, _, name = LAYERS[kind][0].rpartition(".")
        owner: Any = mixer.get_submodule(path)
        if name == "in_proj":
            _, blocks = owner.channel_blocks["in_proj.weight"]
            owner.in_proj = SharedInProjection(enter, blocks, value)
        else:
            _tie(enter, value)


def _tie(layer: nn.Linear, shared: nn.Linear) -> None:
    layer.weight = shared.weight
    if layer.bias is not None:
        layer.bias = shared.bias


def _parts(layer: Any, start: int, rows: int) -> list[tuple[Any, int, int]]:
    """Say which layers have the rows of a span, and from which row on."""
    if not isinstance(layer, SharedInProjection):
        return [(layer, start, rows)]
    own = max(min(layer.num_others - start, rows), 0)
    parts: list[tuple[Any, int, int]] = [(layer, start, own)] if own else []
    if own < rows:
        parts.append((layer.value, max(start - layer.num_others, 0), rows - own))
    return parts


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
