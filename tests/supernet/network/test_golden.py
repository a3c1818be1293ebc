"""Our mixers, blocks and networks give what the published code gives, in float64.

The fixtures (published outputs on random input and weights) lie outside the project; without them
these tests skip. Each function below writes a published block's parameters under our names.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from searchspace.architecture import Architecture, Stage
from searchspace.mixers import Elsa, Mixer, WindowAttention
from supernet.mixers.sharing import Place
from supernet.network.blocks import Block, BlockOptions
from supernet.network.macro import PatchMerging
from supernet.network.supernet import build_subnet
from tests.golden import State, check, check_parameters, load, network_state, read, state_of, take

WINDOW7 = WindowAttention(window_size=7, num_heads=3)


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
    mixer, size, _, convert = BLOCKS[name]
    shape = (*size, fixture["x"].shape[-1])
    check(lambda x: block(x, mixer, 4), fixture, shape)
    check_parameters(block, lambda x: block(x, mixer, 4), fixture, shape, convert)


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

    def convert(state: State) -> State:
        return elsa_module(state, lam=mixer.lam, gamma=mixer.gamma)

    load(module, convert(state_of(fixture, "p")))
    check(lambda x: module(x, mixer), fixture, (9, 11, 24))
    check_parameters(module, lambda x: module(x, mixer), fixture, (9, 11, 24), convert)


def test_patch_merging_matches_the_published_one() -> None:
    fixture = read("swin_patch_merging_a")
    merging = PatchMerging(6, 12).double()
    load(merging, state_of(fixture, "p"))
    check(merging, fixture, (8, 6, 6))
    check_parameters(merging, merging, fixture, (8, 6, 6), lambda state: state)


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
