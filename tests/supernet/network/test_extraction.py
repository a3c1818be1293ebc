"""Extraction is exact for every mixer kind and setting that `tests.strategies` draws.

The supernets are made from drawn mixers, so kinds and settings that are added to the strategies are
covered without a change here. `tests.supernet.network.test_supernet` checks a fixed space as well.
"""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from searchspace.architecture import Architecture
from searchspace.mixers import MIXER_KINDS, Mixer, mixer_to_dict
from searchspace.space import MixerChoices, SearchSpace, StageChoices
from supernet.mixers.weight_sharing import PROJECTIONS, WeightSharing
from supernet.network.supernet import Supernet, extract
from tests.strategies import mixers

NETWORKS_OF_EACH = 10
DIM = 8
# Settings that all options of a kind in one block share.
ONE_A_BLOCK = ("group_width",)


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    """Draw a space of two stages, each with the settings of a dozen drawn mixers."""
    stages = [
        StageChoices(
            dims=(DIM * (index + 1), 2 * DIM * (index + 1)),
            depths=(2, 1),
            mlp_ratios=(1, 2),
            choices=(MixerChoices(kinds=union(draw(drawn(DIM * (index + 1))))),),
        )
        for index in range(2)
    ]
    return SearchSpace(name="drawn", img_size=14, patch_size=2, num_classes=3, stages=tuple(stages))


def sample(space: SearchSpace, rng: random.Random) -> Architecture:
    """Draw an architecture; settings that do not go together or with a width are drawn again."""
    while True:
        with suppress(ValueError):
            return space.sample(rng)


def drawn(dim: int) -> st.SearchStrategy[list[Mixer]]:
    return st.lists(mixers(dim), min_size=12, max_size=12)


def union(found: list[Mixer]) -> dict[str, dict[str, tuple]]:
    """Offer, for each kind, every value that one of the mixers has."""
    kinds: dict[str, dict[str, tuple]] = {}
    for mixer in found:
        values = mixer_to_dict(mixer)
        options = kinds.setdefault(str(values.pop("kind")), {})
        for name, value in values.items():
            known = options.get(name, ())
            if value not in known and not (known and name in ONE_A_BLOCK):
                options[name] = (*known, value)
    return kinds


@pytest.mark.parametrize(
    "num_supernets",
    [5, pytest.param(30, marks=[pytest.mark.slow, pytest.mark.timeout(900)], id="300 networks")],
)
@pytest.mark.parametrize("projections", PROJECTIONS)
def test_networks_of_drawn_spaces_are_extracted_exactly(
    num_supernets: int, projections: str
) -> None:
    sharing = WeightSharing(projections=projections)
    seen: Counter[str] = Counter()

    @settings(
        max_examples=num_supernets,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(spaces(), st.integers(0, 2**16))
    def check(space: SearchSpace, seed: int) -> None:
        torch.manual_seed(seed)
        supernet = randomise(Supernet(space, sharing=sharing))
        images, labels = torch.randn(2, 3, 14, 14), torch.tensor([0, 2])
        rng = random.Random(seed)
        for _ in range(NETWORKS_OF_EACH):
            architecture = sample(space, rng)
            seen.update(m.kind for stage in architecture.stages for m in stage.mixers)
            subnet = extract(supernet.eval(), architecture)
            with torch.no_grad():
                close(supernet(images, architecture), subnet(images))
            same_step(supernet, subnet, images, labels, architecture)

    check()
    assert set(seen) == set(MIXER_KINDS)


def randomise(network: Supernet) -> Supernet:
    """Give every parameter and running statistic a value of its own: no zeros, no ones."""
    for name, parameter in network.named_parameters():
        scale = max(parameter[0].numel(), 1) ** -0.5 if parameter.dim() > 1 else 0.2
        is_gain = parameter.dim() == 1 and name.endswith("weight")
        nn.init.normal_(parameter, mean=1.0 if is_gain else 0.0, std=scale)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.2)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return network


def same_step(
    supernet: Supernet, subnet: Supernet, images: Tensor, labels: Tensor, architecture: object
) -> None:
    """Compare loss, gradients and running statistics of one training step."""
    before = {name: buffer.clone() for name, buffer in supernet.named_buffers()}
    losses = []
    for network in (supernet.train(), subnet.train()):
        network.zero_grad(set_to_none=True)
        arguments = (images, architecture) if network is supernet else (images,)
        loss = nn.functional.cross_entropy(network(*arguments), labels)
        loss.backward()
        losses.append(loss)
    close(losses[0], losses[1])
    inside = gradients_of(supernet, architecture)
    largest = max(p.grad.abs().max().item() for p in subnet.parameters() if p.grad is not None)
    for name, parameter in subnet.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(inside[name], gradient, rtol=1e-3, atol=1e-5 * (1 + largest))
    selected = supernet.select(architecture)
    for name, buffer in subnet.named_buffers():
        close(selected[name].float(), buffer.float())
    for name, buffer in supernet.named_buffers():
        buffer.copy_(before[name])


def gradients_of(supernet: Supernet, architecture: object) -> dict[str, Tensor]:
    """Select the slices of the gradients as `select` selects those of the weights."""
    kept = {name: parameter.data for name, parameter in supernet.named_parameters()}
    for parameter in supernet.parameters():
        parameter.data = (
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        )
    found = {name: value.detach().clone() for name, value in supernet.select(architecture).items()}
    for name, parameter in supernet.named_parameters():
        parameter.data = kept[name]
    return found


def close(first: Tensor, second: Tensor) -> None:
    """Equal but for the rounding of sums in another order."""
    torch.testing.assert_close(
        first, second, rtol=1e-4, atol=1e-4 * (1 + second.abs().max().item())
    )
