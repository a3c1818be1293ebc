"""No mixer: a block that is its MLP alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from searchspace.mixers import NoMixer
from supernet.mixers.sharing import Place


class NothingMixed(nn.Module):
    """Holds no weights; its branch of the block is zero, and a block leaves it out.

    Args:
        options: As for every mixer.
        place: Likewise.
    """

    def __init__(self, options: Sequence[NoMixer], *, place: Place) -> None:
        super().__init__()

    def select(self, mixer: NoMixer) -> dict[str, Tensor]:
        """Return the state of the mixer's own network: nothing."""
        return {}

    def forward(self, x: Tensor, mixer: NoMixer) -> Tensor:
        """Mix nothing into a map (B, H, W, C)."""
        return torch.zeros_like(x)
