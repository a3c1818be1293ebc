"""The macro-architectures as values: what surrounds the blocks of a network, and their map sizes.

* ``swin`` (Liu et al. 2021): a patch embedding with layer norm, stages joined by patch merging
  (2 x 2 tokens joined, normed, projected), a final layer norm, mean pooling, a linear head. Han's
  networks and the micro networks are members of it.
* ``volo`` (Yuan et al. 2021): a stem of three convolutions and a patch convolution, a convolution
  behind the first stage that halves the map, position embeddings after it, two class-attention
  blocks, and an auxiliary head on the tokens whose maximum adds half to the logits. The projections
  to queries, keys and values have no biases; blocks of outlook attention are never dropped.
* ``twins`` (Chu et al. 2021, Twins-SVT): a patch embedding with layer norm in front of every stage,
  a position-encoding depth-wise convolution behind the first block of each stage, a final layer
  norm, mean pooling, a linear head.
"""

from __future__ import annotations

from dataclasses import dataclass

CLASS_BLOCKS = 2  # class-attention blocks of VOLO


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """What the networks of a macro-architecture have in common.

    Attributes:
        qkv_bias: Whether projections to queries, keys and values have biases.
        norm_eps: Added to the variance by the layer norms of blocks and of the end.
        has_conv_stem: Whether convolutions stand in front of the patches (`Architecture.stem_dim`).
        rounds_up: Whether halving an odd map rounds up (it is padded) or down.
        halvings: How many times the map is halved at most, from the first stage on.
    """

    qkv_bias: bool = True
    norm_eps: float = 1e-5
    has_conv_stem: bool = False
    rounds_up: bool = False
    halvings: int = 100


FAMILIES: dict[str, Family] = {
    "swin": Family(rounds_up=True),
    "volo": Family(qkv_bias=False, has_conv_stem=True, halvings=1),
    "twins": Family(norm_eps=1e-6),
}


def map_sizes(family: str, first: int, num_stages: int) -> tuple[int, ...]:
    """Return the side of each stage's map in tokens, ``first`` being that of the first stage."""
    rule, sizes = FAMILIES[family], [first]
    for index in range(num_stages - 1):
        is_halved = index < rule.halvings
        sizes.append((sizes[-1] + rule.rounds_up) // 2 if is_halved else sizes[-1])
    return tuple(sizes)
