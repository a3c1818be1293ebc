"""Half precision and norms over several devices change how a step runs, not what it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from searchspace.space import SearchSpace
from supernet.data.dense import open_dense_data
from supernet.dense.batches import TrainOrder, train_batches
from supernet.dense.network import build_dense
from supernet.dense.options import dense_options
from supernet.dense.sync_norms import sync_batch_norms
from supernet.dense.training import gradients_of_step
from tests.tiny_dense import architecture, recipe, write_data


@pytest.mark.timeout(300)
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
@pytest.mark.parametrize("name", ["cells_semantic", "cascade_mask_rcnn_1x"])
def test_half_precision_gives_about_the_same_loss_and_finite_gradients(
    tmp_path: Path, name: str, amp: str
) -> None:
    chosen = recipe(name, drop_path=0.0)
    data = open_dense_data(str(write_data(tmp_path / "cells")), chosen.task, unpack_to=tmp_path)
    order = TrainOrder(data.train, chosen, 0)
    (shards,) = list(train_batches(order, 0, 1, rank=0, world_size=1, workers=0))
    losses = []
    for precision in ("none", amp):
        torch.manual_seed(0)
        options = dense_options(chosen, len(data.class_names))
        network = build_dense(SearchSpace.of(architecture()), options).train()
        # Its usual first scale overflows here, and the first steps are then left out.
        scaler = torch.amp.GradScaler("cpu", 128.0, enabled=precision == "fp16")
        device = torch.device("cpu")
        losses.append(
            gradients_of_step(network, shards, 0, device=device, amp=precision, scaler=scaler)
        )
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        assert len(gradients) == len(list(network.parameters()))
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_synchronised_norms_have_the_same_weights_and_eval_as_before() -> None:
    torch.manual_seed(0)
    options = dense_options(recipe("cascade_mask_rcnn_1x"), 2)
    network = build_dense(SearchSpace.of(architecture()), options).eval()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    images = torch.randn(1, 3, 64, 64)
    before = network.backbone(images)
    sync_batch_norms(network)
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    after = network.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], state[name]) for name in state)
    for one, other in zip(before, network.backbone(images), strict=True):
        assert torch.equal(one, other)
