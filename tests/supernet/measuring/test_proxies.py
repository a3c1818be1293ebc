"""Each proxy is what its paper defines, computed here in another way."""

from __future__ import annotations

import math
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.measuring.proxies import PROXIES, grad_norm, nwot, proxy_scores, synflow, zen
from supernet.network.supernet import build_subnet
from tests.supernet.network.test_supernet import SPACE


class Small(nn.Module):
    """Two linear layers with ReLU and GELU, called as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 7, bias=False), nn.Linear(7, 5, bias=False)
        self.head = nn.Linear(5, 3, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.first(images.flatten(1)))
        return self.head(F.gelu(self.second(x)))


def test_nwot_counts_agreeing_units() -> None:
    torch.manual_seed(0)
    network, images = Small(), torch.randn(6, 3, 2, 2)
    hidden = network.first(images.flatten(1))
    units = torch.cat([hidden, network.second(F.relu(hidden))], 1) > 0
    kernel = [[float((a == b).sum()) for b in units] for a in units]
    expected = torch.linalg.det(torch.tensor(kernel, dtype=torch.float64)).abs().log()
    assert nwot(network, images) == pytest.approx(expected.item(), rel=1e-5)


def test_synflow_is_conserved_through_layers() -> None:
    """Every layer of a network of |w| and ReLU carries the whole flow R (Tanaka, Theorem 1)."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Flatten(),
        nn.Linear(12, 6, bias=False),
        nn.LayerNorm(6),
        nn.ReLU(),
        nn.Linear(6, 4, bias=False),
    )
    first, second = (m.weight.detach().abs() for m in network if isinstance(m, nn.Linear))
    flow = (second @ first @ torch.ones(12)).sum().item()
    assert synflow(network, torch.randn(1, 3, 2, 2)) == pytest.approx(math.log(2 * flow), rel=1e-5)


def test_gradient_norm_of_a_linear_classifier() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    images, labels = torch.randn(5, 3, 2, 2), torch.tensor([0, 1, 2, 1, 0])
    errors = network(images).softmax(1) - F.one_hot(labels, 3)
    expected = (errors.t() @ images.flatten(1) / 5).norm().item()
    assert grad_norm(network, images, labels) == pytest.approx(expected, rel=1e-5)


class Normed(nn.Module):
    """A projection, an inner norm that takes its scale away, and the last norm."""

    def __init__(self) -> None:
        super().__init__()
        self.proj, self.inner, self.norm = nn.Linear(4, 8), nn.LayerNorm(8), nn.LayerNorm(8)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.inner(self.proj(images.permute(0, 2, 3, 1))))


def test_zen_gives_back_the_scale_that_a_norm_takes_away() -> None:
    torch.manual_seed(0)
    network, images = Normed(), torch.randn(4, 4, 3, 3)
    scores = []
    for factor in (1, 3):
        with torch.no_grad():
            network.proj.weight.mul_(factor)
            network.proj.bias.mul_(factor)
        torch.manual_seed(1)
        scores.append(zen(network, images))
    assert scores[1] - scores[0] == pytest.approx(math.log(3), abs=1e-3)


def test_zen_is_the_change_of_features_under_noise() -> None:
    torch.manual_seed(0)
    network, images = Normed(), torch.randn(4, 4, 3, 3)
    torch.manual_seed(1)
    found = zen(network, images)
    torch.manual_seed(1)
    x = torch.randn_like(images)
    other = x + 0.01 * torch.randn_like(x)
    inner = [network.proj(value.permute(0, 2, 3, 1)) for value in (x, other)]
    change = (network.inner(inner[0]) - network.inner(inner[1])).abs().sum() / len(images)
    deviation = inner[1].var(-1, correction=0).mean().sqrt()
    assert found == pytest.approx((change.log() + deviation.log()).item(), abs=1e-3)


def test_every_proxy_is_finite_for_every_mixer_and_repeats_itself() -> None:
    rng = random.Random(0)
    images, labels = torch.randn(4, 3, 22, 22), torch.tensor([0, 1, 2, 3])
    torch.manual_seed(7)
    state = torch.get_rng_state()
    for architecture in [SPACE.sample(rng) for _ in range(8)]:
        scores = proxy_scores(architecture, images, labels, seed=0)
        assert tuple(scores) == PROXIES
        assert all(math.isfinite(score) for score in scores.values())
        assert scores == proxy_scores(architecture, images, labels, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert build_subnet(architecture).training
