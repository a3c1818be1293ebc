"""The closed form of every mixer counts what its module has and does, on every map.

Parameters are those of the module; multiply-accumulates are half of the operations that torch
counts while it runs on tensors without memory.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from searchspace.map_rules import CLASSIFIER, MapRules
from searchspace.mixer_cost import Cost, count_mixer
from searchspace.mixers import (
    CONV_KINDS,
    DecoupledDynamicFilter,
    DepthwiseConv,
    DynamicDepthwiseConv,
    Elsa,
    GlobalAttention,
    InhomogeneousDepthwiseConv,
    Involution,
    LocalMlp,
    Mixer,
    NeighborhoodAttention,
    OutlookAttention,
    WindowAttention,
)
from supernet.mixers import MIXERS
from supernet.mixers.elsa import ElsaMixer
from supernet.mixers.sharing import Place

DIM = 24
TERMS = ("qk", "qk+bias", "qr", "rk", "bias", "static", "qk+qr+rk", "qk+qr+rk+static+bias")
CONVS = ("none", "pre", "pre_depthwise", "pre_full", "post")
SETTINGS: tuple[Mixer, ...] = (
    *(WindowAttention(window_size=4, num_heads=3, terms=terms) for terms in TERMS),
    *(WindowAttention(window_size=3, num_heads=2, conv=conv) for conv in CONVS),
    *(NeighborhoodAttention(kernel_size=3, num_heads=3, terms=terms) for terms in TERMS),
    *(NeighborhoodAttention(kernel_size=4, num_heads=2, conv=conv) for conv in CONVS),
    *(LocalMlp(window_size=3, num_heads=heads, shared_positions=True) for heads in (2, 3)),
    LocalMlp(window_size=9, num_heads=2, shared_positions=True),
    *(DepthwiseConv(kernel_size=k, channels_per_filter=c) for k, c in ((3, 1), (5, 4), (2, 24))),
    *(DynamicDepthwiseConv(kernel_size=k) for k in (3, 5)),
    *(InhomogeneousDepthwiseConv(kernel_size=k, num_groups=g) for k, g in ((3, 4), (5, 24))),
    *(
        Involution(kernel_size=k, group_channels=g, reduction=r)
        for k, g, r in ((3, 4, 4), (5, 12, 3))
    ),
    *(
        DecoupledDynamicFilter(kernel_size=3, num_heads=heads, combine=combine, se_ratio=ratio)
        for heads, combine, ratio in product((1, 3), ("mul", "add"), (0.2, 0.5))
    ),
    *(
        OutlookAttention(num_heads=heads, kernel_size=k, stride=s)
        for heads, k, s in ((2, 3, 2), (3, 3, 1), (2, 5, 3))
    ),
    *(
        Elsa(kernel_size=3, num_heads=2, group_width=width, lam=lam, gamma=gamma)
        for width, (lam, gamma) in product((2, 4), ((0, 1), (0.5, 0), (2, -1), (0, 0)))
    ),
    Elsa(kernel_size=5, num_heads=2, group_width=4, logit_groups=2, qk_dim=8, v_dim=40),
    Elsa(kernel_size=2, num_heads=4, group_width=2, logit_groups=4, qk_dim=16, v_dim=12),
    *(GlobalAttention(num_heads=3, sr_ratio=ratio) for ratio in (1, 2, 3)),
)
# Rectangles, whole windows and less than one, both rules.
USES = (
    ((5, 9), CLASSIFIER, "default", True),
    ((4, 3), MapRules(keeps_windows=True, pads_convolutions=True), "centred_batch", False),
)
# Norms of a block: two parameters a channel, three where they are centred.
NORMS = {"default": 2, "centred_batch": 3}


def built(
    mixer: Mixer,
    size: tuple[int, int],
    *,
    norm: Any = "default",
    qkv_bias: bool = True,
    rules: MapRules = CLASSIFIER,
    designed: int = 16,
) -> Cost:
    """Build the module, let it mix one map, and count; with the norm before an attention."""
    with torch.device("meta"):
        place = Place(dim=DIM, size=designed, qkv_bias=qkv_bias, norm=norm, rules=rules)
        module = MIXERS[mixer.kind]([mixer], place=place).eval()
        sides = rules.padded(size, getattr(mixer, "kernel_size", 1))
        x = torch.empty(1, *(sides if mixer.kind in CONV_KINDS else size), DIM)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x, mixer)
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    before = 0 if mixer.kind in CONV_KINDS else NORMS[norm] * DIM
    return Cost(sum(p.numel() for p in module.parameters()) + before, flops // 2)


@pytest.mark.parametrize("mixer", SETTINGS, ids=lambda mixer: mixer.short)
def test_a_mixer_costs_what_its_module_has_and_does(mixer: Mixer) -> None:
    for size, rules, norm, qkv_bias in USES:
        expected = built(mixer, size, norm=norm, qkv_bias=qkv_bias, rules=rules)
        counted = count_mixer(mixer, dim=DIM, size=size, qkv_bias=qkv_bias, norm=norm, rules=rules)
        assert counted.macs == expected.macs, (size, rules)
        # A window that shrinks to a small map is built with the tables of its own size.
        if rules.keeps_windows or getattr(mixer, "window_size", 0) <= max(size):
            assert counted == expected, (size, rules)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("window", [3, 7, 9])
def test_weights_of_each_position_are_counted(window: int, shared: bool) -> None:
    for mixer in (
        LocalMlp(window_size=window, num_heads=3, shared_positions=shared),
        DepthwiseConv(kernel_size=window, channels_per_filter=4, shared_positions=shared),
    ):
        expected = built(mixer, (7, 7), designed=7)
        counted = count_mixer(mixer, dim=DIM, size=7)
        assert counted.macs == expected.macs
        if window <= 7 or not shared:
            assert counted == expected


def test_the_settings_that_are_left_out_are_those_of_every_attention() -> None:
    by_default = count_mixer(GlobalAttention(num_heads=3), dim=DIM, size=4)
    given = count_mixer(
        GlobalAttention(num_heads=3, sr_ratio=1),
        dim=DIM,
        size=(4, 4),
        qkv_bias=True,
        norm="default",
        rules=MapRules(),
    )
    # q, k, v and the output: four layers with biases, and a layer norm.
    assert by_default == given
    assert by_default.params == 4 * (DIM * DIM + DIM) + 2 * DIM
    assert by_default.macs == 16 * 4 * DIM * DIM + 2 * 16 * 16 * DIM


def test_elsa_has_weights_for_the_most_heads_that_it_offers() -> None:
    options = [
        Elsa(kernel_size=3, num_heads=heads, lam=1.0, gamma=1.0, logit_groups=1) for heads in (1, 4)
    ]
    place = Place(dim=8, size=5)
    for some in (options, options[::-1]):
        module = ElsaMixer(some, place=place)
        assert module.logit_weight.shape[:2] == (9, 4)
        for option in some:
            assert module.select(option)["logit_weight"].shape[:2] == (9, option.num_heads)
            assert module(torch.randn(2, 5, 5, 8), option).shape == (2, 5, 5, 8)
