"""Shifted windows as the papers write them, pair by pair: the truth for tests of the fast code."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from searchspace.mixers import WindowAttention


def windows_by_definition(
    x: Tensor, state: Mapping[str, Tensor], mixer: WindowAttention, *, is_shifted: bool
) -> Tensor:
    """Attend inside windows of a map (B, H, W, C) with every term of Zhou et al. 2023, Eq. 4.

    ``s_ij = D^-1/2 (q_i.k_j + q_i.r^k_{j-i} + r^q_{j-i}.k_j) + r^b_{j-i}``, with a softmax over the
    keys of the window; D is the channels of a head. The map is padded with zeros to whole windows
    and its windows are moved by half a window, cyclically; what only the cycle joins does not meet.
    """
    window, heads, dim = mixer.window_size, mixer.num_heads, x.shape[-1]
    height, width = x.shape[1:3]
    rows, columns = (-(-size // window) * window for size in (height, width))
    padded = F.pad(x, (0, 0, 0, columns - width, 0, rows - height))
    shift = window // 2 if is_shifted else 0
    mixed: dict[tuple[int, int], Tensor] = {}
    for top, left in product(range(0, rows, window), range(0, columns, window)):
        places = [(top + y, left + x) for y, x in product(range(window), repeat=2)]
        tokens = [padded[:, (y + shift) % rows, (x + shift) % columns] for y, x in places]
        wraps = [(y + shift >= rows, x + shift >= columns) for y, x in places]
        inputs = F.linear(torch.stack(tokens), state["in_proj.weight"], state["in_proj.bias"])
        parts = dict(zip(_parts(mixer.terms), inputs.split(dim, -1), strict=True))
        for i, place in enumerate(places):
            keys = [j for j in range(len(places)) if wraps[j] == wraps[i]]
            logits = [_logit(i, j, places, parts, state, mixer, heads) for j in keys]
            weights = torch.stack(logits).softmax(0)  # (keys, B, heads)
            values = parts["v"][keys].unflatten(-1, (heads, -1))
            y = (weights[..., None] * values).sum(0).flatten(-2)
            y = F.linear(y, state["proj.weight"], state["proj.bias"])
            mixed[(place[0] + shift) % rows, (place[1] + shift) % columns] = y
    lines = [torch.stack([mixed[y, x] for x in range(width)], 1) for y in range(height)]
    return torch.stack(lines, 1)


def _logit(
    i: int,
    j: int,
    places: list[tuple[int, int]],
    parts: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    mixer: WindowAttention,
    heads: int,
) -> Tensor:
    """Add the terms of a query and a key: (B, heads)."""
    reach = mixer.window_size - 1
    down, right = (places[j][axis] - places[i][axis] for axis in (0, 1))
    row = (down + reach) * (2 * reach + 1) + right + reach
    terms = mixer.terms.split("+")
    products = []
    if "qk" in terms:
        products.append(parts["q"][i] * parts["k"][j])
    if "qr" in terms:
        products.append(parts["q"][i] * state["table_qr"][row])
    if "rk" in terms:
        products.append(state["table_rk"][row] * parts["k"][j])
    found = state["table_bias"][row] if "bias" in terms else torch.zeros(heads).to(parts["v"])
    for product_ in products:
        split = product_.unflatten(-1, (heads, -1))
        found = found + split.sum(-1) * split.shape[-1] ** -0.5
    return found.expand(parts["v"].shape[1], heads)


def _parts(terms: str) -> str:
    split = set(terms.split("+"))
    return "q" * bool(split & {"qk", "qr"}) + "k" * bool(split & {"qk", "rk"}) + "v"
