"""Judging an architecture leaves the supernet, and the next judgement, as they were."""

from __future__ import annotations

import torch
from torch import Tensor

from searchspace.architecture import Architecture
from supernet.network.supernet import Supernet, extract
from supernet.training.calibration import recalibrate
from supernet.training.evaluation import evaluate
from tests.supernet.network.test_supernet import SPACE, randomise, samples
from tests.supernet.training.test_calibration import inputs_of, statistics


def logits_by_definition(
    supernet: Supernet, architecture: Architecture, calibration: list[Tensor], images: Tensor
) -> Tensor:
    """Compute logits with the statistics that the architecture's norms see, one by one."""
    inputs = inputs_of(extract(supernet, architecture), calibration)
    network = extract(supernet, architecture).eval()
    for name, given in inputs.items():
        norm = network.get_submodule(name)
        mean, spread = statistics([batch.permute(0, 3, 1, 2) for batch in given])
        norm.running_mean, norm.running_var = mean, spread  # type: ignore[assignment]
    with torch.no_grad():
        return network(images)


def test_judgements_in_any_order_are_those_of_each_network_alone() -> None:
    torch.manual_seed(0)
    supernet = randomise(Supernet(SPACE)).double().eval()
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    calibration = [torch.randn(4, 3, 22, 22).double() for _ in range(2)]
    images, labels = torch.randn(16, 3, 22, 22).double(), torch.randint(5, (16,))
    named = samples(5, seed=2)
    expected = [logits_by_definition(supernet, a, calibration, images) for a in named]

    for order in (range(5), reversed(range(5))):
        for index in order:
            network = extract(supernet, named[index])
            recalibrate(network, calibration)
            accuracy = evaluate(network, [(images, labels)], "cpu")
            with torch.no_grad():
                torch.testing.assert_close(network(images), expected[index])
            assert accuracy.correct == int((expected[index].argmax(1) == labels).sum())
            assert accuracy.total == 16

    for name, value in supernet.state_dict().items():
        assert torch.equal(value, before[name])
