"""Attention over the K x K neighbours of every token, with any subset of the four terms.

Zhou et al. 2023, Eq. 4 with the sliding area; `supernet.mixers.attention` lists what the papers
leave open. Border rule: taps outside the map are zero keys and values that take part in the
normalisation (their logits are the q.r term and the bias), as in the published ELSA and Outlooker
code; it is what an unfold of zero-padded maps gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from searchspace.mixers import NeighborhoodAttention, split_terms
from supernet.kernels import (
    Area,
    aggregate,
    neighborhood_attention,
    neighborhood_logits,
    normalise,
    skew,
)
from supernet.mixers.attention import AttentionWeights, Tables, Tokens
from supernet.mixers.convolutional_attention import convolve_logits, respond
from supernet.mixers.sharing import Place


class NeighborhoodAttentionMixer(nn.Module):
    """Neighbourhood attention of every setting in ``options``, weights shared.

    Args:
        options: The settings that the block offers.
        place: Where the mixer stands; any map size works.
    """

    def __init__(self, options: Sequence[NeighborhoodAttention], *, place: Place) -> None:
        super().__init__()
        largest = max(option.kernel_size for option in options)
        self.attention = AttentionWeights(options, place=place, taps=largest)

    def select(self, mixer: NeighborhoodAttention) -> dict[str, Tensor]:
        """Return the state of the module that has only this setting."""
        state = self.attention.select(mixer, mixer.kernel_size)
        return {f"attention.{name}": value for name, value in state.items()}

    def forward(self, x: Tensor, mixer: NeighborhoodAttention) -> Tensor:
        """Mix the tokens of a map of shape (B, H, W, C); the shape stays."""
        return self.attention(
            x,
            mixer,
            partial(_attend, x, mixer),
            taps=mixer.kernel_size,
            convolved=self.attention.convolve(x, mixer),
        )


def _attend(x: Tensor, mixer: NeighborhoodAttention, tokens: Tokens, tables: Tables) -> Tensor:
    """Attend with the fused operator, or with logits made one by one where it lacks a term."""
    if "static" in tables or "post" in tables:
        return _attend_by_terms(x, mixer, tokens, tables)
    area = Area(
        num_heads=mixer.num_heads,
        kernel_size=mixer.kernel_size,
        dilation=1,
        scale=(x.shape[-1] // mixer.num_heads) ** -0.5,
        has_product="qk" in split_terms(mixer.terms),
        norm=mixer.norm,
    )
    return neighborhood_attention(
        tokens["v"],
        area,
        queries=tokens.get("q"),
        keys=tokens.get("k"),
        query_table=tables.get("qr"),
        key_table=tables.get("rk"),
        bias=tables.get("bias"),
    )


def _attend_by_terms(
    x: Tensor, mixer: NeighborhoodAttention, tokens: Tokens, tables: Tables
) -> Tensor:
    heads = (mixer.num_heads, -1)
    scale = (x.shape[-1] // mixer.num_heads) ** -0.5
    terms: list[Tensor] = []  # each (B, H, W, N, taps), the bias (N, taps)
    if "qk" in split_terms(mixer.terms):
        q, k = (tokens[part].contiguous() for part in "qk")
        logits = neighborhood_logits(q * scale, k, mixer.num_heads, mixer.kernel_size)
        terms.append(convolve_logits(logits, tables["post"]) if "post" in tables else logits)
    if "qr" in tables:
        terms.append(_dot(tokens["q"].unflatten(-1, heads) * scale, tables["qr"], heads))
    if "rk" in tables:
        response = _dot(tokens["k"].unflatten(-1, heads) * scale, tables["rk"], heads)
        terms.append(skew(response, mixer.kernel_size))
    if "static" in tables:
        terms.append(respond(x, tables["static"]))
    if "bias" in tables:
        terms.append(tables["bias"].t())
    weights = normalise(sum(terms[1:], start=terms[0]), mixer.norm)
    return aggregate(weights, tokens["v"].contiguous(), mixer.kernel_size)


def _dot(x: Tensor, table: Tensor, heads: tuple[int, int]) -> Tensor:
    """Multiply tokens (B, H, W, N, D) with each tap's vector (taps, N * D) of their head."""
    return torch.einsum("bhwnd,tnd->bhwnt", x, table.unflatten(-1, heads))
