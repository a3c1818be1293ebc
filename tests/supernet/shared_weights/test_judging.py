"""Judging an architecture leaves the supernet, and the next judgement, as they were."""

from __future__ import annotations

import torch

from supernet.network.supernet import Supernet, extract
from supernet.shared_weights.calibration import recalibrate
from supernet.training.evaluation import evaluate
from tests.supernet.network.test_supernet import SPACE, randomise, samples


def test_two_judgements_in_a_row_do_not_influence_each_other() -> None:
    torch.manual_seed(0)
    supernet = randomise(Supernet(SPACE)).eval()
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    calibration = [torch.randn(4, 3, 22, 22) for _ in range(2)]
    batches = [(torch.randn(8, 3, 22, 22), torch.randint(5, (8,))) for _ in range(2)]

    def judge(architecture: object) -> tuple[torch.Tensor, object]:
        network = extract(supernet, architecture)
        recalibrate(network, calibration)
        with torch.no_grad():
            return network(batches[0][0]), evaluate(network, batches, "cpu")

    named = samples(5, seed=2)
    forward = [judge(architecture) for architecture in named]
    backward = [judge(architecture) for architecture in reversed(named)][::-1]
    for (logits, accuracy), (again, accuracy_again) in zip(forward, backward, strict=True):
        assert torch.equal(logits, again)
        assert accuracy == accuracy_again
    for name, value in supernet.state_dict().items():
        assert torch.equal(value, before[name]), name
