"""Laws of norms and block options: which norms a stage gets, centring, SE, local convolution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from searchspace.architecture import Architecture, BlockNorm, Stage
from searchspace.cost import count
from searchspace.mixers import (
    DepthwiseConv,
    InhomogeneousDepthwiseConv,
    LocalMlp,
    Mixer,
    WindowAttention,
)
from supernet.mixers.norms import BatchNorm, CentredBatchNorm, build_norm
from supernet.mixers.sharing import Place
from supernet.network.blocks import Block, BlockOptions, LocalConv, SqueezeExcite
from supernet.network.supernet import build_subnet

DIM = 8
CONV = DepthwiseConv(kernel_size=3)
WINDOW = WindowAttention(window_size=3, num_heads=2)
CLASSES = {"layer": nn.LayerNorm, "batch": BatchNorm, "centred_batch": CentredBatchNorm}
NORMS: tuple[BlockNorm, ...] = ("layer", "batch", "centred_batch")


def randomised(module: Any, *, seed: int = 0) -> Any:
    """Make all weights and statistics random, in float64 and eval mode."""
    torch.manual_seed(seed)
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=0.5)
    for name, buffer in module.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 2)
    return module.eval()


def build_block(
    *mixers: Mixer, norm: BlockNorm = "default", options: BlockOptions | None = None
) -> Block:
    place = Place(dim=DIM, size=5, norm=norm)
    return randomised(Block(mixers, place=place, options=options or BlockOptions(mlp_ratio=2)))


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("training", [False, True])
def test_centring_adds_a_share_of_each_images_mean(training: bool) -> None:
    norm = randomised(CentredBatchNorm(DIM)).train(training)
    x = noise(3, 4, 5, DIM)
    centred = x + norm.center_weight * x.mean((1, 2))[:, None, None]
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    if training:
        mean, variance = centred.mean((0, 1, 2)), centred.var((0, 1, 2), correction=0)
    expected = (centred - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias
    close(norm(x), expected)


def test_centring_starts_as_plain_batch_norm() -> None:
    x = noise(3, 4, 5, DIM)
    close(CentredBatchNorm(DIM).double()(x), BatchNorm(DIM).double()(x))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("default", ["layer", "batch"])
def test_default_is_what_the_place_has_and_a_name_is_what_it_says(
    norm: BlockNorm, default: BlockNorm
) -> None:
    assert type(build_norm(DIM, norm, default=default)) is CLASSES[norm]
    assert type(build_norm(DIM, "default", default=default)) is CLASSES[default]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mixer", [CONV, WINDOW, LocalMlp(window_size=3, num_heads=2)])
def test_a_stages_norm_replaces_all_norms_of_its_blocks(mixer: Mixer, norm: BlockNorm) -> None:
    options = BlockOptions(mlp_ratio=2, local_conv=3)
    block = build_block(mixer, norm=norm, options=options)
    kinds = [type(m) for m in block.modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm)]
    # Three in a convolution and one in front of the MLP, or two around attention; one of the local
    # convolution.
    assert kinds == [CLASSES[norm]] * ((4 if mixer is CONV else 2) + 1)


def test_the_norm_inside_a_generator_stays_batch_norm() -> None:
    mixer = InhomogeneousDepthwiseConv(kernel_size=3, num_groups=2)
    block: Any = build_block(mixer, norm="layer")
    assert type(block.mixers[mixer.kind].generator.norm) is BatchNorm


def test_a_convolution_block_with_layer_norms_follows_its_definition() -> None:
    block = build_block(CONV, norm="layer")
    inside = "mixers.depthwise_conv."
    state = {name.removeprefix(inside): value for name, value in block.state_dict().items()}

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (DIM,), state[f"{name}.weight"], state[f"{name}.bias"])

    x = noise(2, 5, 6, DIM)
    hidden = F.relu(norm(x @ state["pointwise.conv_in.weight"].t(), "pointwise.norm_in"))
    kernel = state["weight"].t().view(DIM, 1, 3, 3)
    planes = F.conv2d(hidden.permute(0, 3, 1, 2), kernel, state["bias"], padding=1, groups=DIM)
    hidden = F.relu(norm(planes.permute(0, 2, 3, 1), "pointwise.norm_mid"))
    y = x + norm(hidden @ state["pointwise.conv_out.weight"].t(), "pointwise.norm_out")
    normed = norm(y, "norms.conv_mlp")
    hidden = F.gelu(F.linear(normed, state["mlp.fc1.weight"], state["mlp.fc1.bias"]))
    expected = y + F.linear(hidden, state["mlp.fc2.weight"], state["mlp.fc2.bias"])
    close(block(x, CONV, 2), expected)


def test_squeeze_and_excitation_scales_channels_by_what_the_mean_says() -> None:
    module = randomised(SqueezeExcite(DIM, 4))
    x = noise(2, 3, 5, DIM)
    down, up = module.fc1.weight.flatten(1), module.fc2.weight.flatten(1)
    assert down.shape == (2, DIM)
    hidden = F.relu(x.mean((1, 2)) @ down.t() + module.fc1.bias)
    scale = (hidden @ up.t() + module.fc2.bias).sigmoid()
    close(module(x), x * scale[:, None, None])


def test_the_local_convolution_is_a_norm_and_a_depthwise_convolution_with_bias() -> None:
    module = randomised(LocalConv(Place(dim=DIM, size=5), 5))
    x = noise(2, 5, 6, DIM)
    planes = module.norm(x).permute(0, 3, 1, 2)
    y = F.conv2d(planes, module.conv.weight, module.conv.bias, padding=2, groups=DIM)
    close(module(x), y.permute(0, 2, 3, 1))


@pytest.mark.parametrize("mixer", [CONV, WINDOW])
def test_options_stand_where_they_are_documented(mixer: Mixer) -> None:
    """SE on the mixer's output, then the residual sum, the local convolution and the MLP."""
    options = BlockOptions(mlp_ratio=2, se_reduction=2, local_conv=3)
    block: Any = build_block(mixer, options=options)
    x = noise(2, 5, 5, DIM)
    before = block.norms["attention"](x) if mixer is WINDOW else x
    y = x + block.se(block.mixers[mixer.kind](before, mixer))
    y = y + block.local(y)
    norm = block.norms["attention_mlp" if mixer is WINDOW else "conv_mlp"]
    close(block(x, mixer, 2), y + block.mlp(norm(y), 2 * DIM))


def test_the_local_convolution_is_never_dropped() -> None:
    options = BlockOptions(mlp_ratio=2, drop_path=1.0, local_conv=3)
    block: Any = build_block(CONV, options=options)
    block.drop_path.train()
    x = noise(2, 5, 5, DIM)
    close(block(x, CONV, 2), x + block.local(x))


def test_a_block_taken_out_keeps_its_options() -> None:
    options = BlockOptions(mlp_ratio=2, se_reduction=4, local_conv=5)
    among = build_block(CONV, WINDOW, norm="centred_batch", options=options)
    for mixer in (CONV, WINDOW):
        alone = randomised(
            Block(
                [mixer],
                place=Place(dim=DIM, size=5, norm="centred_batch"),
                options=BlockOptions(mlp_ratio=1, se_reduction=4, local_conv=5),
            ),
            seed=3,
        )
        alone.load_state_dict(among.select(mixer, 1))
        x = noise(2, 5, 5, DIM)
        close(alone(x, mixer, 1), among(x, mixer, 1))


@pytest.mark.parametrize("norm", ["default", *NORMS])
@pytest.mark.parametrize(("se_reduction", "local_conv"), [(0, 0), (4, 0), (0, 7), (2, 3)])
def test_the_closed_form_counts_blocks_with_options(
    norm: BlockNorm, se_reduction: int, local_conv: int
) -> None:
    mixers = (CONV, WINDOW, InhomogeneousDepthwiseConv(kernel_size=3, num_groups=4))
    stage = Stage(
        dim=DIM, mixers=mixers, norm=norm, se_reduction=se_reduction, local_conv=local_conv
    )
    architecture = Architecture(img_size=10, patch_size=2, num_classes=3, stages=(stage,))
    built = sum(p.numel() for p in build_subnet(architecture).parameters())
    assert built == count(architecture).params


@pytest.mark.parametrize("norm", [BatchNorm(DIM), CentredBatchNorm(DIM)])
def test_one_value_a_channel_is_no_statistic(norm: BatchNorm) -> None:
    x = torch.ones(1, 1, 1, DIM)
    with pytest.raises(ValueError, match="more than one value a channel"):
        norm.train()(x)
    assert norm.eval()(x).isfinite().all()


@pytest.mark.parametrize("mixer", [CONV, LocalMlp(window_size=3, num_heads=2)])
def test_a_block_with_all_options_compiles_as_one_graph(mixer: Mixer) -> None:
    torch._dynamo.reset()
    options = BlockOptions(mlp_ratio=2, se_reduction=2, local_conv=3, drop_path=0.1)
    block = build_block(mixer, norm="centred_batch", options=options)
    x = noise(2, 5, 5, DIM)
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    close(compiled(x, mixer, 2), block(x, mixer, 2))
