"""Networks made of the teacher and its parts: ordinary networks of their architecture.

Whatever a network shares with the teacher has the teacher's bits; with nothing replaced it is the
teacher.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from searchspace.architecture import Architecture
from searchspace.graft_space import Replacement
from supernet.grafting.parts import ATTENTION_NORM, block_name, part_name
from supernet.network import Supernet, build_subnet

_MLP_NORMS = ("norms.attention_mlp.", "norms.conv_mlp.")


def assemble(
    architecture: Architecture, teacher: Supernet, library: Mapping[str, Tensor]
) -> Supernet:
    """Build a network of the teacher's space with the weights of its parts.

    Args:
        architecture: What to build.
        teacher: The trained network.
        library: The tensors of all parts, see `supernet.grafting.library`.

    Returns:
        A network in eval mode that shares no memory with the others.

    Raises:
        ValueError: If the library lacks a part.
    """
    assert teacher.only is not None
    source = _Source(teacher.only, teacher.state_dict(), library)
    with torch.device("meta"):
        network = build_subnet(architecture)
    state = {}
    for name, wanted in network.state_dict().items():
        value = source.tensor(architecture, name)
        if value is None or value.shape != wanted.shape:
            raise ValueError(
                f"The library of the graft has no {name} for {architecture.key}, which is of "
                "another graft, or of one before narrower MLPs learned. Name a network of this "
                "run, or use the version of mixer-search that began it."
            )
        state[name] = value.detach().clone()
    network.load_state_dict(state, assign=True)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return network.eval()


class _Source:
    """Where each tensor of an assembled network comes from."""

    def __init__(
        self, teacher: Architecture, state: Mapping[str, Tensor], library: Mapping[str, Tensor]
    ) -> None:
        self._teacher, self._state, self._library = teacher, state, library

    def tensor(self, architecture: Architecture, name: str) -> Tensor | None:
        """Find a tensor of an architecture by its name."""
        words = name.split(".", 3)
        is_of_block = words[0] == "stages" and len(words) == 4
        if not is_of_block:
            return self._state.get(name)
        stage, block = int(words[1]), int(words[2])
        return self._of_block(architecture, stage, block, words[3])

    def _of_block(
        self, architecture: Architecture, stage: int, block: int, name: str
    ) -> Tensor | None:
        own, new = self._teacher.stages[stage], architecture.stages[stage]
        key = Replacement(stage=stage, block=block, mixer=new.mixers[block])
        if name.startswith(("mixers.", ATTENTION_NORM)) and key.mixer != own.mixers[block]:
            return self._library.get(f"{part_name(key)}/{name}")
        if name.startswith("mlp.") and new.ratios[block] != own.ratios[block]:
            key = Replacement(stage=stage, block=block, mlp_ratio=new.ratios[block])
            return self._library.get(f"{part_name(key)}/{name}")
        if name.startswith(_MLP_NORMS):
            return self._mlp_norm(block_name(key), name)
        return self._state.get(f"{block_name(key)}.{name}")

    def _mlp_norm(self, place: str, name: str) -> Tensor | None:
        """Return the teacher's norm in front of the MLP, which has a name for each sort."""
        ending = name.rpartition(".")[2]
        names = (f"{place}.{norm}{ending}" for norm in _MLP_NORMS)
        return next((self._state[name] for name in names if name in self._state), None)
