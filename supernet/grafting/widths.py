"""Which hidden channels of a trained MLP matter: what a narrower one keeps.

The rule: a channel's importance is the mean size of what it adds to the block, the mean over images
and tokens of ``|GELU(fc1(x))_h|`` times the length of its column of ``fc2``. A narrower MLP keeps
the most important ones, in the order in which they stand, with the teacher's weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.network import Supernet


@torch.no_grad()
def hidden_order(network: Supernet, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Order the hidden channels of every block's MLP, the most important first.

    Args:
        network: A trained network, in eval mode.
        batches: Images (B, in_chans, S, S), normalised.

    Returns:
        Numbers of channels, (hidden,), by the block's name.
    """
    sums: dict[str, Tensor] = {}
    handles = []
    architecture = network.only
    assert architecture is not None
    for index, stage in enumerate(architecture.stages):
        for number in (number for number, ratio in enumerate(stage.ratios) if ratio):
            name = f"stages.{index}.{number}"
            layer = network.get_submodule(f"{name}.mlp.fc1")
            handles.append(layer.register_forward_hook(_adder(sums, name)))
    try:
        for images in batches:
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for name, size in sums.items():
        weight: Tensor = network.get_submodule(f"{name}.mlp.fc2").weight  # type: ignore[assignment]
        importance = size * weight.norm(dim=0).double()
        found[name] = importance.argsort(descending=True, stable=True).cpu()
    return found


def narrowed_mlp(state: Mapping[str, Tensor], channels: Tensor) -> dict[str, Tensor]:
    """Return the state of an MLP that has only some hidden channels, in the order they stand in."""
    kept = channels.sort().values.to(state["fc1.bias"].device)
    return {
        "fc1.weight": state["fc1.weight"].index_select(0, kept),
        "fc1.bias": state["fc1.bias"].index_select(0, kept),
        "fc2.weight": state["fc2.weight"].index_select(1, kept),
        "fc2.bias": state["fc2.bias"],
    }


def _adder(sums: dict[str, Tensor], name: str) -> Any:
    def add(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        size = F.gelu(output).abs().flatten(0, -2).double().sum(0)
        sums[name] = sums[name] + size if name in sums else size

    return add
