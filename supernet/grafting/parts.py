"""A part: a mixer, with the norm in front of it, that may stand where the teacher has another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from searchspace.architecture import Architecture
from searchspace.graft_space import Replacement, offered_replacements, with_replacements
from searchspace.mixer_text import describe_mixer
from searchspace.mixers import CONV_KINDS, Mixer, NoMixer
from searchspace.space import SearchSpace
from supernet.network import Supernet, build_block

ATTENTION_NORM = "norms.attention."


@dataclass(frozen=True, slots=True)
class PartKey:
    """Where a part stands, and which mixer it is."""

    stage: int
    block: int
    mixer: Mixer

    @property
    def place(self) -> str:
        """The name of its block in the network."""
        return f"stages.{self.stage}.{self.block}"

    def __str__(self) -> str:
        return f"{self.place}/{describe_mixer(self.mixer)}"


class Part(nn.Module):
    """A mixer and the norm in front of it; its tensors have the names that they have in a block.

    Args:
        teacher: The architecture whose block it is for.
        key: Which part.
    """

    def __init__(self, teacher: Architecture, key: PartKey) -> None:
        super().__init__()
        replaced = Replacement(stage=key.stage, block=key.block, mixer=key.mixer)
        block = build_block(with_replacements(teacher, [replaced]), key.stage, key.block)
        self.mixer, self.mixers, self.norms = key.mixer, block.mixers, nn.ModuleDict()
        if key.mixer.kind not in CONV_KINDS:
            self.norms["attention"] = block.norms["attention"]

    def forward(self, x: Tensor) -> Tensor:
        """Compute what is added to a block's map, (B, H, W, C)."""
        normed = self.norms["attention"](x) if "attention" in self.norms else x
        mixed: Tensor = self.mixers[self.mixer.kind](normed, self.mixer)
        return mixed


def part_keys(space: SearchSpace, teacher: Architecture) -> tuple[PartKey, ...]:
    """List the parts that must learn: every mixer offered but the teacher's own, and none."""
    return tuple(
        PartKey(one.stage, one.block, one.mixer)
        for one in offered_replacements(space, teacher)
        if one.mixer is not None
        and not isinstance(one.mixer, NoMixer)
        # Where the teacher mixes nothing there is nothing to learn from.
        and not isinstance(teacher.stages[one.stage].mixers[one.block], NoMixer)
    )


def new_part(teacher: Supernet, key: PartKey, *, seed: int) -> Part:
    """Make a part that has not learned yet: the teacher's weights where names and shapes agree.

    A name is that of the same layer of the block's own mixer, of whatever kind.

    Args:
        teacher: The trained network.
        key: Which part.
        seed: Of the weights that the teacher has not.
    """
    architecture = teacher.only
    assert architecture is not None
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        part = Part(architecture, key)
    own = architecture.stages[key.stage].mixers[key.block]
    state = part.state_dict()
    for name, value in teacher.get_submodule(key.place).state_dict().items():
        ours = name.replace(f"mixers.{own.kind}.", f"mixers.{key.mixer.kind}.")
        if ours in state and state[ours].shape == value.shape:
            state[ours] = value.detach().clone()
    part.load_state_dict(state)
    return part
