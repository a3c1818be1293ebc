"""The parts of a network, each as a module of its own that is run or exported alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from searchspace.architecture import Architecture
from searchspace.latency_table import Part, parts_of
from supernet.network import Supernet, build_subnet


class _Called(nn.Module):
    """A block with its mixer and MLP ratio said already."""

    def __init__(self, module: nn.Module, *arguments: Any) -> None:
        super().__init__()
        self.module, self.arguments = module, arguments

    def forward(self, images: Tensor) -> Tensor:
        """Run the module."""
        return self.module(images, *self.arguments)


class _Head(nn.Module):
    """What stands behind the last block."""

    def __init__(self, network: Supernet, architecture: Architecture) -> None:
        super().__init__()
        self.network, self.architecture = network, architecture

    def forward(self, images: Tensor) -> Tensor:
        """Turn the last map into logits."""
        return self.network.classify(
            self.network.finish(images, self.architecture), self.architecture
        )


def modules_of_parts(
    networks: Sequence[Architecture], wanted: Collection[Part], *, batch: int, device: torch.device
) -> Iterator[tuple[Part, nn.Module, Tensor]]:
    """Yield each wanted part once, its module in eval mode and an input of its shape.

    Args:
        networks: That have the parts.
        wanted: The parts.
        batch: Images at a time.
        device: Of modules and inputs.
    """
    left = set(wanted)
    for architecture in networks:
        if left.isdisjoint(parts_of(architecture)):
            continue
        network = build_subnet(architecture).to(device).eval()
        size = architecture.img_size
        x = torch.randn(batch, architecture.in_chans, size, size, device=device)
        for part, module in zip(parts_of(architecture), _modules(network), strict=True):
            if part in left:
                left.remove(part)
                yield part, module, x
            with torch.no_grad():
                x = module(x).contiguous()


def _modules(network: Supernet) -> Iterator[nn.Module]:
    """Yield the modules of `parts_of`, in its order."""
    architecture = network.only
    assert architecture is not None
    yield network.patch_embed
    for index, (stage, blocks) in enumerate(zip(architecture.stages, network.stages, strict=True)):
        if index:
            yield network.merges[index - 1]
        for number, block in enumerate(cast(nn.ModuleList, blocks)):
            yield _Called(block, stage.mixers[number], stage.ratios[number])
            if network.space.family == "twins" and number == 0:
                yield network.encodings[index]
    yield _Head(network, architecture)
