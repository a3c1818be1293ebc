"""Convolution mixers, their blocks and networks give what the published code gives, in float64.

DWNet (static, dynamic, inhomogeneous), involution, Swin-MLP and representative batch norm. Outputs
to 1e-10, gradients of input and parameters to 1e-5, train mode and running statistics to 1e-10.

What the published code does and ours does not is done here, around our modules: padding in front of
a convolution block, pooling in front of a strided involution, Swin-MLP's bias and shift, and the
scaling calibration of representative batch norm.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from searchspace.architecture import Architecture, Stage
from searchspace.mixers import (
    DepthwiseConv,
    DynamicDepthwiseConv,
    InhomogeneousDepthwiseConv,
    Involution,
    LocalMlp,
    Mixer,
)
from supernet.kernels import aggregate
from supernet.mixers import MIXERS
from supernet.mixers.inhomogeneous import InvolutionMixer
from supernet.mixers.local_mlp import LocalMlpMixer
from supernet.mixers.norms import CentredBatchNorm
from supernet.mixers.sharing import Place
from supernet.network.blocks import Block, BlockOptions
from supernet.network.supernet import build_subnet
from tests.golden import (
    Convert,
    State,
    check,
    check_parameters,
    check_train_mode,
    inside,
    load,
    network_state,
    read,
    state_of,
    take,
)

DW7 = DepthwiseConv(kernel_size=7)
DDW7 = DynamicDepthwiseConv(kernel_size=7)
IDDW7 = InhomogeneousDepthwiseConv(kernel_size=7, num_groups=4)


def under(prefix: str, state: State) -> State:
    return {f"{prefix}.{name}": value for name, value in state.items()}


def static_filter(state: State) -> State:
    return {"weight": state["weight"].flatten(1).t(), "bias": state["bias"]}


def generator(state: State, kernel_size: int) -> State:
    """Write a generator's last layer, (groups * K*K, hidden, 1, 1), tap by tap."""
    groups_taps = (-1, kernel_size**2)
    return {
        "weight": state["weight"].flatten(1).unflatten(0, groups_taps).transpose(0, 1),
        "bias": state["bias"].unflatten(0, groups_taps).t(),
    }


def dynamic_filter(state: State, kernel_size: int) -> State:
    return {
        "bias": state["bias"],
        **take(state, "conv1", "generator.reduce"),
        **take(state, "bn", "generator.norm"),
        **under("generator", generator(inside(state, "conv2."), kernel_size)),
    }


def inhomogeneous_filter(state: State, kernel_size: int) -> State:
    return {
        **take(state, "conv1.0", "generator.reduce"),
        **take(state, "conv1.1", "generator.norm"),
        **under("generator", generator(inside(state, "conv2.0."), kernel_size)),
    }


def involution_filter(state: State, kernel_size: int) -> State:
    return {
        **take(state, "conv1.conv", "generators.4.reduce"),
        **take(state, "conv1.bn", "generators.4.norm"),
        **under("generators.4", generator(inside(state, "conv2.conv."), kernel_size)),
    }


def convolution_block(state: State, spatial_filter: Convert) -> State:
    return {
        **take(state, "conv0", "pointwise.conv_in"),
        **take(state, "bn0", "pointwise.norm_in"),
        **take(state, "bn", "pointwise.norm_mid"),
        **take(state, "conv2", "pointwise.conv_out"),
        **take(state, "bn2", "pointwise.norm_out"),
        **spatial_filter(inside(state, "conv.")),
    }


def residual_block(state: State, kind: str, spatial_filter: Convert) -> State:
    mixer = convolution_block(inside(state, "attn2conv."), spatial_filter)
    return {
        **under(f"mixers.{kind}", mixer),
        **take(state, "bn", "norms.conv_mlp"),
        **take(state, "mlp.fc1", "mlp.fc1"),
        **take(state, "mlp.fc2", "mlp.fc2"),
    }


FILTERS: dict[str, tuple[Mixer, int, tuple[int, int], Convert]] = {
    "ddw_conv_a": (DDW7, 12, (9, 11), partial(dynamic_filter, kernel_size=7)),
    "iddw_conv_a": (
        InhomogeneousDepthwiseConv(kernel_size=7, num_groups=8),
        24,
        (9, 11),
        partial(inhomogeneous_filter, kernel_size=7),
    ),
    "iddw_conv_k3_a": (
        InhomogeneousDepthwiseConv(kernel_size=3, num_groups=2),
        12,
        (9, 11),
        partial(inhomogeneous_filter, kernel_size=3),
    ),
    "involution_k7_s1_a": (
        Involution(kernel_size=7),
        32,
        (9, 11),
        partial(involution_filter, kernel_size=7),
    ),
}


@pytest.mark.parametrize("name", FILTERS)
def test_a_spatial_filter_is_the_published_one(name: str) -> None:
    fixture = read(name)
    mixer, dim, size, convert = FILTERS[name]
    module: Any = MIXERS[mixer.kind]([mixer], place=Place(dim=dim, size=11)).double().eval()
    module.pointwise = nn.Identity()  # the fixture is the filter without its frame
    load(module, convert(state_of(fixture, "p", "b")))

    def call(x: Tensor) -> Tensor:
        return module.convolve(x.permute(0, 2, 3, 1), mixer).permute(0, 3, 1, 2)

    shape = (dim, *size)
    check(call, fixture, shape)
    check_parameters(module, call, fixture, shape, convert)
    check_train_mode(module, call, fixture, shape, convert)


def test_our_generator_and_filters_with_pooling_are_the_strided_involution() -> None:
    fixture = read("involution_k3_s2_a")
    mixer = Involution(kernel_size=3)
    module = InvolutionMixer([mixer], place=Place(dim=32, size=12)).double().eval()
    module.pointwise = nn.Identity()
    convert = partial(involution_filter, kernel_size=3)
    load(module, convert(state_of(fixture, "p", "b")))

    def call(x: Tensor) -> Tensor:
        pooled = F.avg_pool2d(x, 2).permute(0, 2, 3, 1)
        filters = module.generator(mixer)(pooled, 2, 3)
        # The strided convolution is every second pixel of the whole one.
        everywhere = filters.repeat_interleave(2, 1).repeat_interleave(2, 2)
        y = aggregate(everywhere, x.permute(0, 2, 3, 1).contiguous(), 3)
        return y[:, ::2, ::2].permute(0, 3, 1, 2)

    check(call, fixture, (32, 10, 12))
    check_train_mode(module, call, fixture, (32, 10, 12), convert)


CONVOLUTION_BLOCKS: dict[str, tuple[Mixer, Convert]] = {
    "dw_block_a": (DW7, static_filter),
    "ddw_block_a": (DDW7, partial(dynamic_filter, kernel_size=7)),
    "iddw_block_a": (IDDW7, partial(inhomogeneous_filter, kernel_size=7)),
}


@pytest.mark.parametrize("name", CONVOLUTION_BLOCKS)
def test_a_mixer_is_the_published_convolution_block(name: str) -> None:
    fixture = read(name)
    mixer, spatial_filter = CONVOLUTION_BLOCKS[name]
    convert = partial(convolution_block, spatial_filter=spatial_filter)
    module = MIXERS[mixer.kind]([mixer], place=Place(dim=12, size=11)).double().eval()
    load(module, convert(state_of(fixture, "p", "b")))

    def call(x: Tensor) -> Tensor:
        return module(x, mixer)

    check(call, fixture, (9, 11, 12))
    check_parameters(module, call, fixture, (9, 11, 12), convert)
    check_train_mode(module, call, fixture, (9, 11, 12), convert)


class PaddedToSevens(nn.Module):
    """Our mixer on a map padded with zeros to a multiple of 7, as the detection code pads it."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor, mixer: Mixer) -> Tensor:
        _, height, width, _ = x.shape
        padded = F.pad(x, (0, 0, 0, -width % 7, 0, -height % 7))
        return self.mixer(padded, mixer)[:, :height, :width]


RESIDUAL_BLOCKS: dict[str, tuple[Mixer, Convert]] = {
    "dw_spatial_block_a": (DW7, static_filter),
    "ddw_spatial_block_a": (DDW7, partial(dynamic_filter, kernel_size=7)),
    "iddw_spatial_block_a": (IDDW7, partial(inhomogeneous_filter, kernel_size=7)),
    "dw_spatial_block_det_pad9x11_a": (DW7, static_filter),
}


@pytest.mark.parametrize("name", RESIDUAL_BLOCKS)
def test_a_residual_block_is_the_published_one(name: str) -> None:
    fixture = read(name)
    mixer, spatial_filter = RESIDUAL_BLOCKS[name]
    convert = partial(residual_block, kind=mixer.kind, spatial_filter=spatial_filter)
    block = Block([mixer], place=Place(dim=12, size=11), options=BlockOptions(mlp_ratio=4)).double()
    if "pad" in name:
        block.mixers[mixer.kind] = PaddedToSevens(block.mixers[mixer.kind])

        def convert(state: State) -> State:
            found = residual_block(state, mixer.kind, spatial_filter)
            old, new = f"mixers.{mixer.kind}.", f"mixers.{mixer.kind}.mixer."
            return {name.replace(old, new): value for name, value in found.items()}

    load(block.eval(), convert(state_of(fixture, "p", "b")))

    def call(x: Tensor) -> Tensor:
        return block(x, mixer, 4)

    check(call, fixture, (9, 11, 12))
    check_parameters(block, call, fixture, (9, 11, 12), convert)
    check_train_mode(block, call, fixture, (9, 11, 12), convert)


class SwinMlp(nn.Module):
    """Swin-MLP's mixer around our window weighting: a shift by zero padding, and a bias.

    Our values and outputs are not projected, the weights are shared by all windows and there is no
    relative position table: what is left is the grouped convolution over window positions.
    """

    def __init__(self, mixer: LocalMlp, *, dim: int, shift: int) -> None:
        super().__init__()
        self.shift = shift
        self.ours = LocalMlpMixer([mixer], place=Place(dim=dim, size=99)).double()
        for parameter in self.ours.parameters():
            parameter.requires_grad_(False).zero_()
        self.ours.value.weight.copy_(torch.eye(dim))
        self.ours.proj.weight.copy_(torch.eye(dim))
        assert self.ours.pairs is not None
        self.ours.pairs.requires_grad_(True)
        self.bias = nn.Parameter(torch.zeros(mixer.window_size**2, mixer.num_heads).double())

    def forward(self, x: Tensor, mixer: LocalMlp) -> Tensor:
        window, (_, height, width, dim) = mixer.window_size, x.shape
        before, after = (window - self.shift, self.shift) if self.shift else (0, 0)
        padded = F.pad(x, (0, 0, before, after, before, after))
        bias = self.bias.repeat_interleave(dim // mixer.num_heads, 1)
        rows, columns = (side // window for side in padded.shape[1:3])
        bias_map = bias.unflatten(0, (window, window)).repeat(rows, columns, 1)
        y = self.ours(padded, mixer) + bias_map
        return y[:, before : before + height, before : before + width]


def swin_mlp_block(state: State, heads: int) -> State:
    mixer = "mixers.local_mlp"
    weight = state["spatial_mlp.weight"].flatten(1).unflatten(0, (heads, -1))  # (N, L, L)
    return {
        f"{mixer}.ours.pairs": weight.permute(1, 2, 0),
        f"{mixer}.bias": state["spatial_mlp.bias"].unflatten(0, (heads, -1)).t(),
        **take(state, "norm1", "norms.attention"),
        **take(state, "norm2", "norms.attention_mlp"),
        **take(state, "mlp.fc1", "mlp.fc1"),
        **take(state, "mlp.fc2", "mlp.fc2"),
    }


def load_swin_mlp(module: nn.Module, state: State) -> None:
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) == {n for n, p in module.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize(
    ("name", "shift"), [("swin_mlp_block_shift0_a", 0), ("swin_mlp_block_shift3_a", 3)]
)
def test_our_window_weighting_is_that_of_swin_mlp(name: str, shift: int) -> None:
    fixture = read(name)
    mixer = LocalMlp(window_size=7, num_heads=3, shared_positions=True)
    block = Block([mixer], place=Place(dim=12, size=14), options=BlockOptions(mlp_ratio=4)).double()
    block.mixers["local_mlp"] = SwinMlp(mixer, dim=12, shift=shift)
    load_swin_mlp(block, swin_mlp_block(state_of(fixture, "p"), 3))
    check(lambda x: block(x, mixer, 4), fixture, (14, 14, 12))


def test_a_network_of_our_window_weighting_is_the_published_swin_mlp() -> None:
    fixture = read("net_swin_mlp_a")
    heads = (2, 4)
    architecture = Architecture(
        img_size=32,
        patch_size=4,
        num_classes=10,
        stages=tuple(
            Stage(
                dim=12 * 2**stage,
                mixers=(LocalMlp(window_size=4, num_heads=count, shared_positions=True),) * 2,
            )
            for stage, count in enumerate(heads)
        ),
    )
    network = build_subnet(architecture).double().eval()
    for stage, described in enumerate(architecture.stages):
        for index, mixer in enumerate(described.mixers):
            shift = 2 if stage == 0 and index == 1 else 0  # one window covers the second map
            adapter = SwinMlp(mixer, dim=described.dim, shift=shift)
            network.stages[stage][index].mixers["local_mlp"] = adapter
    state = state_of(fixture, "p", "b")
    load_swin_mlp(
        network, network_state(state, lambda stage: partial(swin_mlp_block, heads=heads[stage]))
    )
    check(network, fixture, (3, 32, 32))


def batch_norm(state: State) -> State:
    names = ("weight", "bias", "center_weight", "running_mean", "running_var")
    return {name: state[name].flatten() for name in names if name in state}


def as_images(norm: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_centred_batch_norm_is_the_published_one_without_scaling() -> None:
    fixture = read("ccbn_centering_only_a")
    norm = CentredBatchNorm(6).double().eval()
    load(norm, batch_norm(state_of(fixture, "p", "b")))
    call = as_images(norm)
    check(call, fixture, (6, 5, 7))
    check_parameters(norm, call, fixture, (6, 5, 7), batch_norm)
    check_train_mode(norm, call, fixture, (6, 5, 7), batch_norm)


class RepresentativeBatchNorm(nn.Module):
    """The published scaling calibration behind our centring, whose affine part stays 1 and 0."""

    def __init__(self) -> None:
        super().__init__()
        self.centred = CentredBatchNorm(6).double()
        self.centred.weight.requires_grad_(False)
        self.centred.bias.requires_grad_(False)
        for name in ("weight", "bias", "scale_weight", "scale_bias"):
            setattr(self, name, nn.Parameter(torch.zeros(6).double()))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.centred(x)
        scale = self.scale_weight * normed.mean((1, 2), keepdim=True) + self.scale_bias
        return self.weight * scale.sigmoid() * normed + self.bias


def test_centring_with_the_published_scaling_is_the_whole_representative_batch_norm() -> None:
    fixture = read("rbn_full_a")

    def convert(state: State) -> State:
        ours = {name: value.flatten() for name, value in state.items()}
        inner = ("center_weight", "running_mean", "running_var")
        return {f"centred.{n}" if n in inner else n: value for n, value in ours.items()}

    norm = RepresentativeBatchNorm().eval()
    affine = {"centred.weight": torch.ones(6), "centred.bias": torch.zeros(6)}
    load(norm, convert(state_of(fixture, "p", "b")) | affine)
    call = as_images(norm)
    check(call, fixture, (6, 5, 7))
    check_parameters(norm, call, fixture, (6, 5, 7), convert)
    check_train_mode(norm, call, fixture, (6, 5, 7), convert)


NETWORKS: dict[str, tuple[Mixer, tuple[int, ...], Convert]] = {
    "net_dwnet_a": (DW7, (2, 1, 1), static_filter),
    "net_ddwnet_a": (
        DynamicDepthwiseConv(kernel_size=5),
        (1, 1, 1),
        partial(dynamic_filter, kernel_size=5),
    ),
    "net_iddwnet_a": (
        InhomogeneousDepthwiseConv(kernel_size=5, num_groups=4),
        (1, 1, 1),
        partial(inhomogeneous_filter, kernel_size=5),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_the_published_one(name: str) -> None:
    fixture = read(name)
    mixer, depths, spatial_filter = NETWORKS[name]
    architecture = Architecture(
        img_size=32,
        patch_size=4,
        num_classes=10,
        stages=tuple(
            Stage(dim=12 * 2**stage, mixers=(mixer,) * depth) for stage, depth in enumerate(depths)
        ),
    )
    network = build_subnet(architecture).double().eval()
    block = partial(residual_block, kind=mixer.kind, spatial_filter=spatial_filter)
    convert = partial(network_state, convert=lambda stage: block)
    load(network, convert(state_of(fixture, "p", "b")))
    check(network, fixture, (3, 32, 32))
    check_train_mode(network, network, fixture, (3, 32, 32), convert)
