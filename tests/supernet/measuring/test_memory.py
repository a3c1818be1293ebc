"""Peak memory counts what lives at the same time, and nothing else."""

from __future__ import annotations

import torch
from torch import nn

from searchspace.cost import count
from supernet.measuring.memory import peak_memory_mib
from supernet.network.supernet import build_subnet
from tests.tiny_trials import network


def test_it_is_the_weights_and_the_largest_maps_that_live_together() -> None:
    layers = nn.Sequential(nn.Linear(256, 1024), nn.Linear(1024, 128), nn.Linear(128, 8))
    weights = sum(p.numel() for p in layers.parameters())
    # The second layer reads the largest map while it writes the next; the images stay.
    floats = weights + 4 * (256 + 1024 + 128)
    found = peak_memory_mib(layers.eval(), torch.zeros(4, 256))
    assert abs(found * 2**20 - 4 * floats) < 2_048


def test_a_network_needs_its_weights_and_more_for_more_images() -> None:
    subnet = build_subnet(network(1)).eval()
    size = network(1).img_size
    one, eight = (peak_memory_mib(subnet, torch.zeros(n, 3, size, size)) for n in (1, 8))
    assert 4 * count(network(1)).params / 2**20 < one < eight
    assert peak_memory_mib(subnet, torch.zeros(1, 3, size, size)) == one
    # Nothing of the tracker stays behind.
    assert subnet(torch.zeros(1, 3, size, size)).requires_grad
