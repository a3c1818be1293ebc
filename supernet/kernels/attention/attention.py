"""The public neighbourhood attention: checked at the door, then computed as `select` decides."""

from __future__ import annotations

import torch
from torch import Tensor

from supernet.kernels.attention.area import NORMS, Area
from supernet.kernels.attention.naive import neighborhood_attention_naive
from supernet.kernels.attention.operator import attention_op
from supernet.kernels.operands import check_area, check_divides, check_map
from supernet.kernels.select import formulation


def neighborhood_attention(
    values: Tensor,
    area: Area,
    *,
    queries: Tensor | None = None,
    keys: Tensor | None = None,
    query_table: Tensor | None = None,
    key_table: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Attend to the K x K neighbours of every token with any subset of the four terms.

    Zhou et al. 2023, Eq. 4 with the sliding area, d = area.dilation and offsets o as everywhere::

        s[i, o] = scale * (q_i.k_{i+o} + q_i.qr_o + k_{i+o}.rk_o) + bias_o
        y_i = sum over o of norm_o(s[i, o]) * v_{i+o}

    head by head. Taps outside the map are zero keys and values that take part in the normalisation.
    The product q.k is a term where ``area.has_product``.

    Args:
        values: Shape (B, H, W, C).
        area: Heads, kernel, dilation, scale, terms and normalisation.
        queries: Shape (B, H, W, C); for the product and the table of queries.
        keys: The same; for the product and the table of keys.
        query_table: qr, shape (K*K, C).
        key_table: rk, shape (K*K, C).
        bias: Shape (K*K, num_heads).

    Returns:
        Shape (B, H, W, C).

    Raises:
        ValueError: If shapes, dtypes or devices do not fit, or a term lacks an operand.
    """
    operands = (queries, keys, values, query_table, key_table, bias)
    _check_settings(area, values)
    _check_terms(area, queries=queries, keys=keys, query_table=query_table, key_table=key_table)
    if bias is None and query_table is None and key_table is None and not area.has_product:
        raise ValueError("Attention needs at least one term. Give a bias, a table or the product.")
    taps, channels = area.kernel_size**2, values.shape[-1]
    wanted = (*(values.shape,) * 3, *((taps, channels),) * 2, (taps, area.num_heads))
    names = ("queries", "keys", "values", "query_table", "key_table", "bias")
    for name, operand, shape in zip(names, operands, wanted, strict=True):
        if operand is not None and operand.shape != shape:
            raise ValueError(
                f"The {name} must have shape {tuple(shape)} for values {tuple(values.shape)}, "
                f"K = {area.kernel_size} and {area.num_heads} heads, got {tuple(operand.shape)}."
            )
    operands = _alike(*operands)
    if formulation(values) == "naive":
        return neighborhood_attention_naive(operands, area)
    return attention_op(*operands, *area)


def _check_settings(area: Area, values: Tensor) -> None:
    check_map(values, "values")
    check_divides(area.num_heads, values, "values")
    check_area(area.kernel_size, area.dilation)
    if area.norm not in NORMS:
        raise ValueError(f"The norm must be one of {', '.join(NORMS)}, got {area.norm!r}.")


def _check_terms(
    area: Area,
    *,
    queries: Tensor | None,
    keys: Tensor | None,
    query_table: Tensor | None,
    key_table: Tensor | None,
) -> None:
    for name, operand, table in (("queries", queries, query_table), ("keys", keys, key_table)):
        needed = area.has_product or table is not None
        if needed != (operand is not None):
            raise ValueError(
                f"The {name} are given exactly when the product or their table is a term: "
                f"product {area.has_product}, table {table is not None}, "
                f"{name} {operand is not None}."
            )


def _alike(
    queries: Tensor | None,
    keys: Tensor | None,
    values: Tensor,
    query_table: Tensor | None,
    key_table: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Cast all to the dtype of autocast where it is on; refuse several dtypes or devices."""
    others = (queries, keys, query_table, key_table, bias)
    device = values.device
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
        values = values.to(dtype)
        others = tuple(None if x is None else x.to(dtype) for x in others)  # type: ignore[assignment]
    kinds = {(x.dtype, x.device) for x in (values, *others) if x is not None}
    if len(kinds) > 1:
        found = sorted(f"{dtype} on {place}" for dtype, place in kinds)
        raise ValueError(
            f"The operands must have one dtype and device, got {', '.join(found)}. "
            "Convert them with .to()."
        )
    return others[0], others[1], values, others[2], others[3], others[4]
