"""The closed form counts exactly what the built network has and does.

Parameters are those of the modules; multiply-accumulates are half of the floating-point operations
that torch counts while the network runs (on tensors without memory).
"""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch.utils.flop_counter import FlopCounterMode

from configs import config_names
from searchspace.architecture import Architecture
from searchspace.cost import Cost, count
from searchspace.mixers import split_terms
from searchspace.presets import PRESETS, preset
from searchspace.spec_file import load_space
from supernet.network.supernet import build_subnet
from tests.strategies import architectures

# Deep or wide networks of a family take seconds each; their smallest member is in the default run.
LARGE = ("_s", "_b", "_l", "_d2", "_d3", "_d4", "_d5", "_384", "_448", "_512")


def built_cost(architecture: Architecture) -> Cost:
    with torch.device("meta"):
        network = build_subnet(architecture).eval()
        size = architecture.img_size
        images = torch.empty(1, architecture.in_chans, size, size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(images)
    params = sum(parameter.numel() for parameter in network.parameters())
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return Cost(params, flops // 2)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.slow
            if name.endswith(LARGE) or (name.startswith("swin_t_h") and name != "swin_t_h1")
            else (),
        )
        for name in PRESETS
    ],
)
def test_presets_cost_what_is_counted(name: str) -> None:
    assert built_cost(preset(name)) == count(preset(name))


def has_countable_products(architecture: Architecture) -> bool:
    """Products with one factor are multiplications to torch, which counts them as nothing."""
    return not any(
        getattr(mixer, "window_size", 0) == 1
        or (
            {"qr", "rk"} & set(split_terms(getattr(mixer, "terms", "bias")))
            and getattr(mixer, "num_heads", 0) == stage.dim
        )
        for stage in architecture.stages
        for mixer in stage.mixers
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(architectures().filter(has_countable_products))
def test_any_small_network_costs_what_is_counted(architecture: Architecture) -> None:
    assert built_cost(architecture) == count(architecture)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", config_names("spaces"))
def test_300_networks_of_every_shipped_space_cost_what_is_counted(name: str) -> None:
    space, rng = load_space(name), random.Random(0)
    for architecture in (space.sample(rng) for _ in range(300)):
        assert built_cost(architecture) == count(architecture)
