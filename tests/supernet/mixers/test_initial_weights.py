"""Initial weights are drawn as each paper or layer says: spread, bounds, and no two alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

import pytest
import torch
from torch import Tensor

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
from supernet.mixers import MIXERS
from supernet.mixers.sharing import Place

DIM = 96
Check = Callable[[Tensor], None]


def uniform(inputs: int) -> Check:
    """U(-b, b) with b = inputs^-1/2: what PyTorch's layers of so many inputs start with."""

    def check(value: Tensor) -> None:
        bound = inputs**-0.5
        assert value.abs().max() <= bound
        assert_spread(value, bound / math.sqrt(3))

    return check


def normal(std: float) -> Check:
    return lambda value: assert_spread(value, std)


def assert_spread(value: Tensor, std: float) -> None:
    """Compare mean and deviation with those of the distribution, within five standard errors."""
    error = 5 * std / math.sqrt(value.numel())
    assert value.mean().abs() <= error
    # The deviation of n numbers has about the relative error (2 n)^-1/2.
    assert abs(value.std() - std) <= error
    assert value.unique().numel() > 0.9 * value.numel()


def zero(value: Tensor) -> None:
    assert not value.any()


def one(value: Tensor) -> None:
    assert (value == 1).all()


TABLE = normal(0.02)  # N(0, .02), as Swin's
SWIN = {"*proj.weight": TABLE, "value.weight": TABLE, "query*.weight": TABLE, "*bias": zero}
POINTWISE = {
    "pointwise.conv_*.weight": uniform(DIM),
    "*norm*.weight": one,
    "*norm*.bias": zero,
}
CASES: list[tuple[Mixer, Mapping[str, Check]]] = [
    (
        WindowAttention(window_size=7, num_heads=3, terms="qk+qr+rk+static+bias"),
        {"*table_*": TABLE, "attention.*.weight": TABLE, "attention.*.bias": zero},
    ),
    (
        NeighborhoodAttention(kernel_size=7, num_heads=3, conv="pre_full"),
        {
            "*pre_convs.pre_full.weight": uniform(9 * DIM),
            "*norm.weight": one,
            "*table_*": TABLE,
            "attention.*.weight": TABLE,
            "*bias": zero,
        },
    ),
    (
        NeighborhoodAttention(kernel_size=7, num_heads=3, conv="pre_depthwise"),
        {
            "*pre_convs.pre_depthwise.weight": uniform(9),
            "*norm.weight": one,
            "*table_*": TABLE,
            "attention.*.weight": TABLE,
            "*bias": zero,
        },
    ),
    (
        LocalMlp(window_size=7, num_heads=3, shared_positions=True),
        {"pairs": TABLE, "table_bias": TABLE, **SWIN},
    ),
    (
        LocalMlp(window_size=7, num_heads=3, shared_positions=False),
        {"window_pairs.7": TABLE, "table_bias": TABLE, **SWIN},
    ),
    (DepthwiseConv(kernel_size=7), {"weight": uniform(49), "bias": uniform(49), **POINTWISE}),
    (
        DepthwiseConv(kernel_size=5, shared_positions=False),
        {"position_weight": uniform(25), "bias": uniform(25), **POINTWISE},
    ),
    (
        DynamicDepthwiseConv(kernel_size=7),
        {
            **POINTWISE,
            "generator.reduce.weight": uniform(DIM),
            "generator.weight": uniform(DIM // 4),
            "generator.bias": uniform(DIM // 4),
            "bias": zero,
        },
    ),
    (
        InhomogeneousDepthwiseConv(kernel_size=7, num_groups=3),
        {
            **POINTWISE,
            "generator.reduce.*": uniform(DIM),
            "generator.weight": uniform(DIM // 4),
            "generator.bias": uniform(DIM // 4),
        },
    ),
    (
        # Published: N(0, 2 / fan_out), fan_out the outputs of the 1x1 convolution.
        Involution(kernel_size=7, group_channels=32, reduction=4),
        {
            **POINTWISE,
            "generators.4.reduce.weight": normal(math.sqrt(2 / (DIM // 4))),
            "generators.4.weight": normal(math.sqrt(2 / (3 * 49))),
            "generators.4.bias": zero,
        },
    ),
    (
        DecoupledDynamicFilter(kernel_size=5, num_heads=3, se_ratio=0.5),
        {
            "reduce.*": uniform(DIM),
            "spatial_*": uniform(DIM),
            "channel_*": uniform(DIM // 2),
            # Published: N(0, 2 / K^2) for the learned deviation.
            "deviation": normal(math.sqrt(2) / 5),
            **SWIN,
        },
    ),
    (OutlookAttention(num_heads=3), {"weight": TABLE, **SWIN}),
    (
        Elsa(kernel_size=5, num_heads=3, lam=1, gamma=1, group_width=8, qk_dim=DIM),
        {
            "in_proj.*": uniform(DIM),
            "conv_*": uniform(8 * 25),
            "logit_*": uniform(DIM),
            "mul": normal(1.0),
            "add": TABLE,
            "proj.weight": TABLE,
            "proj.bias": zero,
        },
    ),
    (
        GlobalAttention(num_heads=3, sr_ratio=2),
        {
            # Published: He et al. 2015, fan out.
            "reductions.2.conv.weight": normal(math.sqrt(2 / (4 * DIM))),
            "reductions.2.norm.weight": one,
            **SWIN,
        },
    ),
]


@pytest.mark.parametrize(
    ("mixer", "rules"), CASES, ids=[f"{m.short}-{i}" for i, (m, _) in enumerate(CASES)]
)
def test_initial_weights_have_their_distribution(mixer: Mixer, rules: Mapping[str, Check]) -> None:
    torch.manual_seed(0)
    module = MIXERS[mixer.kind]([mixer], place=Place(dim=DIM, size=14))
    for name, parameter in module.named_parameters():
        found = [check for pattern, check in rules.items() if fnmatchcase(name, pattern)]
        assert found, f"no rule for {name}"
        found[0](parameter.detach())
