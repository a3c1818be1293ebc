"""Our mixers, blocks and networks give what the published code gives, in float64.

The fixtures (published outputs on random input and weights) lie outside the project; without them
these tests skip. Each function below writes a published block's parameters under our names.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from searchspace.architecture import Architecture, Stage
from searchspace.mixers import (
    DepthwiseConv,
    Elsa,
    InhomogeneousDepthwiseConv,
    Mixer,
    WindowAttention,
)
from supernet.blocks import Block, BlockOptions
from supernet.macro import PatchMerging
from supernet.mixers.sharing import Place
from supernet.network import build_subnet

FOLDER = Path(__file__).parents[2].parent / "shared" / "golden"

State = dict[str, Tensor]
WINDOW7 = WindowAttention(window_size=7, num_heads=3)


def read(name: str) -> dict[str, Tensor]:
    path = FOLDER / f"{name}.npz"
    if not path.is_file():
        pytest.skip("the published outputs (../shared/golden) are not on this machine")
    with np.load(path) as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored.files if key != "meta"}


def state_of(fixture: dict[str, Tensor], *prefixes: str) -> State:
    return {
        key.split("::")[1]: value.double()
        for key, value in fixture.items()
        if key.split("::")[0] in prefixes and value.is_floating_point()
    }


def take(state: State, published: str, ours: str) -> State:
    """Rename one module's tensors; 1x1 convolutions become matrices."""
    return {
        f"{ours}.{name.removeprefix(published + '.')}": value.flatten(1)
        if value.dim() == 4
        else value
        for name, value in state.items()
        if name.startswith(published + ".") and "." not in name.removeprefix(published + ".")
    }


def attention_block(state: State) -> State:
    return {
        **take(state, "norm1", "norms.attention"),
        **take(state, "norm2", "norms.attention_mlp"),
        **take(state, "mlp.fc1", "mlp.fc1"),
        **take(state, "mlp.fc2", "mlp.fc2"),
    }


def swin_block(state: State) -> State:
    mixer = "mixers.window_attention.attention"
    table = state["attn.relative_position_bias_table"]
    return {
        **attention_block(state),
        **take(state, "attn.qkv", f"{mixer}.in_proj"),
        **take(state, "attn.proj", f"{mixer}.proj"),
        f"{mixer}.table_bias": table.flip(0),  # query minus key there, key minus query here
    }


def elsa_window_block(state: State) -> State:
    mixer = "mixers.window_attention.attention"
    in_proj = take(state, "attn.pre_proj", f"{mixer}.in_proj")
    return {
        **attention_block(state),
        # v, q, k there; q, k, v here.
        **{
            name: torch.cat([*value.chunk(3)[1:], value.chunk(3)[0]])
            for name, value in in_proj.items()
        },
        **take(state, "attn.post_proj", f"{mixer}.proj"),
        f"{mixer}.table_bias": state["attn.rb"].t(),
    }


def elsa_module(state: State, *, lam: float, gamma: float) -> State:
    heads_taps = state["attn.2.weight"].shape[0]
    kernel = state["attn.0.weight"].shape[-1]
    found = {
        **take(state, "pre_proj", "in_proj"),
        **take(state, "post_proj", "proj"),
        "conv_weight": state["attn.0.weight"].flatten(2).permute(2, 0, 1),
        "conv_bias": state["attn.0.bias"],
        "logit_weight": state["attn.2.weight"]
        .flatten(1)
        .unflatten(0, (heads_taps // kernel**2, kernel**2))
        .transpose(0, 1),
        "logit_bias": state["attn.2.bias"].view(-1, kernel**2).t(),
    }
    names = ["mul"] * (lam != 0) + ["add"] * (gamma != 0)
    if names:
        matrices = state["ghost_head"].flatten(-2).view(len(names), -1, kernel**2)
        found |= {name: matrices[i].t() for i, name in enumerate(names)}
    return found


def elsa_block(state: State) -> State:
    inner = {
        name.removeprefix("attn."): value
        for name, value in state.items()
        if name.startswith("attn.")
    }
    mixer = elsa_module(inner, lam=0, gamma=1)
    return {
        **attention_block(state),
        **{f"mixers.elsa.{name}": value for name, value in mixer.items()},
    }


def conv_block(state: State) -> State:
    """Write a DWNet block, static or (told by its generator) inhomogeneous."""
    generated = "attn2conv.conv.conv2.0.weight" in state
    kind = "inhomogeneous_depthwise_conv" if generated else "depthwise_conv"
    mixer = f"mixers.{kind}"
    found = {
        **take(state, "attn2conv.conv0", f"{mixer}.pointwise.conv_in"),
        **take(state, "attn2conv.bn0", f"{mixer}.pointwise.norm_in"),
        **take(state, "attn2conv.bn", f"{mixer}.pointwise.norm_mid"),
        **take(state, "attn2conv.conv2", f"{mixer}.pointwise.conv_out"),
        **take(state, "attn2conv.bn2", f"{mixer}.pointwise.norm_out"),
        **take(state, "bn", "norms.conv_mlp"),
        **take(state, "mlp.fc1", "mlp.fc1"),
        **take(state, "mlp.fc2", "mlp.fc2"),
    }
    if generated:
        found |= take(state, "attn2conv.conv.conv1.0", f"{mixer}.reduce")
        found |= take(state, "attn2conv.conv.conv1.1", f"{mixer}.norm")
        weight = state["attn2conv.conv.conv2.0.weight"].flatten(1)
        bias = state["attn2conv.conv.conv2.0.bias"]
        groups = 4  # in all fixtures
        found[f"{mixer}.weight"] = weight.unflatten(0, (groups, -1)).transpose(0, 1)
        found[f"{mixer}.bias"] = bias.view(groups, -1).t()
    elif "attn2conv.conv.weight" in state:
        found[f"{mixer}.weight"] = state["attn2conv.conv.weight"].flatten(1).t()
        found[f"{mixer}.bias"] = state["attn2conv.conv.bias"]
    return found


def load(module: torch.nn.Module, state: State) -> None:
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)


def check(
    call: Callable[[Tensor], Tensor], fixture: dict[str, Tensor], size: tuple[int, ...]
) -> None:
    """Compare output and input gradient; ``size`` is the input's shape behind the batch."""
    x = fixture["x"].double().view(-1, *size).requires_grad_()
    y = call(x)
    expected = fixture["y"].double()
    torch.testing.assert_close(y.reshape(expected.shape), expected, rtol=0, atol=1e-10)
    if "gx" in fixture:
        (gx,) = torch.autograd.grad(y, x, fixture["gy"].double().reshape(y.shape))
        expected_gx = fixture["gx"].double().reshape(gx.shape)
        torch.testing.assert_close(gx, expected_gx, rtol=1e-5, atol=1e-5)


BLOCKS: dict[str, tuple[Mixer, tuple[int, int], int, Callable[[State], State]]] = {
    "swin_block_shift0_a": (WINDOW7, (14, 14), 0, swin_block),
    "swin_block_shift3_a": (WINDOW7, (14, 14), 1, swin_block),
    "swin_block_res_eq_window_a": (WINDOW7, (7, 7), 1, swin_block),
    "swin_block_8x12_w4_shift2_a": (
        WindowAttention(window_size=4, num_heads=3),
        (8, 12),
        1,
        swin_block,
    ),
    "swin_block_pad9x11_shift0_a": (WINDOW7, (9, 11), 0, swin_block),
    "swin_block_pad9x11_shift3_a": (WINDOW7, (9, 11), 1, swin_block),
    "elsa_swin_lsa_block_shift0_a": (WINDOW7, (14, 14), 0, elsa_window_block),
    "elsa_swin_lsa_block_shift3_a": (WINDOW7, (14, 14), 1, elsa_window_block),
    "elsa_swin_block_a": (Elsa(kernel_size=7, num_heads=3), (9, 11), 0, elsa_block),
    "dw_spatial_block_a": (DepthwiseConv(kernel_size=7), (9, 11), 0, conv_block),
    "iddw_spatial_block_a": (
        InhomogeneousDepthwiseConv(kernel_size=7, num_groups=4),
        (9, 11),
        0,
        conv_block,
    ),
}


def build_block(name: str, fixture: dict[str, Tensor]) -> Block:
    mixer, (height, width), index, convert = BLOCKS[name]
    dim = fixture["x"].shape[-1]
    block = Block(
        [mixer],
        place=Place(dim=dim, size=max(height, width), block=index),
        options=BlockOptions(mlp_ratio=4),
    ).double()
    load(block, convert(state_of(fixture, "p", "b")))
    return block


@pytest.mark.parametrize("name", BLOCKS)
def test_block_matches_the_published_one(name: str) -> None:
    fixture = read(name)
    block = build_block(name, fixture).eval()
    mixer, size, _, _ = BLOCKS[name]
    check(lambda x: block(x, mixer, 4), fixture, (*size, fixture["x"].shape[-1]))


@pytest.mark.parametrize("name", ["dw_spatial_block_a", "iddw_spatial_block_a"])
def test_batch_norms_train_as_published(name: str) -> None:
    fixture = read(name)
    block = build_block(name, fixture).train()
    mixer, size, _, convert = BLOCKS[name]
    x = fixture["x"].double().view(-1, *size, fixture["x"].shape[-1])
    y = block(x, mixer, 4)
    expected = fixture["y_train"].double().view_as(y)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-10)
    before = state_of(fixture, "p", "b")
    after = convert(before | state_of(fixture, "b_after_train"))
    for key, value in block.state_dict().items():
        if "running" in key:
            torch.testing.assert_close(value, after[key], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "mixer"),
    [
        ("elsa_swin_default_a", Elsa(kernel_size=7, num_heads=3)),
        ("elsa_lam1_gam1_a", Elsa(kernel_size=7, num_heads=3, lam=1, gamma=1)),
        ("elsa_lam1_gam0_a", Elsa(kernel_size=7, num_heads=3, lam=1, gamma=0)),
        ("elsa_lam0_gam0_a", Elsa(kernel_size=7, num_heads=3, lam=0, gamma=0)),
        ("elsa_lam2_gam05_a", Elsa(kernel_size=7, num_heads=3, lam=2, gamma=0.5)),
        ("elsa_lam3_gamm1_a", Elsa(kernel_size=7, num_heads=3, lam=3, gamma=-1)),
    ],
)
def test_elsa_matches_the_published_one(name: str, mixer: Elsa) -> None:
    from supernet.mixers.elsa import ElsaMixer

    fixture = read(name)
    module = ElsaMixer([mixer], place=Place(dim=24, size=11)).double().eval()
    load(module, elsa_module(state_of(fixture, "p"), lam=mixer.lam, gamma=mixer.gamma))
    check(lambda x: module(x, mixer), fixture, (9, 11, 24))


def test_patch_merging_matches_the_published_one() -> None:
    fixture = read("swin_patch_merging_a")
    merging = PatchMerging(6, 12).double()
    load(merging, state_of(fixture, "p"))
    check(merging, fixture, (8, 6, 6))


def network_state(state: State, convert: Callable[[int], Callable[[State], State]]) -> State:
    """Write a published network's parameters under our names."""
    found = take(state, "norm", "norm") | take(state, "head", "head")
    found |= take(state, "patch_embed.norm", "patch_embed.norm")
    found |= {k: v for k, v in state.items() if k.startswith("patch_embed.proj")}
    for name in state:
        if "downsample" in name:
            _, index, _, rest = name.split(".", 3)
            found[f"merges.{index}.{rest}"] = state[name]
    blocks = {tuple(name.split(".")[1:4:2]) for name in state if ".blocks." in name}
    for stage, block in blocks:
        prefix = f"layers.{stage}.blocks.{block}."
        inner = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        converted = convert(int(stage))(inner)
        found |= {f"stages.{stage}.{block}.{key}": value for key, value in converted.items()}
    return found


def stages(*mixers_of: tuple[Mixer, ...]) -> tuple[Stage, ...]:
    return tuple(Stage(dim=12 * 2**i, mixers=mixers) for i, mixers in enumerate(mixers_of))


NETWORKS: dict[str, tuple[Architecture, Callable[[int], Callable[[State], State]]]] = {
    "net_swin_a": (
        Architecture(
            img_size=56,
            patch_size=4,
            num_classes=10,
            stages=stages(
                (WindowAttention(window_size=7, num_heads=2),) * 2,
                (WindowAttention(window_size=7, num_heads=4),) * 2,
            ),
        ),
        lambda stage: swin_block,
    ),
    "net_dwnet_a": (
        Architecture(
            img_size=32,
            patch_size=4,
            num_classes=10,
            stages=stages(
                (DepthwiseConv(kernel_size=7),) * 2,
                (DepthwiseConv(kernel_size=7),),
                (DepthwiseConv(kernel_size=7),),
            ),
        ),
        lambda stage: conv_block,
    ),
    "net_iddwnet_a": (
        Architecture(
            img_size=32,
            patch_size=4,
            num_classes=10,
            stages=stages(
                *[(InhomogeneousDepthwiseConv(kernel_size=5, num_groups=4),)] * 3,
            ),
        ),
        lambda stage: conv_block,
    ),
    "net_elsa_swin_a": (
        Architecture(
            img_size=56,
            patch_size=4,
            num_classes=10,
            stages=stages(
                (Elsa(kernel_size=7, num_heads=2),) * 2,
                (WindowAttention(window_size=7, num_heads=4),) * 2,
            ),
        ),
        lambda stage: elsa_block if stage == 0 else elsa_window_block,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_network_matches_the_published_one(name: str) -> None:
    fixture = read(name)
    architecture, convert = NETWORKS[name]
    network = build_subnet(architecture).double().eval()
    load(network, network_state(state_of(fixture, "p", "b"), convert))
    check(network, fixture, (3, architecture.img_size, architecture.img_size))
