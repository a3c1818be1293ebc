"""Blocks that have no mixer, or an MLP of their own width: networks written out by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from searchspace.architecture import Architecture, Stage, describe
from searchspace.cost import count
from searchspace.mixers import NoMixer, WindowAttention
from supernet.network import build_subnet

WINDOW = WindowAttention(window_size=2, num_heads=2)


def network_of(stage: Stage) -> Architecture:
    return Architecture(img_size=8, patch_size=2, num_classes=3, stages=(stage,))


def test_a_block_without_a_mixer_is_its_mlp_alone() -> None:
    network = build_subnet(network_of(Stage(dim=8, mixers=(NoMixer(),), mlp_ratio=2)))
    block = network.stages[0][0]
    torch.nn.init.normal_(block.norms["attention_mlp"].weight)
    x = torch.randn(2, 4, 4, 8)
    normed = F.layer_norm(x, (8,), block.norms["attention_mlp"].weight)
    expected = x + block.mlp.fc2(F.gelu(block.mlp.fc1(normed)))
    torch.testing.assert_close(block(x, NoMixer(), 2.0), expected)
    assert {name.split(".")[0] for name in block.state_dict()} == {"norms", "mlp"}


def test_each_block_has_an_mlp_of_its_own_width() -> None:
    stage = Stage(dim=8, mixers=(WINDOW, WINDOW, WINDOW), block_mlp_ratios=(4, 1, 2.5))
    network = build_subnet(network_of(stage))
    assert [block.mlp.fc1.out_features for block in network.stages[0]] == [32, 8, 20]
    assert network(torch.randn(1, 3, 8, 8)).shape == (1, 3)
    assert count(network_of(stage)).params == sum(p.numel() for p in network.parameters())


def test_equal_networks_have_one_description() -> None:
    plain = Stage(dim=8, mixers=(WINDOW, NoMixer()), mlp_ratio=2)
    restated = Stage(dim=8, mixers=(WINDOW, NoMixer()), mlp_ratio=2, block_mlp_ratios=(2, 2))
    assert restated == plain
    narrower = Stage(dim=8, mixers=(WINDOW, NoMixer()), mlp_ratio=2, block_mlp_ratios=(2, 1))
    assert network_of(narrower).key != network_of(plain).key
    assert describe(network_of(narrower)) == "win2 h2 m2, none m1"
