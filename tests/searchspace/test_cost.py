"""The closed form against counts by hand, and the laws of adding up.

That it equals the built networks is tested beside the networks.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given

from searchspace.architecture import Architecture, Stage
from searchspace.cost import Cost, backbone_sizes, count, count_maps, count_mixer, count_parts
from searchspace.map_rules import MapRules
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


def linear(inputs: int, outputs: int, tokens: int, *, bias: bool = True) -> Cost:
    return Cost(inputs * outputs + outputs * bias, inputs * outputs * tokens)


def norm(dim: int) -> Cost:
    return Cost(2 * dim, 0)


def summed(*costs: Cost) -> Cost:
    return Cost(sum(c.params for c in costs), sum(c.macs for c in costs))


@pytest.mark.parametrize("num_stages", [2, 3])
def test_the_parts_of_a_volo_by_hand(num_stages: int) -> None:
    """A stem of three convolutions and a patch convolution; two class blocks; a head on tokens."""
    mixer = WindowAttention(window_size=2, num_heads=2)
    stages = (
        Stage(dim=8, mixers=(mixer,), mlp_ratio=3),
        Stage(dim=12, mixers=(mixer, mixer), mlp_ratio=2),
        Stage(dim=12, mixers=(mixer,), mlp_ratio=2),
    )[:num_stages]
    network = Architecture(
        family="volo", img_size=28, patch_size=4, stem_dim=6, stages=stages, num_classes=7
    )
    # 28 pixels are 14 after the stem's stride, 7 patches of 4, and 3 after one halving.
    sizes = network.resolutions
    assert sizes == (7, 3, 3)[:num_stages]
    parts = count_parts(network)
    # Images of 3 channels; convolutions without biases, each with a batch norm.
    stem = [Cost(3 * 49 * 6, 14 * 14 * 3 * 49 * 6)] + [Cost(9 * 36, 14 * 14 * 9 * 36)] * 2
    patches = linear(6 * 2 * 2, 8, sizes[0] ** 2)
    assert parts["stem"] == summed(*stem, norm(6), norm(6), norm(6), patches)

    def block(dim: int, size: int, ratio: int) -> Cost:
        inner = count_mixer(mixer, dim=dim, size=size, qkv_bias=False)
        hidden = dim * ratio
        return summed(inner, norm(dim), linear(dim, hidden, size**2), linear(hidden, dim, size**2))

    assert parts["stage0"] == block(8, sizes[0], 3)
    joined = linear(4 * 8, 12, sizes[1] ** 2)
    positions = Cost(12 * sizes[1] ** 2, 0)
    assert parts["stage1"] == summed(*[block(12, sizes[1], 2)] * 2, joined, positions)
    if num_stages == 3:
        assert parts["stage2"] == block(12, 3, 2)
    tokens = sizes[1] ** 2
    class_block = summed(
        *(norm(12), norm(12)),
        linear(12, 12, 1, bias=False),
        linear(12, 24, tokens + 1, bias=False),
        Cost(0, 2 * 12 * (tokens + 1)),
        linear(12, 12, 1),
        *(linear(12, 24, 1), linear(24, 12, 1)),
    )
    assert parts["head"] == summed(
        Cost(12, 0), class_block, class_block, norm(12), linear(12, 7, 1), linear(12, 7, tokens)
    )


def test_the_parts_of_a_twins_by_hand() -> None:
    """Every stage has a position encoding of 3 x 3, and all but the first begin with patches."""
    mixer = WindowAttention(window_size=2, num_heads=2)
    stages = (Stage(dim=8, mixers=(mixer,), mlp_ratio=2), Stage(dim=12, mixers=(mixer,)))
    network = Architecture(family="twins", img_size=24, patch_size=4, stages=stages, num_classes=7)
    parts = count_parts(network)
    assert network.resolutions == (6, 3)
    assert parts["stem"] == summed(linear(3 * 16, 8, 36), norm(8))

    def block(dim: int, size: int, ratio: float) -> Cost:
        hidden = int(dim * ratio)
        return summed(
            count_mixer(mixer, dim=dim, size=size),
            norm(dim),
            *(linear(dim, hidden, size**2), linear(hidden, dim, size**2)),
        )

    assert parts["stage0"] == summed(block(8, 6, 2), Cost(10 * 8, 9 * 8 * 36))
    assert parts["stage1"] == summed(
        block(12, 3, stages[1].mlp_ratio),
        Cost(10 * 12, 9 * 12 * 9),
        *(linear(4 * 8, 12, 9), norm(12)),
    )
    assert parts["head"] == summed(norm(12), linear(12, 7, 1))


@pytest.mark.parametrize("norms", ["default", "centred_batch"])
def test_what_a_stage_adds_to_its_blocks_by_hand(norms: str) -> None:
    mixer = DepthwiseConv(kernel_size=3)
    plain = Stage(dim=8, mixers=(mixer, mixer), norm=norms)  # type: ignore[arg-type]
    full = replace(plain, se_reduction=4, local_conv=5)
    costs = [
        count_parts(Architecture(img_size=12, patch_size=2, stages=(stage,)))["stage0"]
        for stage in (plain, full)
    ]
    # Squeeze-and-excitation sees one token; the branch has a norm, 25 taps and a bias a channel.
    squeeze = summed(linear(8, 2, 1), linear(2, 8, 1))
    per_channel = {"default": 2, "centred_batch": 3}[norms]
    branch = Cost(per_channel * 8 + 26 * 8, 36 * 25 * 8)
    assert costs[1] == summed(costs[0], squeeze, squeeze, branch, branch)


@pytest.mark.parametrize(
    "rules", [MapRules(), MapRules(keeps_windows=True, pads_convolutions=True)]
)
def test_a_backbone_costs_its_parts_on_every_map(rules: MapRules) -> None:
    mixers = (WindowAttention(window_size=4, num_heads=2), DepthwiseConv(kernel_size=5))
    stages = (Stage(dim=8, mixers=mixers), Stage(dim=16, mixers=mixers))
    network = Architecture(img_size=32, patch_size=4, stages=stages)
    # 23 x 41 pixels are 6 x 11 whole patches, and 3 x 6 after merging, which rounds up.
    assert backbone_sizes(network, (23, 41)) == ((6, 11), (3, 6))

    parts = count_maps(network, (23, 41), rules)

    def stage(dim: int, rows: int, columns: int) -> Cost:
        tokens, hidden = rows * columns, 4 * dim
        blocks = [
            summed(
                count_mixer(mixer, dim=dim, size=(rows, columns), rules=rules),
                norm(dim),
                *(linear(dim, hidden, tokens), linear(hidden, dim, tokens)),
            )
            for mixer in mixers
        ]
        return summed(*blocks)

    assert stages[0].mlp_ratio == 4
    merged = summed(norm(4 * 8), linear(4 * 8, 16, 18, bias=False))
    assert parts == {
        "stem": summed(linear(3 * 16, 8, 66), norm(8)),
        "stage0": stage(8, 6, 11),
        "stage1": summed(stage(16, 3, 6), merged),
    }
