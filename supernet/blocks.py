"""A residual block that holds every mixer it may have, and the patch layers between stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from searchspace.mixers import CONV_KINDS, Mixer
from supernet.mixers import MIXERS
from supernet.mixers.sharing import BatchNorm, new_linear, state_of


class Mlp(nn.Module):
    """The feed-forward part of a block: dim -> hidden -> dim with GELU.

    A smaller MLP is the first hidden channels of a larger one.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = new_linear(dim, hidden)
        self.fc2 = new_linear(hidden, dim)

    def select(self, hidden: int) -> dict[str, Tensor]:
        """Return the state of the module that has only so many hidden channels."""
        return {
            "fc1.weight": self.fc1.weight[:hidden],
            "fc1.bias": self.fc1.bias[:hidden],
            "fc2.weight": self.fc2.weight[:, :hidden],
            "fc2.bias": self.fc2.bias,
        }

    def forward(self, x: Tensor, hidden: int) -> Tensor:
        """Map (..., dim) to (..., dim) through ``hidden`` channels."""
        state = self.select(hidden)
        x = F.gelu(F.linear(x, state["fc1.weight"], state["fc1.bias"]))
        return F.linear(x, state["fc2.weight"], state["fc2.bias"])


class Block(nn.Module):
    """One residual block with all the mixers that a space offers it; the call names the mixer.

    Attention kinds are pre-norm blocks with layer norm (Swin); convolution kinds have no norm in
    front of the mixer and batch norm in front of the MLP (DWNet). The MLP is shared by all kinds.

    Args:
        options: The mixers that the block may have.
        dim: Channels.
        size: Side of the map in tokens.
        block: Index of the block in its stage.
        mlp_ratio: Hidden channels of the largest MLP over ``dim``.
        drop_path: Probability of dropping a residual branch of an image in training.
    """

    def __init__(
        self,
        options: Sequence[Mixer],
        *,
        dim: int,
        size: int,
        block: int,
        mlp_ratio: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        kinds = {mixer.kind: [m for m in options if m.kind == mixer.kind] for mixer in options}
        self.mixers = nn.ModuleDict(
            {
                kind: MIXERS[kind](same_kind, dim=dim, size=size, block=block)
                for kind, same_kind in kinds.items()
            }
        )
        self.norms = nn.ModuleDict()
        if not kinds.keys() <= CONV_KINDS:
            self.norms["attention"] = nn.LayerNorm(dim)
            self.norms["attention_mlp"] = nn.LayerNorm(dim)
        if kinds.keys() & CONV_KINDS:
            self.norms["conv_mlp"] = BatchNorm(dim)
        self.dim = dim
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def select(self, mixer: Mixer, mlp_ratio: float) -> dict[str, Tensor]:
        """Return the state of the block that has only this mixer and MLP."""
        state = self._mixer(mixer).select(mixer)
        found = {f"mixers.{mixer.kind}.{name}": value for name, value in state.items()}
        for name in _norms_of(mixer):
            found |= state_of(self.norms[name], f"norms.{name}")
        mlp = self.mlp.select(int(self.dim * mlp_ratio))
        return found | {f"mlp.{name}": value for name, value in mlp.items()}

    def forward(self, x: Tensor, mixer: Mixer, mlp_ratio: float) -> Tensor:
        """Transform a map (B, H, W, C) with one of the block's mixers and MLPs."""
        mix = self._mixer(mixer)
        *before, before_mlp = (self.norms[name] for name in _norms_of(mixer))
        mixed = before[0](x) if before else x
        x = x + self.drop_path(mix(mixed, mixer))
        hidden = int(self.dim * mlp_ratio)
        return x + self.drop_path(self.mlp(before_mlp(x), hidden))

    def _mixer(self, mixer: Mixer) -> Any:  # one of MIXERS
        if mixer.kind not in self.mixers:
            raise ValueError(
                f"This block offers {', '.join(self.mixers)}, got {mixer.kind}. "
                "Build the supernet from a space that contains the architecture."
            )
        return self.mixers[mixer.kind]


class PatchEmbed(nn.Module):
    """P x P patches that do not overlap, projected and normed: images to maps (B, H, W, C)."""

    def __init__(self, in_chans: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images of shape (B, in_chans, S, S)."""
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Halve a map: 2 x 2 tokens joined, normed, projected (Swin); odd sides are zero-padded."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = new_linear(4 * dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, dim) to (B, ceil(H/2), ceil(W/2), out_dim)."""
        _, height, width, _ = x.shape
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        # Published order: (0, 0), (1, 0), (0, 1), (1, 1).
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(x.flatten(3)))


def _norms_of(mixer: Mixer) -> tuple[str, ...]:
    """Name the norms in front of the mixer (if any) and of the MLP."""
    return ("conv_mlp",) if mixer.kind in CONV_KINDS else ("attention", "attention_mlp")
