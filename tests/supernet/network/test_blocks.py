"""A block's parts, each against what is written of it: borders, squeeze, extra branch, MLP."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from searchspace.map_rules import CLASSIFIER, MapRules
from searchspace.mixers import DepthwiseConv, DynamicDepthwiseConv, Mixer, WindowAttention
from supernet.mixers import Place
from supernet.network.blocks import Block, BlockOptions, LocalConv, Mlp, SqueezeExcite

DIM = 8
PADS = MapRules(pads_convolutions=True)
CONV, OTHER, WINDOW = (
    DepthwiseConv(kernel_size=3),
    DynamicDepthwiseConv(kernel_size=5),
    WindowAttention(window_size=2, num_heads=2),
)


def build(*mixers: Mixer, rules: MapRules = CLASSIFIER, **options: float) -> Block:
    """Build a block in float64 and eval mode, with weights and statistics of all sorts."""
    torch.manual_seed(0)
    place = Place(dim=DIM, size=7, block=1, rules=rules)
    block = Block(mixers, place=place, options=BlockOptions(mlp_ratio=2.0, **options))  # type: ignore[arg-type]
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.4)
    for name, buffer in block.named_buffers():
        if "running" in name:
            nn.init.uniform_(buffer, 0.5, 1.5)
    return block.double().eval()


def maps(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*shape, DIM, generator=generator, dtype=torch.float64)


def by_definition(block: Block, x: Tensor, mixer: Mixer, ratio: float) -> Tensor:
    """Mix, squeeze, add; the extra branch, add; norm and MLP, add."""
    is_conv = mixer is not WINDOW
    module = block.mixers[mixer.kind]
    if is_conv:
        height, width = x.shape[1:3]
        size = mixer.kernel_size  # type: ignore[union-attr]
        rows, columns = (
            -side % size if block.rules.pads_convolutions else 0 for side in (height, width)
        )
        padded = torch.zeros(len(x), height + rows, width + columns, DIM, dtype=x.dtype)
        padded[:, :height, :width] = x
        mixed = module(padded, mixer)[:, :height, :width]
    else:
        mixed = module(block.norms["attention"](x), mixer)
    if block.se is not None:
        mean = mixed.mean((1, 2))
        state = block.se.state_dict()
        hidden = F.relu(F.linear(mean, state["fc1.weight"][:, :, 0, 0], state["fc1.bias"]))
        gate = F.linear(hidden, state["fc2.weight"][:, :, 0, 0], state["fc2.bias"]).sigmoid()
        mixed = mixed * gate[:, None, None]
    x = x + mixed
    if block.local is not None:
        weight = block.local.conv.weight.view(DIM, 1, *block.local.conv.weight.shape[-2:])
        normed = block.local.norm(x).permute(0, 3, 1, 2)
        side = weight.shape[-1] // 2
        branch = F.conv2d(normed, weight, block.local.conv.bias, padding=side, groups=DIM)
        x = x + branch.permute(0, 2, 3, 1)
    hidden_channels = int(DIM * ratio)
    fc1, fc2 = block.mlp.fc1, block.mlp.fc2
    normed = block.norms["conv_mlp" if is_conv else "attention_mlp"](x)
    hidden = F.gelu(normed @ fc1.weight[:hidden_channels].t() + fc1.bias[:hidden_channels])
    return x + hidden @ fc2.weight[:, :hidden_channels].t() + fc2.bias


@pytest.mark.parametrize("mixer", [CONV, OTHER, WINDOW], ids=lambda mixer: mixer.kind)
@pytest.mark.parametrize("rules", [CLASSIFIER, PADS], ids=["plain", "padded"])
@pytest.mark.parametrize("ratio", [1.0, 2.0])
@pytest.mark.parametrize("options", [{}, {"se_reduction": 4}, {"local_conv": 3}])
def test_a_block_is_what_is_written_of_it(
    mixer: Mixer, rules: MapRules, ratio: float, options: dict[str, int]
) -> None:
    block = build(CONV, OTHER, WINDOW, rules=rules, **options)
    for x in (maps(2, 4, 7), maps(1, 6, 5)):
        with torch.no_grad():
            found, expected = block(x, mixer, ratio), by_definition(block, x, mixer, ratio)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mixer", [CONV, OTHER, WINDOW], ids=lambda mixer: mixer.kind)
def test_what_is_not_used_is_named_and_decides_nothing(mixer: Mixer) -> None:
    block = build(CONV, OTHER, WINDOW)
    x = maps(2, 4, 5)
    unused = block.unused(x, mixer, 1.0)
    with torch.no_grad():
        before = block(x, mixer, 1.0)
        named = [(n, p) for n, p in block.named_parameters() if n.startswith(unused)]
        for _, parameter in named:
            parameter.fill_(float("nan"))
        torch.testing.assert_close(block(x, mixer, 1.0), before, rtol=0, atol=0)
    others = [n for n, _ in block.named_parameters() if not n.startswith(unused)]
    assert named
    # All that is not named has a gradient, but for the hidden channels of the larger MLP.
    for _, parameter in named:
        parameter.data.fill_(0.0)
    block(x, mixer, 1.0).square().sum().backward()
    parameters = dict(block.named_parameters())
    assert all(parameters[name].grad is not None for name in others)


def test_a_mixer_that_a_block_does_not_offer_is_named() -> None:
    with pytest.raises(ValueError, match="This block offers depthwise_conv, got window_attention"):
        build(CONV)(maps(1, 4, 4), WINDOW, 1.0)


def test_what_a_block_has_follows_its_options() -> None:
    plain = build(CONV)
    assert (plain.se, plain.local, set(plain.norms)) == (None, None, {"conv_mlp"})
    assert set(build(WINDOW).norms) == {"attention", "attention_mlp"}
    assert set(build(CONV, WINDOW).norms) == {"attention", "attention_mlp", "conv_mlp"}
    full = build(CONV, se_reduction=4, local_conv=5)
    assert isinstance(full.se, SqueezeExcite)
    assert full.se.fc1.weight.shape[0] == DIM // 4
    assert isinstance(full.local, LocalConv)
    assert isinstance(full.mlp, Mlp)
    assert (full.mlp.hidden, full.mlp.fc2.weight.shape) == (2 * DIM, (DIM, 2 * DIM))


def test_a_dropped_branch_is_dropped_for_a_whole_image() -> None:
    block = build(WINDOW, drop_path=0.5)
    block.train()
    x = maps(64, 2, 2)
    torch.manual_seed(3)
    changes = (block(x, WINDOW, 2.0) - x).flatten(1).abs().sum(1) == 0
    # Both branches of an image are dropped with probability 1/4.
    assert 4 <= int(changes.sum()) <= 30
