"""Laws of the supernet: exact extraction, exact counts, untouched foreign weights, clear errors."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn

from searchspace.architecture import Architecture
from searchspace.cost import count
from searchspace.mixers import NORMS
from searchspace.space import MixerChoices, SearchSpace, StageChoices
from searchspace.spec_file import load_space
from supernet.network.supernet import Supernet, build_subnet, extract, extraction_error

TERMS = ("qk+bias", "qr+rk+bias", "qk+qr+rk+bias", "bias", "qk", "qr", "rk", "qk+rk")


def every_choice(dim: int) -> MixerChoices:
    heads = tuple(n for n in (1, 2, 3, 4) if dim % n == 0)
    return MixerChoices(
        kinds={
            "window_attention": {
                "window_size": (3, 4, 8),
                "num_heads": heads,
                "terms": TERMS,
                "norm": NORMS,
            },
            "neighborhood_attention": {
                "kernel_size": (3, 5, 7),
                "num_heads": heads,
                "terms": TERMS,
                "norm": NORMS,
            },
            "depthwise_conv": {"kernel_size": (3, 5, 7)},
            "inhomogeneous_depthwise_conv": {"kernel_size": (3, 5, 7), "num_groups": heads},
            "elsa": {
                "kernel_size": (3, 5, 7),
                "num_heads": heads,
                "lam": (0.0, 0.5, 1.0, 2.0),
                "gamma": (0.0, 1.0, -0.5),
            },
        }
    )


# Eleven tokens a side: no window divides the map, and the second stage is padded when merged.
SPACE = SearchSpace(
    name="every mixer and setting",
    img_size=22,
    patch_size=2,
    num_classes=5,
    stages=(
        StageChoices(
            dims=(12, 24), depths=(1, 2), mlp_ratios=(2, 1), choices=(every_choice(12),) * 2
        ),
        StageChoices(
            dims=(48, 24), depths=(2, 1), mlp_ratios=(1, 1.5, 3), choices=(every_choice(24),)
        ),
    ),
)


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    torch.manual_seed(0)
    return randomise(Supernet(SPACE))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 22, 22, generator=torch.Generator().manual_seed(1))


def randomise(network: Supernet) -> Supernet:
    """Give norms and tables values that show a wrong slice; their defaults prove little."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.normal_(module.weight, mean=1, std=0.2)
            nn.init.normal_(module.bias, std=0.2)
    for name, parameter in network.named_parameters():
        if "table" in name or name.endswith((".add", "head.weight")):
            nn.init.normal_(parameter, std=0.5)
    return network


def samples(number: int, seed: int = 0) -> list[Architecture]:
    rng = random.Random(seed)
    return [SPACE.sample(rng) for _ in range(number)]


def test_an_extracted_network_computes_what_the_supernet_computes(
    supernet: Supernet, images: Tensor
) -> None:
    with torch.no_grad():
        spread = supernet.eval()(images, samples(1)[0]).std().item()
    worst = max(extraction_error(supernet, architecture, images) for architecture in samples(300))
    assert worst <= 1e-5 * max(spread, 1)


def test_a_training_step_is_the_same_inside_and_outside(images: Tensor) -> None:
    torch.manual_seed(0)
    supernet = randomise(Supernet(SPACE)).train()
    for architecture in samples(12, seed=5):
        subnet = extract(supernet, architecture)
        labels = torch.tensor([0, 3])
        supernet.zero_grad(set_to_none=True)
        inside = nn.functional.cross_entropy(supernet(images, architecture), labels)
        outside = nn.functional.cross_entropy(subnet(images), labels)
        inside.backward()
        outside.backward()
        torch.testing.assert_close(inside, outside)
        # The gradient of a slice is the slice of the gradient.
        gradients = Supernet(SPACE)
        for name, parameter in gradients.named_parameters():
            gradient = supernet.get_parameter(name).grad
            parameter.data = torch.zeros_like(parameter) if gradient is None else gradient
        selected = gradients.select(architecture)
        for name, parameter in subnet.named_parameters():
            assert parameter.grad is not None, name
            torch.testing.assert_close(selected[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_a_step_leaves_foreign_weights_without_gradient(images: Tensor) -> None:
    supernet = Supernet(SPACE)
    architecture = samples(1, seed=3)[0]
    supernet(images, architecture).sum().backward()
    depths = [stage.depth for stage in architecture.stages]
    assert depths != [2, 2]
    used = {mixer.kind for stage in architecture.stages for mixer in stage.mixers}
    for name, parameter in supernet.named_parameters():
        kind = name.split("mixers.")[1].split(".")[0] if "mixers." in name else None
        stage, block = map(int, name.split(".")[1:3]) if name.startswith("stages.") else (0, 0)
        if (kind is not None and kind not in used) or block >= depths[stage]:
            assert parameter.grad is None, name


def test_closed_form_parameters_equal_the_built_network() -> None:
    for architecture in samples(60, seed=7):
        built = sum(p.numel() for p in build_subnet(architecture).parameters())
        assert built == count(architecture).params


@pytest.mark.parametrize("name", ["micro", "micro_depth", "micro_width", "swin_t"])
def test_shipped_spaces_count_what_they_build(name: str) -> None:
    space, rng = load_space(name), random.Random(0)
    for architecture in [space.sample(rng) for _ in range(4)]:
        with torch.device("meta"):
            network = build_subnet(architecture)
        assert sum(p.numel() for p in network.parameters()) == count(architecture).params


def test_a_fractional_lambda_gives_no_nan(images: Tensor) -> None:
    def only(name: str, options: tuple[object, ...]) -> object:
        wanted = {"mixer": "elsa", "lam": 0.5}
        return wanted.get(name.rpartition(".")[2], options[0])

    architecture = SPACE.build(only)
    network = build_subnet(architecture)
    network(images).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_a_supernet_asks_for_the_architecture(supernet: Supernet, images: Tensor) -> None:
    with pytest.raises(ValueError, match="pass the architecture"):
        supernet(images)


def test_an_architecture_of_another_space_is_refused(images: Tensor) -> None:
    conv = SPACE.build(lambda name, options: "depthwise_conv" if "mixer" in name else options[0])
    window = SPACE.build(lambda name, options: options[0])
    with pytest.raises(ValueError, match="offers depthwise_conv, got window_attention"):
        build_subnet(conv)(images, window)


def test_a_depth_that_the_space_does_not_offer_is_refused(images: Tensor) -> None:
    shallow, deep = (
        SearchSpace.of(a) for a in (SPACE.first(), SPACE.extreme("macs", largest=True))
    )
    with pytest.raises(ValueError, match=r"stages of depths \[\[1\], \[2\]\], got \[2, 2\]"):
        Supernet(shallow)(images, deep.first())


@pytest.mark.parametrize("size", [1, 2, 6])
def test_other_map_sizes_run(size: int) -> None:
    for architecture in samples(8, seed=11):
        network = build_subnet(architecture).eval()
        assert network(torch.randn(1, 3, 2 * size, 2 * size)).isfinite().all()
