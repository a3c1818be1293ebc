"""The closed form against counts by hand, and the laws of adding up.

That it equals the built networks is tested beside the networks.
"""

from __future__ import annotations

import pytest
from hypothesis import given

from searchspace.architecture import Architecture, Stage
from searchspace.cost import Cost, count, count_mixer, count_parts
from searchspace.mixers import (
    DepthwiseConv,
    Elsa,
    InhomogeneousDepthwiseConv,
    Mixer,
    NeighborhoodAttention,
    WindowAttention,
)
from tests.strategies import architectures

# Each row: a mixer on 12 channels and a 5 x 5 map, its parameters and its MACs, counted by hand.
PROJECTION = 12 * 12 + 12
NORM = 2 * 12
BY_HAND: list[tuple[Mixer, int, int]] = [
    (
        # Four windows of 3 x 3 cover the map padded to 6 x 6; q, k, v and the output projection.
        WindowAttention(window_size=3, num_heads=2),
        NORM + 4 * PROJECTION + 5 * 5 * 2,
        36 * (4 * 144) + 36 * (2 * 12 * 9),
    ),
    (
        # The window shrinks to the map. No q is needed for the term rk.
        WindowAttention(window_size=7, num_heads=2, terms="rk"),
        NORM + 3 * PROJECTION + 9 * 9 * 12,
        25 * (3 * 144) + 25 * (2 * 12 * 25),
    ),
    (
        NeighborhoodAttention(kernel_size=3, num_heads=3, terms="qk+qr+rk+bias"),
        NORM + 4 * PROJECTION + 9 * (12 + 12 + 3),
        25 * (4 * 144) + 25 * (4 * 12 * 9),
    ),
    (
        # Static: only v and the output projection.
        NeighborhoodAttention(kernel_size=3, num_heads=3, terms="bias", norm="identity"),
        NORM + 2 * PROJECTION + 9 * 3,
        25 * (2 * 144) + 25 * (12 * 9),
    ),
    (
        DepthwiseConv(kernel_size=3),
        2 * 144 + 12 * 9 + 12 + 3 * NORM,
        25 * (2 * 144 + 12 * 9),
    ),
    (
        # Generator 12 -> 3 -> 2 * 9.
        InhomogeneousDepthwiseConv(kernel_size=3, num_groups=2),
        2 * 144 + 3 * NORM + (12 * 3 + 3) + 2 * 3 + (3 * 18 + 18),
        25 * (2 * 144 + 12 * 3 + 3 * 18 + 12 * 9),
    ),
    (
        # 12 // 3 * 2 = 8 channels of q and k, in groups of 4; one additive matrix.
        Elsa(kernel_size=3, num_heads=2, group_width=4, lam=0, gamma=1),
        NORM + (12 * 28 + 28) + (8 * 4 * 9 + 8) + (8 * 18 + 18) + 12 * 9 + PROJECTION,
        25 * (12 * 28 + 8 * 4 * 9 + 8 * 18 + 2 * 12 * 9 + 144),
    ),
    (
        # 8 channels are rounded up to one group of 16; a multiplicative matrix costs no more MACs.
        Elsa(kernel_size=3, num_heads=2, group_width=16, lam=1, gamma=0),
        NORM + (12 * 44 + 44) + (16 * 16 * 9 + 16) + (16 * 18 + 18) + 12 * 9 + PROJECTION,
        25 * (12 * 44 + 16 * 16 * 9 + 16 * 18 + 12 * 9 + 144),
    ),
]


@pytest.mark.parametrize(("mixer", "params", "macs"), BY_HAND)
def test_mixers_cost_what_a_count_by_hand_gives(mixer: Mixer, params: int, macs: int) -> None:
    assert count_mixer(mixer, dim=12, size=5) == Cost(params, macs)


def test_network_costs_what_a_count_by_hand_gives() -> None:
    mixer = DepthwiseConv(kernel_size=3)
    stages = (
        Stage(dim=8, mixers=(mixer, mixer), mlp_ratio=1.5),
        Stage(dim=12, mixers=(mixer,), mlp_ratio=2),
    )
    # Maps of 5 x 5 and 3 x 3 tokens.
    network = Architecture(img_size=10, patch_size=2, stages=stages, num_classes=7, in_chans=1)
    first, second = (count_mixer(mixer, dim=d, size=s) for d, s in ((8, 5), (12, 3)))

    assert count_parts(network) == {
        "stem": Cost(4 * 8 + 8 + 16, 25 * 4 * 8),
        "stage0": Cost(
            2 * (first.params + 16 + 8 * 12 + 12 + 12 * 8 + 8),
            2 * (first.macs + 25 * 2 * 8 * 12),
        ),
        "stage1": Cost(
            2 * 32 + 32 * 12 + second.params + 24 + 12 * 24 + 24 + 24 * 12 + 12,
            9 * 32 * 12 + second.macs + 9 * 2 * 12 * 24,
        ),
        "head": Cost(24 + 12 * 7 + 7, 12 * 7),
    }


@given(architectures())
def test_parts_follow_the_forward_pass_and_add_up(architecture: Architecture) -> None:
    parts = count_parts(architecture)

    stages = [f"stage{index}" for index in range(len(architecture.stages))]
    assert list(parts) == ["stem", *stages, "head"]
    assert count(architecture) == Cost(
        sum(part.params for part in parts.values()), sum(part.macs for part in parts.values())
    )


@given(architectures())
def test_classes_cost_a_row_of_the_head_each(architecture: Architecture) -> None:
    dim, tokens = architecture.stages[-1].dim, architecture.resolutions[-1] ** 2
    # VOLO's auxiliary head classifies every token as well.
    heads, places = (2, 1 + tokens) if architecture.family == "volo" else (1, 1)

    more = count(architecture.replace(num_classes=architecture.num_classes + 3))

    assert more == count(architecture) + Cost(3 * heads * (dim + 1), 3 * places * dim)
