"""Attention over the K x K neighbours of every token, with any subset of the four terms.

Zhou et al. 2023, Eq. 4 with the sliding area; `supernet.mixers.attention` lists what the papers
leave open. Border rule: taps outside the map are zero keys and values that take part in the
normalisation (their logits are the q.r term and the bias), as in the published ELSA and Outlooker
code; it is what an unfold of zero-padded maps gives.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from searchspace.mixers import NeighborhoodAttention, split_terms
from supernet.kernels import Area, neighborhood_attention
from supernet.mixers.attention import AttentionWeights
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
        tokens = self.attention.project_in(x, mixer)
        tables = self.attention.tables(mixer, mixer.kernel_size)
        area = Area(
            num_heads=mixer.num_heads,
            kernel_size=mixer.kernel_size,
            dilation=1,
            scale=(x.shape[-1] // mixer.num_heads) ** -0.5,
            has_product="qk" in split_terms(mixer.terms),
            norm=mixer.norm,
        )
        y = neighborhood_attention(
            tokens["v"],
            area,
            queries=tokens.get("q"),
            keys=tokens.get("k"),
            query_table=tables.get("qr"),
            key_table=tables.get("rk"),
            bias=tables.get("bias"),
        )
        return self.attention.proj(y)
