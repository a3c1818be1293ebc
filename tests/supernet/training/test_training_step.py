"""A step's shards: which random numbers each draws, how they weigh, what statistics become."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from supernet.recipes.recipe import Recipe
from supernet.training import training_step
from supernet.training.batches import Shard
from supernet.training.finishing import Finish
from supernet.training.training_step import BatchStatistics, Gradients
from tests.tiny_data import changed

RECIPE = changed("quick", amp="none", label_smoothing=0.1)


# A network sees a hundredth of each byte.
HUNDREDTHS = Finish(mean=(0.0,) * 3, std=(100 / 255,) * 3)


def shards_of(pixels: Tensor, labels: Tensor, sizes: Sequence[int]) -> list[Shard]:
    """Split bytes (B, C, H, W)."""
    parts = zip(pixels.split(list(sizes)), labels.split(list(sizes)), strict=True)
    return [
        Shard(
            pixels=some.permute(0, 2, 3, 1),
            labels=targets,
            finish=HUNDREDTHS,
            maps=None,
            share=len(some) / len(pixels),
            read_seconds=0.0,
            augment_seconds=0.0,
        )
        for some, targets in parts
    ]


def pixels_of(count: int) -> Tensor:
    return torch.randint(256, (count, 3, 4, 4), dtype=torch.uint8)


def network_of() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


def gradients_of(network: nn.Module, recipe: Recipe = RECIPE) -> Gradients:
    cpu = torch.device("cpu")
    return Gradients(network, recipe, cpu, torch.amp.GradScaler("cpu", enabled=False))


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (0, 2), (1, 2), (2, 3)])
def test_a_shard_draws_the_numbers_of_its_place_in_the_batch(
    monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int
) -> None:
    asked: list[tuple[Any, ...]] = []
    derived = training_step.derived_seed

    def look(*parts: Any) -> int:
        asked.append(parts)
        return derived(*parts)

    monkeypatch.setattr(training_step, "derived_seed", look)
    monkeypatch.setattr(training_step, "process_place", lambda: (rank, world_size))
    monkeypatch.setattr(training_step, "add_up", lambda tensors: None)
    shards = shards_of(pixels_of(9), torch.arange(9) % 5, (3, 3, 3))

    gradients_of(network_of()).of_step(shards, seed=77)

    # Shards are dealt out like cards.
    places = [rank, rank + world_size, rank + 2 * world_size]
    numbers = [(parts[1], parts[2]) for parts in asked]
    assert numbers == [(what, place) for place in places for what in ("shard", "box")]
    assert all(isinstance(parts[2], int) and parts[0] == 77 for parts in asked)


@pytest.mark.parametrize("sizes", [(8,), (4, 4), (5, 3), (1, 2, 5)])
def test_gradients_and_loss_are_those_of_the_shards_by_their_shares(sizes: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    pixels, labels = pixels_of(8), torch.arange(8) % 5
    images = pixels / 100
    network, twin = network_of(), network_of()
    network.train()

    loss = gradients_of(network).of_step(shards_of(pixels, labels, sizes), seed=3)

    conv, norm, _, head = twin
    total = torch.tensor(0.0)
    means, variances = torch.zeros(4), torch.zeros(4)
    for some, targets in zip(images.split(list(sizes)), labels.split(list(sizes)), strict=True):
        features, share = conv(some), len(some) / 8
        # One batch norm after the other, each from the statistics (0, 1) and with momentum 0.1.
        mean, variance = features.mean((0, 2, 3)), features.var((0, 2, 3), unbiased=False)
        unbiased = features.var((0, 2, 3)).detach()
        means += share * 0.1 * mean.detach()
        variances += share * (0.9 + 0.1 * unbiased)
        by_channel = (1, 4, 1, 1)
        normed = (features - mean.view(by_channel)) / (variance.view(by_channel) + 1e-5).sqrt()
        normed = normed * norm.weight.view(by_channel) + norm.bias.view(by_channel)
        logits = head(normed.flatten(1))
        # Cross entropy with smoothed labels, written out.
        smooth = torch.full_like(logits, 0.1 / 5)
        smooth[torch.arange(len(some)), targets] += 0.9
        total = total - share * (smooth * logits.log_softmax(1)).sum(1).mean()
    total.backward()
    assert loss == pytest.approx(float(total.detach()), rel=1e-6)
    for one, other in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)
    found = network[1]
    assert isinstance(found, nn.BatchNorm2d)
    torch.testing.assert_close(found.running_mean, means)
    torch.testing.assert_close(found.running_var, variances)
    # However many shards there are, it was one batch.
    assert found.num_batches_tracked == 1


def test_a_step_that_is_left_out_leaves_no_trace_in_the_statistics() -> None:
    network = network_of()
    network.train()
    network(torch.randn(4, 3, 4, 4))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    kept = BatchStatistics(network)
    network(10 * torch.randn(4, 3, 4, 4))
    assert not torch.equal(network.state_dict()["1.running_mean"], before["1.running_mean"])

    kept.restore()

    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_sums_over_processes_are_put_back_where_they_came_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two processes with the same tensors: everything doubles, whatever its shape and type."""
    monkeypatch.setattr(training_step.dist, "all_reduce", lambda message: message.mul_(2))
    tensors = [torch.ones(2, 3), torch.tensor(5.0), torch.full((4,), 7.0, dtype=torch.bfloat16)]

    training_step.add_up(tensors)

    assert [t.flatten().tolist() for t in tensors] == [[2.0] * 6, [10.0], [14.0] * 4]
    assert [t.dtype for t in tensors] == [torch.float32, torch.float32, torch.bfloat16]
