"""The supernet: one network that holds every architecture of a space, weights shared.

The architecture is an argument of the call and never hidden state. A subnet is the supernet of a
space with one point, so there is one implementation of everything.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from searchspace.architecture import Architecture
from searchspace.families import FAMILIES
from searchspace.space import SearchSpace
from supernet.blocks import Block, BlockOptions, PatchEmbed, PatchMerging
from supernet.mixers.sharing import Place, new_linear, state_of


class Supernet(nn.Module):
    """All networks of a space.

    Args:
        space: The space; its mixers decide which weights exist.
        drop_path_rate: Stochastic depth of the last block; earlier blocks have linearly less.
    """

    def __init__(self, space: SearchSpace, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.space = space
        depth = sum(stage.depth for stage in space.stages)
        rates = [drop_path_rate * index / max(depth - 1, 1) for index in range(depth)]
        self.patch_embed = PatchEmbed(space.in_chans, space.stages[0].dim, space.patch_size)
        self.merges = nn.ModuleList(
            PatchMerging(before.dim, after.dim)
            for before, after in zip(space.stages, space.stages[1:], strict=False)
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(
                _build_block(space, index, block, rates.pop(0)) for block in range(stage.depth)
            )
            for index, stage in enumerate(space.stages)
        )
        self.norm = nn.LayerNorm(space.stages[-1].dim)
        self.head = new_linear(space.stages[-1].dim, space.num_classes)
        self.only = space.first() if space.size() == 1 else None

    def forward(self, images: Tensor, architecture: Architecture | None = None) -> Tensor:
        """Classify images with one architecture of the space.

        Args:
            images: Shape (B, in_chans, S, S), normalised.
            architecture: May be left out where the space has only one.

        Returns:
            Logits of shape (B, num_classes).

        Raises:
            ValueError: If the architecture does not fit the space or is missing.
        """
        architecture = self._checked(architecture)
        x = self.patch_embed(images)
        for index, stage in enumerate(architecture.stages):
            if index:
                x = self.merges[index - 1](x)
            for block, mixer in zip(self._blocks(index), stage.mixers, strict=True):
                x = block(x, mixer, stage.mlp_ratio)
        return self.head(self.norm(x).mean((1, 2)))

    def select(self, architecture: Architecture) -> dict[str, Tensor]:
        """Return the state dict of the architecture's own network: slices of the shared weights."""
        architecture = self._checked(architecture)
        state = {}
        for name in ("patch_embed", "merges", "norm", "head"):
            state.update(state_of(getattr(self, name), name))
        for index, stage in enumerate(architecture.stages):
            for number, block in enumerate(self._blocks(index)):
                selected = block.select(stage.mixers[number], stage.mlp_ratio)
                prefix = f"stages.{index}.{number}"
                state.update({f"{prefix}.{name}": value for name, value in selected.items()})
        return state

    def _blocks(self, stage: int) -> list[Block]:
        return list(cast(Iterable[Block], self.stages[stage]))

    def _checked(self, architecture: Architecture | None) -> Architecture:
        architecture = architecture or self.only
        if architecture is None:
            raise ValueError("This supernet holds many networks: pass the architecture to run.")
        depths = [stage.depth for stage in architecture.stages]
        expected = [stage.depth for stage in self.space.stages]
        if depths != expected:
            raise ValueError(f"The supernet has stages of depth {expected}, got {depths}.")
        return architecture


def _build_block(space: SearchSpace, index: int, block: int, drop_path: float) -> Block:
    """Build a block with every mixer that the space offers it."""
    stage, family = space.stages[index], FAMILIES[space.family]
    return Block(
        space.mixers_of(index, block),
        place=Place(
            dim=stage.dim,
            size=space.resolutions[index],
            block=block,
            qkv_bias=family.qkv_bias,
            norm=stage.norm,
        ),
        options=BlockOptions(
            mlp_ratio=max(stage.mlp_ratios),
            drop_path=drop_path,
            norm_eps=family.norm_eps,
            se_reduction=stage.se_reduction,
            local_conv=stage.local_conv,
        ),
    )


def build_subnet(architecture: Architecture, drop_path_rate: float = 0.0) -> Supernet:
    """Build an architecture's own network with fresh weights."""
    return Supernet(SearchSpace.of(architecture), drop_path_rate)


def extract(supernet: Supernet, architecture: Architecture) -> Supernet:
    """Copy an architecture's own network out of the supernet.

    Returns:
        A network in the supernet's mode (train or eval) that shares no memory with it and computes
        exactly what the supernet computes for the architecture.
    """
    with torch.device("meta"):
        subnet = build_subnet(architecture)
    state = {name: value.detach().clone() for name, value in supernet.select(architecture).items()}
    subnet.load_state_dict(state, assign=True)
    for parameter in subnet.parameters():
        parameter.requires_grad_(True)
    return subnet.train(supernet.training)


def extraction_error(supernet: Supernet, architecture: Architecture, images: Tensor) -> float:
    """Measure the largest difference of logits between the supernet and the extracted network.

    Both run in eval mode on the same images.
    """
    was_training = supernet.training
    supernet.eval()
    with torch.inference_mode():
        inside = supernet(images, architecture)
        outside = extract(supernet, architecture)(images)
    supernet.train(was_training)
    return float((inside - outside).abs().max())
