"""AdamW on used elements in C: one pass over memory, float32 and float64 on a CPU."""

from __future__ import annotations

import functools
import math
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from supernet.kernels.adamw.part import Part, Rule
from supernet.kernels.library import load

# Of the tables of bias corrections; betas that reach beyond are left to torch.
MOST_ENTRIES = 1 << 20
# At the beginning of a row; sizes follow, then the strides of parameter, gradient and the rest.
_NUM_ADDRESSES = 6


def serves(parts: Sequence[Part], rule: Rule) -> bool:
    """Tell whether the tables reach far enough, and the blocks have few enough axes."""
    library = load(parts[0].parameter.dtype)
    if library is None or not (_has_table(rule.beta1) and _has_table(rule.beta2)):
        return False
    most = library.adamw_axes()
    return all(_fits(part, most) for part in parts)


def update(parts: Sequence[Part], rule: Rule) -> None:
    """Take a step on all parts by one call."""
    dtype = parts[0].parameter.dtype
    library = load(dtype)
    assert library is not None
    axes, rows = library.adamw_axes(), array("q")
    for part in parts:
        rows.extend(_row(part, axes))
    rises, spreads = _rises(rule.beta1, dtype), _spreads(rule.beta2, dtype)
    library.adamw_update(
        rows.buffer_info()[0],
        rises.data_ptr(),
        spreads.data_ptr(),
        len(parts),
        rises.numel(),
        spreads.numel(),
        *rule,
        torch.get_num_threads(),
    )


def _fits(part: Part, most_axes: int) -> bool:
    dtype = part.parameter.dtype
    tensors = (part.gradient, part.mask, part.mean, part.square)
    return (
        part.parameter.dim() <= most_axes
        and part.step.dtype is torch.float32
        and all(tensor.dtype is dtype for tensor in tensors)
    )


def _row(part: Part, axes: int) -> list[int]:
    """Describe a part as adamw.c reads it: addresses, sizes, strides."""
    if part.memory is None:
        return _new_row(part, axes)
    row: list[int] | None = part.memory.get("row")
    if row is None:
        row = part.memory["row"] = _new_row(part, axes)
    else:
        # The gradient is another tensor in each step.
        row[1] = part.gradient.data_ptr()
        steps = part.gradient.stride()
        end = _NUM_ADDRESSES + 3 * axes
        row[end - len(steps) : end] = steps
    return row


def _new_row(part: Part, axes: int) -> list[int]:
    full = (part.parameter, part.gradient, part.mean, part.square)
    shared = (part.mask, part.step)
    shape = part.parameter.shape
    missing = axes - len(shape)
    row = [tensor.data_ptr() for tensor in (*full, *shared)]
    row += [1] * missing + list(shape)
    for tensor in full:
        row += [0] * missing + list(tensor.stride())
    for tensor in shared:
        steps = [
            0 if size == 1 else step
            for size, step in zip(tensor.shape, tensor.stride(), strict=True)
        ]
        row += [0] * (axes - len(steps)) + steps
    return row


def _last(beta: float) -> int:
    """Return after how many steps float64 cannot tell beta^n from nothing beside 1."""
    return 1 if beta <= 0 else math.ceil(math.log(2.0**-54) / math.log(beta))


def _has_table(beta: float) -> bool:
    return beta < 1 and _last(beta) < MOST_ENTRIES


def _powers(beta: float) -> Tensor:
    """Return beta^n for n from 0 on; the first, which no step uses, as if n were 1."""
    return beta ** torch.arange(_last(beta) + 1, dtype=torch.float64).clamp_min(1)


@functools.cache
def _rises(beta1: float, dtype: torch.dtype) -> Tensor:
    """Return what corrects the mean after n steps: 1 / (1 - beta1^n)."""
    return (1 / (1 - _powers(beta1))).to(dtype)


@functools.cache
def _spreads(beta2: float, dtype: torch.dtype) -> Tensor:
    """Return what corrects the root of the squares after n steps: 1 / sqrt(1 - beta2^n)."""
    return (1 - _powers(beta2)).rsqrt().to(dtype)
