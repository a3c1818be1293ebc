"""Attention-like mixers and blocks give what the published code gives, in float64.

The fixtures (published outputs on random input and weights) lie outside the project; without them
these tests skip. Each adapter below writes published parameters under our names; it only moves
numbers (or scales them, where we fold a published scale into q), so it maps gradients too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import supernet.mixers.window_attention as window_attention
from searchspace.mixers import (
    DecoupledDynamicFilter,
    Elsa,
    GlobalAttention,
    Mixer,
    OutlookAttention,
    WindowAttention,
)
from supernet.mixers import MIXERS
from supernet.mixers.sharing import Place
from supernet.network.blocks import Block, BlockOptions

FOLDER = Path(__file__).parents[3].parent / "shared" / "golden"

State = dict[str, Tensor]
Adapter = Callable[[State, float], State]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A fixture: our mixer, how its parameters are called, and how its input is laid out.

    ``q_scale`` is the published scale over ours. ``step`` is the published stride.
    """

    mixer: Mixer
    adapt: Adapter
    size: tuple[int, int]
    qkv_bias: bool = True
    q_scale: float = 1.0
    channels_first: bool = False
    step: int = 1


def read(name: str) -> State:
    path = FOLDER / f"{name}.npz"
    if not path.is_file():
        pytest.skip("the published outputs (../shared/golden) are not on this machine")
    with np.load(path) as stored:
        return {key: torch.from_numpy(stored[key]).clone() for key in stored.files if key != "meta"}


def part(fixture: State, prefix: str) -> State:
    return {
        key.removeprefix(f"{prefix}::"): value.double()
        for key, value in fixture.items()
        if key.startswith(f"{prefix}::") and value.is_floating_point()
    }


def inside(state: State, prefix: str) -> State:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def under(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def take(state: State, published: str, ours: str) -> State:
    """Rename a layer's tensors; 1x1 convolutions become matrices."""
    return {
        f"{ours}.{name}": value.flatten(1) if value.shape[2:] == (1, 1) else value
        for name, value in inside(state, f"{published}.").items()
        if "." not in name
    }


def scale_q(state: State, scale: float, *, rows: int) -> State:
    """Multiply the first rows, those of q, of the input projection."""
    factors = torch.ones(len(state["in_proj.weight"]), 1, dtype=torch.float64)
    factors[:rows] = scale
    scaled = {"in_proj.weight": state["in_proj.weight"] * factors}
    if "in_proj.bias" in state:
        scaled["in_proj.bias"] = state["in_proj.bias"] * factors[:, 0]
    return state | scaled


def swin_attention(state: State, scale: float) -> State:
    found = take(state, "qkv", "in_proj") | take(state, "proj", "proj")
    if "relative_position_bias_table" in state:
        # Query minus key there, key minus query here.
        found["table_bias"] = state["relative_position_bias_table"].flip(0)
    return under(scale_q(found, scale, rows=12), "attention.")


def elsa_window_attention(state: State, scale: float) -> State:
    in_proj = take(state, "pre_proj", "in_proj")
    # v, q, k there; q, k, v here.
    in_proj = {k: torch.cat([*v.chunk(3)[1:], v.chunk(3)[0]]) for k, v in in_proj.items()}
    found = in_proj | take(state, "post_proj", "proj") | {"table_bias": state["rb"].t()}
    return under(scale_q(found, scale, rows=12), "attention.")


def global_attention(state: State, scale: float) -> State:
    if "qkv.weight" in state:
        projections = take(state, "qkv", "in_proj")
    else:
        projections = take(state, "q", "query") | take(state, "kv", "in_proj")
    return {
        **projections,
        **take(state, "proj", "proj"),
        **take(state, "sr", "reductions.2.conv"),
        **take(state, "norm", "reductions.2.norm"),
    }


def outlook(state: State, scale: float) -> State:
    heads = len(state["attn.bias"]) // 81
    return {
        **take(state, "v", "value"),
        **take(state, "proj", "proj"),
        "weight": state["attn.weight"].unflatten(0, (heads, 9, 9)).movedim(0, 2),
        "bias": state["attn.bias"].unflatten(0, (heads, 9, 9)).movedim(0, 2),
    }


def filters(state: State, scale: float) -> State:
    dim = state["channel_branch.1.weight"].shape[1]
    taps = len(state["channel_branch.4.std"]) // dim
    spatial = take(state, "spatial_branch.0", "spatial")
    channel = take(state, "channel_branch.3", "channel")
    channel["deviation"] = state["channel_branch.4.std"]
    return {
        **take(state, "channel_branch.1", "reduce"),
        **{
            name.replace(".", "_"): value.unflatten(0, (-1, taps)).transpose(0, 1)
            for name, value in (spatial | channel).items()
        },
    }


def elsa(state: State, scale: float) -> State:
    taps = state["attn.0.weight"].shape[-1] ** 2
    qk_dim = len(state["attn.0.bias"])
    found = {
        **scale_q(take(state, "pre_proj", "in_proj"), scale, rows=qk_dim),
        **take(state, "post_proj", "proj"),
        "conv_weight": state["attn.0.weight"].flatten(2).permute(2, 0, 1),
        "conv_bias": state["attn.0.bias"],
        "logit_weight": state["attn.2.weight"].flatten(1).unflatten(0, (-1, taps)).transpose(0, 1),
        "logit_bias": state["attn.2.bias"].view(-1, taps).t(),
    }
    if "ghost_head" in state:
        ghost = state["ghost_head"].flatten(-2)  # (1, C, taps), or (2, 1, C, taps) with both
        found |= {"ghost": ghost.flatten(0, -3).transpose(1, 2)}
    return found


def elsa_with(*names: str) -> Adapter:
    """Adapt ELSA whose ghost head consists of these matrices."""

    def adapt(state: State, scale: float) -> State:
        found = elsa(state, scale)
        matrices = found.pop("ghost", torch.empty(0))
        return found | dict(zip(names, matrices, strict=True))

    return adapt


ELSA_SETTINGS = {
    "elsa_swin_default_a": (0.0, 1.0, ("add",)),
    "elsa_lam1_gam1_a": (1.0, 1.0, ("mul", "add")),
    "elsa_lam1_gam0_a": (1.0, 0.0, ("mul",)),
    "elsa_lam0_gam0_a": (0.0, 0.0, ()),
    "elsa_lam2_gam05_a": (2.0, 0.5, ("mul", "add")),
    "elsa_lam3_gamm1_a": (3.0, -1.0, ("mul", "add")),
}
SIZE = (9, 11)

CASES: dict[str, Case] = {
    "swin_window_attention_a": Case(
        mixer=WindowAttention(window_size=7, num_heads=3), adapt=swin_attention, size=(7, 7)
    ),
    "elsa_swin_window_attention_a": Case(
        mixer=WindowAttention(window_size=7, num_heads=3),
        adapt=elsa_window_attention,
        size=(7, 7),
    ),
    "twins_group_attention_a": Case(
        mixer=WindowAttention(window_size=7, num_heads=3, terms="qk"),
        adapt=swin_attention,
        size=(14, 14),
    ),
    "twins_gsa_a": Case(
        mixer=GlobalAttention(num_heads=3, sr_ratio=2), adapt=global_attention, size=(14, 14)
    ),
    "outlook_attention_s1_a": Case(
        mixer=OutlookAttention(num_heads=2, stride=1), adapt=outlook, size=SIZE, qkv_bias=False
    ),
    "outlook_attention_s2_a": Case(
        mixer=OutlookAttention(num_heads=3), adapt=outlook, size=SIZE, qkv_bias=False
    ),
    "outlook_attention_s2_even_a": Case(
        mixer=OutlookAttention(num_heads=3), adapt=outlook, size=(14, 14)
    ),
    "ddf_mul_k3_a": Case(
        mixer=DecoupledDynamicFilter(kernel_size=3), adapt=filters, size=SIZE, channels_first=True
    ),
    "ddf_add_k3_a": Case(
        mixer=DecoupledDynamicFilter(kernel_size=3, combine="add"),
        adapt=filters,
        size=SIZE,
        channels_first=True,
    ),
    "ddf_mul_k7_head3_a": Case(
        mixer=DecoupledDynamicFilter(kernel_size=7, num_heads=3),
        adapt=filters,
        size=SIZE,
        channels_first=True,
    ),
    "ddf_mul_k3_dil2_a": Case(
        mixer=DecoupledDynamicFilter(kernel_size=3, dilation=2, se_ratio=0.5),
        adapt=filters,
        size=SIZE,
        channels_first=True,
    ),
    # Our mixers keep the map. The generators read single pixels (and the whole map), so that the
    # output of stride 2 is that of stride 1 at even rows and columns.
    "ddf_mul_k3_stride2_a": Case(
        mixer=DecoupledDynamicFilter(kernel_size=3),
        adapt=filters,
        size=(10, 12),
        channels_first=True,
        step=2,
    ),
    **{
        name: Case(
            mixer=Elsa(kernel_size=7, num_heads=3, lam=lam, gamma=gamma),
            adapt=elsa_with(*names),
            size=SIZE,
        )
        for name, (lam, gamma, names) in ELSA_SETTINGS.items()
    },
    # The published class scales by (v_dim / heads)^-0.5 unless told 1, as ELSA-Swin does.
    "elsa_k5_gw8_defaults_a": Case(
        mixer=Elsa(kernel_size=5, num_heads=5, group_width=8, lam=1, gamma=1),
        adapt=elsa_with("mul", "add"),
        size=(14, 14),
        qkv_bias=False,
        q_scale=4**-0.5,
    ),
    "elsa_k3_dil2_dimv_a": Case(
        mixer=Elsa(
            kernel_size=3,
            num_heads=3,
            dilation=2,
            group_width=2,
            qk_dim=6,
            v_dim=18,
            lam=1,
            gamma=1,
        ),
        adapt=elsa_with("mul", "add"),
        size=SIZE,
        qkv_bias=False,
        q_scale=6**-0.5,
    ),
    "elsa_k3_groups4_a": Case(
        mixer=Elsa(kernel_size=3, num_heads=4, group_width=2, logit_groups=4),
        adapt=elsa_with("add"),
        size=(7, 7),
        qkv_bias=False,
        q_scale=3**-0.5,
    ),
}


def build(case: Case, fixture: State) -> nn.Module:
    dim = fixture["x"].shape[1] if case.channels_first else fixture["x"].shape[-1]
    place = Place(dim=dim, size=max(case.size), qkv_bias=case.qkv_bias)
    module = MIXERS[case.mixer.kind]([case.mixer], place=place).double().eval()
    state = case.adapt(part(fixture, "p"), case.q_scale)
    if case.adapt is filters:  # DDF's own module has no projections
        state |= {f"{name}.weight": torch.eye(dim).double() for name in ("value", "proj")}
        state |= {f"{name}.bias": torch.zeros(dim).double() for name in ("value", "proj")}
    module.load_state_dict(state)
    return module


def to_map(x: Tensor, case: Case) -> Tensor:
    """Lay a published input out as (B, H, W, C)."""
    x = x.double()
    return x.permute(0, 2, 3, 1) if case.channels_first else x.view(-1, *case.size, x.shape[-1])


def check_gradients(y: Tensor, x: Tensor, module: nn.Module, fixture: State, case: Case) -> None:
    published = part(fixture, "g")
    grads = case.adapt(published, 1 / case.q_scale) if published else {}
    wanted = [module.get_parameter(name) for name in grads]
    gy = fixture["gy"].double()
    gy = gy.permute(0, 2, 3, 1) if case.channels_first else gy.reshape(y.shape)
    gx, *found = torch.autograd.grad(y, [x, *wanted], gy)
    expected = to_map(fixture["gx"], case)
    torch.testing.assert_close(gx, expected.view_as(gx), rtol=1e-5, atol=1e-5)
    for actual, (name, gradient) in zip(found, grads.items(), strict=True):
        torch.testing.assert_close(
            actual, gradient, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("name", CASES)
def test_mixer_matches_the_published_one(name: str) -> None:
    fixture, case = read(name), CASES[name]
    module = build(case, fixture)
    x = to_map(fixture["x"], case).requires_grad_()

    y = module(x, case.mixer)[:, :: case.step, :: case.step]

    expected = fixture["y"].double()
    expected = expected.permute(0, 2, 3, 1) if case.channels_first else expected.view_as(y)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-10)
    check_gradients(y, x, module, fixture, case)


def test_masked_window_attention_matches_the_published_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four windows of 4 x 4 as one shifted map of 8 x 8, with the fixture's random mask."""
    name = "swin_window_attention_mask_a"
    mixer = WindowAttention(window_size=4, num_heads=3)
    scale = 0.3 / 4**-0.5  # the published attention is told qk_scale = 0.3
    case = Case(mixer=mixer, adapt=swin_attention, size=(4, 4), qkv_bias=False, q_scale=scale)
    fixture = read(name)
    masked = (fixture["in::mask"] != 0).repeat(2, 1, 1)  # window index fastest
    monkeypatch.setattr(window_attention, "foreign_pairs", lambda *place: masked)
    place = Place(dim=12, size=8, block=1, qkv_bias=False)
    module = MIXERS[mixer.kind]([mixer], place=place).double()
    module.load_state_dict(swin_attention(part(fixture, "p"), scale))

    def windows(x: Tensor) -> Tensor:
        """Undo the shift of a map and cut it into windows of the fixture's shape."""
        x = x.roll((-2, -2), (1, 2)).unflatten(2, (2, 4)).unflatten(1, (2, 4))
        return x.transpose(2, 3).reshape(4, 16, 12)

    pixels = torch.arange(64 * 12).view(1, 8, 8, 12)
    order = windows(pixels).flatten().argsort()
    x = fixture["x"].double().requires_grad_()

    y = windows(module(x.flatten()[order].view(1, 8, 8, 12), mixer))

    torch.testing.assert_close(y, fixture["y"], rtol=0, atol=1e-10)
    check_gradients(y.view(4, 4, 4, 12), x, module, fixture, case)


def attention_block(state: State, mixer: Mixer, adapt: Adapter) -> State:
    return {
        **take(state, "norm1", "norms.attention"),
        **take(state, "norm2", "norms.attention_mlp"),
        **take(state, "mlp.fc1", "mlp.fc1"),
        **take(state, "mlp.fc2", "mlp.fc2"),
        **under(adapt(inside(state, "attn."), 1.0), f"mixers.{mixer.kind}."),
    }


BLOCKS: dict[str, tuple[Case, float]] = {
    "outlooker_block_a": (
        Case(mixer=OutlookAttention(num_heads=3), adapt=outlook, size=(14, 14), qkv_bias=False),
        3,
    ),
    "volo_transformer_block_a": (
        Case(
            mixer=GlobalAttention(num_heads=3),
            adapt=global_attention,
            size=(5, 7),
            qkv_bias=False,
        ),
        3,
    ),
    "elsa_block_a": (
        Case(
            mixer=Elsa(kernel_size=5, num_heads=4, group_width=8, lam=1, gamma=1),
            adapt=elsa_with("mul", "add"),
            size=(14, 14),
            qkv_bias=False,
        ),
        3,
    ),
    "elsa_swin_block_a": (
        Case(mixer=Elsa(kernel_size=7, num_heads=3), adapt=elsa_with("add"), size=SIZE),
        4,
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_block_matches_the_published_one(name: str) -> None:
    fixture, (case, mlp_ratio) = read(name), BLOCKS[name]
    place = Place(dim=fixture["x"].shape[-1], size=max(case.size), qkv_bias=case.qkv_bias)
    block = Block([case.mixer], place=place, options=BlockOptions(mlp_ratio=mlp_ratio)).double()

    def adapt(state: State, scale: float) -> State:
        return attention_block(state, case.mixer, case.adapt)

    block.load_state_dict(adapt(part(fixture, "p"), 1.0))
    x = to_map(fixture["x"], case).requires_grad_()

    y = block(x, case.mixer, mlp_ratio)

    torch.testing.assert_close(y, fixture["y"].double().view_as(y), rtol=0, atol=1e-10)
    block_case = Case(mixer=case.mixer, adapt=adapt, size=case.size)
    check_gradients(y, x, block, fixture, block_case)


def test_every_gradient_of_a_mixer_is_compared() -> None:
    for name, case in CASES.items():
        fixture = read(name)
        if not part(fixture, "g"):
            continue  # the larger fixtures have the input's gradient only
        names = {key for key, _ in build(case, fixture).named_parameters()}
        unseen = names - case.adapt(part(fixture, "g"), 1.0).keys()
        # DDF's own module has no projections; ours are the identity there.
        if case.adapt is filters:
            unseen = {key for key in unseen if key.split(".")[0] not in ("value", "proj")}
        assert not unseen, name
