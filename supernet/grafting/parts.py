"""A part: a mixer or a narrower MLP that may stand where the teacher has its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from searchspace.architecture import Architecture
from searchspace.graft_space import Replacement, offered_replacements, with_replacements
from searchspace.mixers import CONV_KINDS, Mixer, NoMixer
from searchspace.space import SearchSpace
from supernet.grafting.widths import narrowed_mlp
from supernet.network import Supernet, build_block

ATTENTION_NORM = "norms.attention."


class MixerPart(nn.Module):
    """A mixer and the norm in front of it; its tensors have the names that they have in a block.

    Args:
        teacher: The architecture whose block it is for.
        key: Where it stands, and which mixer it is.
    """

    def __init__(self, teacher: Architecture, key: Replacement) -> None:
        super().__init__()
        assert key.mixer is not None
        block = build_block(with_replacements(teacher, [key]), key.stage, key.block)
        self.mixer: Mixer = key.mixer
        self.mixers, self.norms = block.mixers, nn.ModuleDict()
        if key.mixer.kind not in CONV_KINDS:
            self.norms["attention"] = block.norms["attention"]

    def forward(self, x: Tensor) -> Tensor:
        """Compute what is added to a block's map, (B, H, W, C)."""
        normed = self.norms["attention"](x) if "attention" in self.norms else x
        mixed: Tensor = self.mixers[self.mixer.kind](normed, self.mixer)
        return mixed


class MlpPart(nn.Module):
    """A narrower MLP; the norm in front of it is the teacher's and no part of it.

    Args:
        teacher: The architecture whose block it is for.
        key: Where it stands, and its ratio.
    """

    def __init__(self, teacher: Architecture, key: Replacement) -> None:
        super().__init__()
        mlp = build_block(with_replacements(teacher, [key]), key.stage, key.block).mlp
        assert mlp is not None
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C), behind the norm, to what is added to it."""
        added: Tensor = self.mlp(x, self.mlp.hidden)
        return added


Part = MixerPart | MlpPart


def part_name(key: Replacement) -> str:
    """Name a part in the library."""
    return f"{block_name(key)}/{key.what}"


def block_name(key: Replacement) -> str:
    """Name the block in the network that a part is for."""
    return f"stages.{key.stage}.{key.block}"


def part_keys(space: SearchSpace, teacher: Architecture) -> tuple[Replacement, ...]:
    """List the parts that must learn: all that is offered, but no mixer and no MLP."""
    return tuple(one for one in offered_replacements(space, teacher) if _learns(one, teacher))


def _learns(one: Replacement, teacher: Architecture) -> bool:
    if one.mixer is None:
        return one.mlp_ratio > 0
    # Where the teacher mixes nothing there is nothing to learn from.
    own = teacher.stages[one.stage].mixers[one.block]
    return not isinstance(one.mixer, NoMixer) and not isinstance(own, NoMixer)


def new_part(
    teacher: Supernet, key: Replacement, *, seed: int, order: Mapping[str, Tensor]
) -> Part:
    """Make a part that has not learned yet, of the teacher's weights as far as there are any.

    A mixer has them where names and shapes agree; a name is that of the same layer of the block's
    own mixer, of whatever kind. A narrower MLP has the most important hidden channels.

    Args:
        teacher: The trained network.
        key: Which part.
        seed: Of the weights that the teacher has not.
        order: Of the hidden channels of MLPs, from `hidden_order`.
    """
    architecture = teacher.only
    assert architecture is not None
    block = teacher.get_submodule(block_name(key))
    if key.mixer is None:
        narrow = MlpPart(architecture, key)
        channels = order[block_name(key)][: narrow.mlp.hidden]
        narrow.mlp.load_state_dict(narrowed_mlp(block.get_submodule("mlp").state_dict(), channels))
        return narrow
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        part = MixerPart(architecture, key)
    own = architecture.stages[key.stage].mixers[key.block]
    state = part.state_dict()
    for name, value in block.state_dict().items():
        ours = name.replace(f"mixers.{own.kind}.", f"mixers.{key.mixer.kind}.")
        if ours in state and state[ours].shape == value.shape:
            state[ours] = value.detach().clone()
    part.load_state_dict(state)
    return part
