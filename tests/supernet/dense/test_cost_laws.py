"""The closed form counts rectangles, padded maps and small windows as the built backbone does."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from searchspace.architecture import Architecture, Stage
from searchspace.cost import Cost, count, count_maps
from searchspace.dense import SegmentationHead, check_backbone, check_head
from searchspace.dense_cost import count_dense
from searchspace.map_rules import MapRules
from searchspace.mixer_cost import total
from searchspace.mixers import (
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
from searchspace.presets import preset
from searchspace.space import SearchSpace
from supernet.dense.backbone import Backbone
from supernet.network.supernet import build_subnet

MIXERS: list[Mixer] = [
    DecoupledDynamicFilter(kernel_size=3),
    DepthwiseConv(kernel_size=7),
    DynamicDepthwiseConv(kernel_size=5),
    Elsa(kernel_size=5, num_heads=2, group_width=4),
    GlobalAttention(num_heads=2, sr_ratio=2),
    InhomogeneousDepthwiseConv(kernel_size=7, num_groups=4),
    Involution(kernel_size=7),
    LocalMlp(window_size=7, num_heads=2, shared_positions=True),
    NeighborhoodAttention(kernel_size=7, num_heads=2),
    OutlookAttention(num_heads=2, stride=2),
    WindowAttention(window_size=7, num_heads=2, terms="qk+bias"),
]
RULES = [
    MapRules(keeps_windows=keeps, pads_convolutions=pads)
    for keeps in (False, True)
    for pads in (False, True)
]


def network(mixer: Mixer, family: str = "swin") -> Architecture:
    stages = (Stage(dim=16 * 2**i, mixers=(mixer, mixer), mlp_ratio=2.0) for i in range(2))
    return Architecture(family=family, img_size=224, patch_size=4, stages=tuple(stages))


@pytest.mark.parametrize("mixer", MIXERS, ids=lambda mixer: str(mixer.kind))
@pytest.mark.parametrize("family", ["swin", "twins"])
def test_a_backbone_costs_what_is_counted_at_every_size(mixer: Mixer, family: str) -> None:
    architecture = network(mixer, family)
    for rules in RULES:
        for size in ((61, 75), (33, 224), (40, 24)):
            with torch.device("meta"):
                backbone = Backbone(SearchSpace.of(architecture), rules=rules).eval()
                images = torch.empty(1, 3, *size)
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                backbone(images)
            params = sum(p.numel() for p in backbone.network.parameters())
            built = Cost(params, counter.get_total_flops() // 2)
            counted = total(count_maps(architecture, size, rules).values())
            assert counted.macs == built.macs, (rules, size)
            if rules.keeps_windows:
                assert counted == built, (rules, size)


def test_at_its_own_size_a_backbone_is_the_classifier_without_its_last_layers() -> None:
    architecture = preset("swin_t")
    backbone = total(count_maps(architecture, (224, 224), MapRules()).values())
    # A layer norm and a linear layer of 768 channels to 1000 classes.
    assert count(architecture) == backbone + Cost(2 * 768 + 769_000, 768_000)


def test_a_supernet_without_a_head_has_the_maps_of_the_classifier() -> None:
    torch.manual_seed(0)
    architecture = network(MIXERS[-1])
    classifier = build_subnet(architecture).eval()
    backbone = build_subnet(architecture, backbone=MapRules()).eval()
    state = {n: v for n, v in classifier.state_dict().items() if not n.startswith(("norm", "head"))}
    backbone.load_state_dict(state)
    images = torch.randn(2, 3, 224, 224)
    for one, other in zip(
        classifier.stage_maps(images, architecture),
        backbone.stage_maps(images, architecture),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_what_is_no_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match="halves its map behind every stage"):
        check_backbone(preset("volo_d1"))
    with pytest.raises(ValueError, match="weights for each position"):
        check_backbone(preset("local_mlp_t"))
    with pytest.raises(ValueError, match="weights for each position"):
        count_dense(
            network(DepthwiseConv(kernel_size=3, shared_positions=False)),
            SegmentationHead(),
            num_classes=2,
            size=(64, 64),
        )
    with pytest.raises(ValueError, match="is done by upernet"):
        check_head("semantic", "mask_rcnn")
