"""Networks made of the teacher and its parts: ordinary networks of their architecture.

Whatever a network shares with the teacher has the teacher's bits; with nothing replaced it is the
teacher.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from searchspace.architecture import Architecture
from supernet.grafting.parts import ATTENTION_NORM, PartKey
from supernet.grafting.widths import kept
from supernet.network import Supernet, build_subnet

# In a library: the order of an MLP's hidden channels.
ORDER = "mlp_order"
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
                "another graft. Name a network of this run."
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
        key = PartKey(
            int(words[1]),
            int(words[2]),
            architecture.stages[int(words[1])].mixers[int(words[2])],
        )
        return self._of_block(architecture, key, words[3])

    def _of_block(self, architecture: Architecture, key: PartKey, name: str) -> Tensor | None:
        own = self._teacher.stages[key.stage].mixers[key.block]
        if name.startswith(("mixers.", ATTENTION_NORM)) and key.mixer != own:
            return self._library.get(f"{key}/{name}")
        if name.startswith(_MLP_NORMS):
            return self._mlp_norm(key.place, name)
        found = self._state.get(f"{key.place}.{name}")
        if found is None or not name.startswith("mlp."):
            return found
        stage = architecture.stages[key.stage]
        return self._narrowed(key.place, name, found, int(stage.dim * stage.ratios[key.block]))

    def _mlp_norm(self, place: str, name: str) -> Tensor | None:
        """Return the teacher's norm in front of the MLP, which has a name for each sort."""
        ending = name.rpartition(".")[2]
        names = (f"{place}.{norm}{ending}" for norm in _MLP_NORMS)
        return next((self._state[name] for name in names if name in self._state), None)

    def _narrowed(self, place: str, name: str, value: Tensor, hidden: int) -> Tensor:
        if name == "mlp.fc2.bias" or hidden == value.shape[name == "mlp.fc2.weight"]:
            return value
        channels = kept(self._library[f"{ORDER}/{place}"], hidden).to(value.device)
        return value.index_select(int(name == "mlp.fc2.weight"), channels)
