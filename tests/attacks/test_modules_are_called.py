"""In a network of its own every layer is called: hooks, wrappers, pruning and quantisation work.

A layer whose weight is read and that is never called ignores what others put around it, without a
word. So every part of every network is tried: each mixer and setting, what surrounds the blocks,
presets, and networks that were taken out of a supernet.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn
from torch.ao.quantization import quantize_dynamic
from torch.nn.utils import prune

from searchspace.architecture import Architecture, Stage
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
from searchspace.space import MixerChoices, SearchSpace, StageChoices
from supernet.exchange.timm_models import TimmNetwork
from supernet.mixers.weight_sharing import WeightSharing
from supernet.network.supernet import Supernet, build_subnet, extract
from tests.strategies import architectures

MIXERS: tuple[Mixer, ...] = (
    WindowAttention(window_size=3, num_heads=2),
    WindowAttention(window_size=3, num_heads=2, terms="bias"),
    WindowAttention(window_size=3, num_heads=2, terms="qk+qr+rk+static+bias", conv="post"),
    *(
        WindowAttention(window_size=3, num_heads=2, conv=conv)  # type: ignore[arg-type]
        for conv in ("pre", "pre_depthwise", "pre_full")
    ),
    NeighborhoodAttention(kernel_size=3, num_heads=2),
    NeighborhoodAttention(kernel_size=3, num_heads=2, terms="qr+static", conv="pre"),
    LocalMlp(window_size=3, num_heads=2),
    LocalMlp(window_size=3, num_heads=2, shared_positions=False),
    DepthwiseConv(kernel_size=3),
    DepthwiseConv(kernel_size=3, shared_positions=False),
    DynamicDepthwiseConv(kernel_size=3),
    InhomogeneousDepthwiseConv(kernel_size=3, num_groups=2),
    Involution(kernel_size=3, group_channels=4),
    DecoupledDynamicFilter(kernel_size=3, num_heads=2),
    DecoupledDynamicFilter(kernel_size=3, num_heads=2, combine="add"),
    OutlookAttention(num_heads=2),
    Elsa(kernel_size=3, num_heads=2),
    Elsa(kernel_size=3, num_heads=2, v_dim=4, qk_dim=4, logit_groups=2),
    GlobalAttention(num_heads=2),
    GlobalAttention(num_heads=2, sr_ratio=2),
)
PRESETS = (
    "swin_t_se",
    "swin_t_ccbn",
    "net7_t",
    "elsa_volo_d1",
    "twins_svt_s",
    "id_dwconv_dw_t",
    "d_dwconv_t",
    "local_mlp_t",
    "ddf_swin_t",
)


def network_of(family: str, *mixers: Mixer) -> Architecture:
    """Three stages with every part of a family, and these mixers in the first and last."""
    dims = (16, 32, 32) if family == "volo" else (16, 32, 16)
    return Architecture(
        family=family,  # type: ignore[arg-type]
        img_size=64,
        patch_size=4,
        num_classes=5,
        stem_dim=4 if family == "volo" else 0,
        stages=tuple(
            Stage(dim=dim, mixers=mixers, mlp_ratio=1.5, se_reduction=1, local_conv=3)
            for dim in dims
        ),
    )


def randomised(network: Supernet) -> Supernet:
    """Give all weights values that let every layer reach the output."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.eval()


def images_for(network: Supernet, number: int = 2) -> Tensor:
    space, generator = network.space, torch.Generator().manual_seed(1)
    return torch.randn(number, space.in_chans, space.img_size, space.img_size, generator=generator)


def owners(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield all modules that have parameters of their own, leaves or not."""
    for name, module in network.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            yield name, module


def uncalled(network: Supernet) -> list[str]:
    """Run a network and name the modules with parameters whose hooks did not fire."""
    called: set[nn.Module] = set()
    hooks = [
        module.register_forward_hook(lambda module, *_: called.add(module))
        for _, module in owners(network)
    ]
    with torch.no_grad():
        network(images_for(network, 1))
    for hook in hooks:
        hook.remove()
    return [name for name, module in owners(network) if module not in called]


class Scaled(nn.Module):
    """Stands in the place of a layer of one input, as adapters do, and hides its attributes."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * 1.5 + 1


def standard_layers(network: nn.Module) -> list[str]:
    kinds = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.BatchNorm2d)
    return [name for name, module in network.named_modules() if isinstance(module, kinds)]


def check_wrappers(network: Supernet, names: list[str]) -> None:
    images = images_for(network)
    with torch.no_grad():
        before = network(images)
        for name in names:
            layer = network.get_submodule(name)
            network.set_submodule(name, Scaled(layer))
            assert not torch.equal(network(images), before), name
            network.set_submodule(name, layer)
        assert torch.equal(network(images), before)


@pytest.mark.parametrize("mixer", MIXERS, ids=[f"{i}-{m.short}" for i, m in enumerate(MIXERS)])
def test_every_layer_of_every_mixer_is_called_and_can_be_wrapped(mixer: Mixer) -> None:
    network = randomised(build_subnet(network_of("swin", mixer, mixer)))
    assert uncalled(network) == []
    check_wrappers(network, standard_layers(network))


@pytest.mark.parametrize("family", ["twins", "volo"])
def test_every_layer_around_the_blocks_is_called_and_can_be_wrapped(family: str) -> None:
    network = randomised(
        build_subnet(network_of(family, GlobalAttention(num_heads=2), DepthwiseConv(kernel_size=3)))
    )
    assert uncalled(network) == []
    check_wrappers(network, standard_layers(network))


@pytest.mark.parametrize("name", PRESETS)
def test_every_layer_of_a_preset_is_called(name: str) -> None:
    architecture = preset(name)
    assert uncalled(TimmNetwork(architecture).eval()) == []


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(architectures())
def test_every_layer_of_a_drawn_network_is_called(architecture: Architecture) -> None:
    assert uncalled(build_subnet(architecture).eval()) == []


@pytest.mark.parametrize("sharing", ["unshared", "shared"])
def test_every_layer_of_an_extracted_network_is_called_and_the_output_stays(sharing: str) -> None:
    """The supernet slices all of its layers for these networks; theirs it does not."""
    kinds: dict[str, dict[str, tuple[object, ...]]] = {
        "window_attention": {
            "window_size": (2, 3),
            "num_heads": (1, 2),
            "terms": ("qk", "bias", "qk+qr+rk"),
            "conv": ("none", "pre", "post"),
        },
        "elsa": {"kernel_size": (3, 5), "num_heads": (2,), "v_dim": (0, 4), "qk_dim": (4, 8)},
        "global_attention": {"num_heads": (2,), "sr_ratio": (1, 2, 3)},
        "decoupled_dynamic_filter": {
            "kernel_size": (3,),
            "num_heads": (2,),
            "se_ratio": (0.25, 0.5),
        },
        "depthwise_conv": {"kernel_size": (3, 5)},
        "local_mlp": {"window_size": (2, 3), "num_heads": (2,), "shared_positions": (True, False)},
    }
    stage = StageChoices(
        dims=(8, 16),
        depths=(1, 2),
        mlp_ratios=(1, 2),
        local_conv=3,
        choices=(MixerChoices(kinds=kinds),),
    )
    space = SearchSpace(name="all", img_size=24, patch_size=4, num_classes=3, stages=(stage,) * 2)
    supernet = randomised(Supernet(space, sharing=WeightSharing(projections=sharing)))
    rng, images = random.Random(0), images_for(supernet)
    for _ in range(25):
        architecture = space.sample(rng)
        network = extract(supernet, architecture)
        assert uncalled(network) == []
        with torch.no_grad():
            difference = (network(images) - supernet(images, architecture)).abs().max()
        assert difference <= 1e-5 * images.shape[0]


def test_low_rank_adapters_learn_and_add_what_their_matrices_say() -> None:
    """fc1 with an adapter is a layer of the weight W + B A: the definition of LoRA."""
    torch.manual_seed(0)
    network = randomised(build_subnet(network_of("swin", *MIXERS[:1])))
    expected, images = copy.deepcopy(network), images_for(network)
    for name in standard_layers(network):
        layer = network.get_submodule(name)
        if isinstance(layer, nn.Linear):
            adapter = Adapter(layer)
            network.set_submodule(name, adapter)
            merged = expected.get_submodule(name)
            merged.weight.data += (adapter.up.weight @ adapter.down.weight).detach()

    torch.testing.assert_close(network(images), expected(images), rtol=1e-4, atol=1e-4)
    network(images).square().sum().backward()
    adapters = [module for module in network.modules() if isinstance(module, Adapter)]
    assert len(adapters) > 10
    assert all(a.up.weight.grad is not None and a.up.weight.grad.any() for a in adapters)


class Adapter(nn.Module):
    """``y = layer(x) + B A x``; the layer itself does not learn."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, 2, bias=False)
        self.up = nn.Linear(2, layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


@pytest.mark.parametrize("mixer", MIXERS, ids=[f"{i}-{m.short}" for i, m in enumerate(MIXERS)])
def test_pruned_weights_stay_zero_while_the_rest_learns(mixer: Mixer) -> None:
    """Pruning computes the masked weight in a hook before each call of the module that has it."""
    network = randomised(build_subnet(network_of("swin", mixer))).train()
    for _, module in owners(network):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.dim() > 1:
                prune.l1_unstructured(module, name, amount=0.5)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    for _ in range(2):  # without the hook the second step would go through the first one's graph
        optimizer.zero_grad()
        network(images_for(network)).square().mean().backward()
        optimizer.step()
    network(images_for(network))
    for path, module in owners(network):
        for name, mask in module.named_buffers(recurse=False):
            if name.endswith("_mask"):
                weight = getattr(module, name.removesuffix("_mask"))
                learned = getattr(module, name.removesuffix("_mask") + "_orig")
                assert torch.equal(weight, learned * mask), (path, name)


@pytest.mark.filterwarnings("ignore:.*deprecated")  # torch's own words about its quantisation
@pytest.mark.parametrize("name", ["swin", "twins", "volo"])
def test_a_quantised_network_computes_with_quantised_layers(name: str) -> None:
    mixers = (WindowAttention(window_size=3, num_heads=2), GlobalAttention(num_heads=2, sr_ratio=2))
    network = randomised(build_subnet(network_of(name, *mixers[name == "volo" :])))
    images = images_for(network)
    quantised = quantize_dynamic(network, {nn.Linear})
    assert not [name for name, module in quantised.named_modules() if type(module) is nn.Linear]
    expected = network(images)
    error = (quantised(images) - expected).abs().max() / expected.abs().max()
    assert 0 < error < 0.2
