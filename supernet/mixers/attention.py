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

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from searchspace.mixers import NeighborhoodAttention, WindowAttention, split_terms
from supernet.kernels.layout import split_channels
from supernet.mixers.convolutional_attention import PreConvolution, new_post_kernel
from supernet.mixers.projections import InProjection
from supernet.mixers.sharing import (
    Place,
    centre_taps,
    head_rows,
    new_linear,
    new_table,
    start_linear,
    state_of,
)

AttentionSpec = WindowAttention | NeighborhoodAttention


class AttentionWeights(nn.Module):
    """The shared weights of all attention settings that a block offers.

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
        self.parts = _parts(terms)
        self.in_proj = start_linear(
            InProjection(dim, [dim] * (len(self.parts) - 1), dim, bias=place.qkv_bias)
        )
        self.proj = new_linear(dim, dim)
        self.table_qr = new_table(taps**2, dim) if "qr" in terms else None
        self.table_rk = new_table(taps**2, dim) if "rk" in terms else None
        self.table_static = new_table(taps**2, heads, dim) if "static" in terms else None
        self.table_bias = new_table(taps**2, heads) if "bias" in terms else None
        convs = {option.conv for option in options}
        self.post_kernel = new_post_kernel(heads) if "post" in convs else None
        self.pre_convs = nn.ModuleDict(
            {conv: PreConvolution(conv, dim) for conv in sorted(convs - {"none", "post"})}
        )

    def tables(self, option: AttentionSpec, taps: int) -> dict[str, Tensor]:
        """Slice the tables of the setting.

        Returns:
            qr and rk (taps^2, dim), static (taps^2, num_heads, dim) and bias (taps^2, num_heads).
        """
        found: dict[str, Tensor] = {}
        for term in split_terms(option.terms):
            if term == "qk":
                continue
            table = centre_taps(getattr(self, f"table_{term}"), taps)
            has_heads = term in ("static", "bias")
            found[term] = head_rows(table, option.num_heads, dim=1) if has_heads else table
        return found

    def post_kernel_of(self, option: AttentionSpec) -> Tensor | None:
        """Slice the kernels (9, num_heads) that convolve the setting's qk logits, if it has any."""
        if option.conv != "post" or self.post_kernel is None:
            return None
        return head_rows(self.post_kernel, option.num_heads, dim=1)

    def convolve(self, x: Tensor, option: AttentionSpec) -> Tensor | None:
        """Compute the map (B, H, W, C) that q and k are made of, if it is not ``x`` itself."""
        return self.pre_convs[option.conv](x) if option.conv in self.pre_convs else None

    def project_in(
        self, x: Tensor, option: AttentionSpec, convolved: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Project (..., C) to what the setting needs of ``q``, ``k`` and ``v``, unscaled.

        With ``convolved``, shaped like ``x``, queries and keys are made of that instead.
        """
        parts = _parts(split_terms(option.terms))
        weight, bias = self._in_proj(parts)
        if convolved is None:
            tokens = split_channels(F.linear(x, weight, bias), self.dim)
            return dict(zip(parts, tokens, strict=True))
        rows = [len(weight) - self.dim, self.dim]
        weights = weight.split(rows)
        biases = (None, None) if bias is None else bias.split(rows)
        queries_keys = F.linear(convolved, weights[0], biases[0]).split(self.dim, -1)
        values = F.linear(x, weights[1], biases[1])
        return dict(zip(parts, (*queries_keys, values), strict=True))

    def select(self, option: AttentionSpec, taps: int) -> dict[str, Tensor]:
        """Return the state of the module that has only this setting."""
        weight, bias = self._in_proj(_parts(split_terms(option.terms)))
        tables = {f"table_{term}": table for term, table in self.tables(option, taps).items()}
        biases = {} if bias is None else {"in_proj.bias": bias}
        convs = {}
        if (kernel := self.post_kernel_of(option)) is not None:
            convs["post_kernel"] = kernel
        elif option.conv in self.pre_convs:
            convs = state_of(self.pre_convs[option.conv], f"pre_convs.{option.conv}")
        return {
            "in_proj.weight": weight,
            **biases,
            **state_of(self.proj, "proj"),
            **tables,
            **convs,
        }

    def _in_proj(self, parts: tuple[str, ...]) -> tuple[Tensor, Tensor | None]:
        return self.in_proj.rows(*((self.parts.index(part) * self.dim, self.dim) for part in parts))


def _parts(terms: Sequence[str] | set[str]) -> tuple[str, ...]:
    needs_q, needs_k = {"qk", "qr"} & set(terms), {"qk", "rk"} & set(terms)
    return tuple("q" * bool(needs_q) + "k" * bool(needs_k) + "v")
