"""Judging in the precision of the device: the pass in it, the logits in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from supernet.training.evaluation import evaluate


@pytest.mark.parametrize(("amp", "dtype"), [("none", torch.float32), ("bf16", torch.bfloat16)])
def test_the_pass_has_the_precision_that_is_asked_for(amp: str, dtype: torch.dtype) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    passed: list[torch.dtype] = []
    network[1].register_forward_hook(lambda *given: passed.append(given[2].dtype))
    logits: list[Tensor] = []
    batches = [(torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 2, 0]))]
    found = evaluate(network, batches, "cpu", logits.append, amp=amp)
    assert passed == [dtype]
    assert [one.dtype for one in logits] == [torch.float32]
    assert found.total == 4
