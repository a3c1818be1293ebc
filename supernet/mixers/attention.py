"""What window and neighbourhood attention share: projections and tables.

The family of Zhou et al. 2023, Eq. 4: logits are any sum of ``qk``, ``qr``, ``rk`` and ``bias``.
The papers leave some details open; these are our choices, for both areas:

* The scale head_dim^-0.5 applies to every dot product (qk, qr and rk), never to the bias.
* The tables r^k and r^q have one vector of ``dim`` channels per offset, that is, each head has its
  own; the bias has one number per offset and head. Offsets are key minus query.
* `supernet.mixers.convolutional_attention` tells about ``static`` terms and convolved attention.
* A projection that no term needs (q for ``bias`` alone, say) does not exist.
* ``filter_norm`` is filter normalisation without learned parameters, with the fixed gain
  sqrt(2) / sqrt(taps) of the spatial branch of DDF (Zhou et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

from searchspace.mixers import NeighborhoodAttention, WindowAttention, split_terms
from supernet.kernels import split_channels
from supernet.mixers.convolutional_attention import PreConvolution, new_post_kernel
from supernet.mixers.projections import Rows, blocks_of_rows, named_rows, rows_of
from supernet.mixers.sharing import (
    Place,
    centre_taps,
    head_rows,
    new_linear,
    new_table,
    state_of,
)

AttentionSpec: TypeAlias = WindowAttention | NeighborhoodAttention
Parts: TypeAlias = tuple[str, ...]  # of q, k and v, in this order
Tokens: TypeAlias = dict[str, Tensor]
Tables: TypeAlias = dict[str, Tensor]


class AttentionWeights(nn.Module):
    """The shared weights of all attention settings that a block offers.

    Queries and keys have a layer of their own where all settings make them of a convolved map.

    Args:
        options: The settings; there is one slice of every weight for each of them.
        place: Where the mixer stands.
        taps: Side of the largest table of offsets: 2W-1 for windows, K for neighbourhoods.
    """

    def __init__(self, options: Sequence[AttentionSpec], *, place: Place, taps: int) -> None:
        super().__init__()
        dim = self.dim = place.dim
        terms = {term for option in options for term in split_terms(option.terms)}
        heads = max(option.num_heads for option in options)
        convs = {option.conv for option in options}
        self.parts = _parts(terms)
        self.query_key = None
        rows = (dim,) * len(self.parts)
        self.channel_blocks = {}
        if not convs & {"none", "post"}:
            self.query_key = new_linear(dim, sum(rows[1:]), bias=place.qkv_bias)
            self.channel_blocks, rows = blocks_of_rows("query_key", *rows[1:]), rows[:1]
        self.in_proj = new_linear(dim, sum(rows), bias=place.qkv_bias)
        self.channel_blocks |= blocks_of_rows("in_proj", *rows)
        self.proj = new_linear(dim, dim)
        self.table_qr = new_table(taps**2, dim) if "qr" in terms else None
        self.table_rk = new_table(taps**2, dim) if "rk" in terms else None
        self.table_static = new_table(taps**2, heads, dim) if "static" in terms else None
        self.table_bias = new_table(taps**2, heads) if "bias" in terms else None
        self.post_kernel = new_post_kernel(heads) if "post" in convs else None
        self.pre_convs = nn.ModuleDict(
            {conv: PreConvolution(conv, dim) for conv in sorted(convs - {"none", "post"})}
        )

    def forward(
        self,
        x: Tensor,
        option: AttentionSpec,
        attend: Callable[[Tokens, Tables], Tensor],
        *,
        taps: int,
        convolved: Tensor | None = None,
    ) -> Tensor:
        """Project tokens in, let them attend, and project what comes out.

        Args:
            x: Tokens (..., C).
            option: The setting.
            attend: Computes attention (..., C) from what `project_in` and `tables` return.
            taps: Side of the setting's tables.
            convolved: What queries and keys are made of, shaped like ``x``, if it is not ``x``.
        """
        tokens = self.project_in(x, option, convolved)
        return self.proj(attend(tokens, self.tables(option, taps)))

    def tables(self, option: AttentionSpec, taps: int) -> Tables:
        """Slice the tables of the setting.

        Returns:
            qr and rk (taps^2, dim), static (taps^2, num_heads, dim) and bias (taps^2, num_heads);
            ``post`` is the kernels (9, num_heads) that convolve the qk logits.
        """
        found: Tables = {}
        for term in split_terms(option.terms):
            if term == "qk":
                continue
            table = centre_taps(getattr(self, f"table_{term}"), taps)
            has_heads = term in ("static", "bias")
            found[term] = head_rows(table, option.num_heads, dim=1) if has_heads else table
        if option.conv == "post" and self.post_kernel is not None:
            found["post"] = head_rows(self.post_kernel, option.num_heads, dim=1)
        return found

    def convolve(self, x: Tensor, option: AttentionSpec) -> Tensor | None:
        """Compute the map (B, H, W, C) that q and k are made of, if it is not ``x`` itself."""
        return self.pre_convs[option.conv](x) if option.conv in self.pre_convs else None

    def project_in(
        self, x: Tensor, option: AttentionSpec, convolved: Tensor | None = None
    ) -> Tokens:
        """Project (..., C) to what the setting needs of ``q``, ``k`` and ``v``, unscaled.

        With ``convolved``, shaped like ``x``, queries and keys are made of that instead.
        """
        parts = _parts(split_terms(option.terms))
        if convolved is None:
            tokens = split_channels(self._project(x, parts), self.dim)
            return dict(zip(parts, tokens, strict=True))
        queries_keys = self._project(convolved, parts[:-1]).split(self.dim, -1)
        return dict(zip(parts, (*queries_keys, self._project(x, parts[-1:])), strict=True))

    def select(self, option: AttentionSpec, taps: int) -> dict[str, Tensor]:
        """Return the state of the module that has only this setting."""
        parts = _parts(split_terms(option.terms))
        state = state_of(self.proj, "proj")
        for term, table in self.tables(option, taps).items():
            state["post_kernel" if term == "post" else f"table_{term}"] = table
        if option.conv not in self.pre_convs:
            return state | named_rows("in_proj", *self._rows(parts))
        return {
            **state,
            **named_rows("query_key", *self._rows(parts[:-1])),
            **named_rows("in_proj", *self._rows(parts[-1:])),
            **state_of(self.pre_convs[option.conv], f"pre_convs.{option.conv}"),
        }

    def _project(self, x: Tensor, parts: Parts) -> Tensor:
        layer, held = self._layer_of(parts)
        return layer(x) if parts == held else F.linear(x, *self._rows(parts))

    def _rows(self, parts: Parts) -> Rows:
        layer, held = self._layer_of(parts)
        return rows_of(layer, *((held.index(part) * self.dim, self.dim) for part in parts))

    def _layer_of(self, parts: Parts) -> tuple[Any, Parts]:
        """Return the layer that makes these parts, and all that it makes."""
        if self.query_key is None:
            return self.in_proj, self.parts
        is_value = parts == ("v",)
        return (self.in_proj, parts) if is_value else (self.query_key, self.parts[:-1])


def _parts(terms: Sequence[str] | set[str]) -> Parts:
    needs_q, needs_k = {"qk", "qr"} & set(terms), {"qk", "rk"} & set(terms)
    return tuple("q" * bool(needs_q) + "k" * bool(needs_k) + "v")
