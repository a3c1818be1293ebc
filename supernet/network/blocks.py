"""A residual block that holds every mixer it may have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch.nn.functional as F
from timm.layers import DropPath, SEModule
from torch import Tensor, nn

from searchspace.mixers import CONV_KINDS, Mixer, NoMixer, OutlookAttention
from supernet.mixers import (
    MIXERS,
    DepthwiseConv2d,
    Place,
    build_norm,
    new_linear,
    share_projections,
    state_of,
)


class Mlp(nn.Module):
    """The feed-forward part of a block: dim -> hidden -> dim with GELU.

    A smaller MLP is the first hidden channels of a larger one.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
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
        if hidden == self.hidden:
            return self.fc2(F.gelu(self.fc1(x)))
        state = self.select(hidden)
        x = F.gelu(F.linear(x, state["fc1.weight"], state["fc1.bias"]))
        return F.linear(x, state["fc2.weight"], state["fc2.bias"])


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockOptions:
    """What a block has beside its mixers: see `searchspace.architecture.Stage` and `Family`.

    Attributes:
        mlp_ratio: Hidden channels of the largest MLP over ``dim``; 0 for none, nor its norms.
        drop_path: Probability of dropping a residual branch of an image in training.
        norm_eps: Added to the variance by layer norms.
    """

    mlp_ratio: float
    drop_path: float = 0.0
    norm_eps: float = 1e-5
    se_reduction: int = 0
    local_conv: int = 0


class Block(nn.Module):
    """One residual block with all the mixers that a space offers it; the call names the mixer.

    Attention kinds are pre-norm blocks with layer norm (Swin); convolution kinds have no norm in
    front of the mixer and batch norm in front of the MLP (DWNet). MLP, squeeze-and-excitation and
    the extra depth-wise convolution are shared by all kinds.

    Args:
        mixers: The mixers that the block may have.
        place: Where it stands.
        options: What else it has.
    """

    def __init__(self, mixers: Sequence[Mixer], *, place: Place, options: BlockOptions) -> None:
        super().__init__()
        kinds = {mixer.kind: [m for m in mixers if m.kind == mixer.kind] for mixer in mixers}
        self.mixers = nn.ModuleDict(
            {kind: MIXERS[kind](same_kind, place=place) for kind, same_kind in kinds.items()}
        )
        if place.sharing.projections == "shared" and len(kinds) > 1:
            share_projections(dict(self.mixers.items()), place)
        dim = self.dim = place.dim
        self.norms = nn.ModuleDict()
        if not kinds.keys() <= CONV_KINDS:
            mixes = kinds.keys() - CONV_KINDS != {NoMixer.kind}
            for name, is_used in (("attention", mixes), ("attention_mlp", options.mlp_ratio > 0)):
                if is_used:
                    self.norms[name] = build_norm(
                        dim, place.norm, default="layer", eps=options.norm_eps
                    )
        if kinds.keys() & CONV_KINDS and options.mlp_ratio > 0:
            self.norms["conv_mlp"] = build_norm(dim, place.norm, default="batch")
        has_se = options.se_reduction and kinds.keys() != {NoMixer.kind}
        self.se = SqueezeExcite(dim, options.se_reduction) if has_se else None
        self.local = LocalConv(place, options.local_conv) if options.local_conv else None
        self.mlp = Mlp(dim, int(dim * options.mlp_ratio)) if options.mlp_ratio else None
        self.rules = place.rules
        self.drop_path = DropPath(options.drop_path)

    def select(self, mixer: Mixer, mlp_ratio: float) -> dict[str, Tensor]:
        """Return the state of the block that has only this mixer and MLP."""
        state = self._mixer(mixer).select(mixer)
        found = {f"mixers.{mixer.kind}.{name}": value for name, value in state.items()}
        for name in _norms_of(mixer, mlp_ratio):
            found |= state_of(self.norms[name], f"norms.{name}")
        for name in ("se", "local"):
            is_used = name != "se" or not isinstance(mixer, NoMixer)
            if is_used and getattr(self, name) is not None:
                found |= state_of(getattr(self, name), name)
        if mlp_ratio and self.mlp is not None:
            mlp = self.mlp.select(int(self.dim * mlp_ratio))
            found |= {f"mlp.{name}": value for name, value in mlp.items()}
        return found

    def forward(self, x: Tensor, mixer: Mixer, mlp_ratio: float) -> Tensor:
        """Transform a map (B, H, W, C) with one of the block's mixers and MLPs."""
        mix = self._mixer(mixer)
        # The published VOLO never drops its outlook blocks; they get no rate.
        drop = _kept if isinstance(mixer, OutlookAttention) else self.drop_path
        if not isinstance(mixer, NoMixer):
            normed = x if mixer.kind in CONV_KINDS else self.norms["attention"](x)
            mixed = self._with_border(mix, normed, mixer)
            if self.se is not None:
                mixed = self.se(mixed)
            x = x + drop(mixed)
        if self.local is not None:
            x = x + self.local(x)
        if not mlp_ratio or self.mlp is None:
            return x
        before_mlp = self.norms[_norms_of(mixer, mlp_ratio)[-1]]
        return x + drop(self.mlp(before_mlp(x), int(self.dim * mlp_ratio)))

    def _with_border(self, mix: Any, x: Tensor, mixer: Mixer) -> Tensor:
        """Mix a map that is padded first, where the rules say so."""
        if mixer.kind not in CONV_KINDS or not self.rules.pads_convolutions:
            return cast(Tensor, mix(x, mixer))
        height, width = x.shape[1:3]
        kernel_size: int = mixer.kernel_size  # type: ignore[union-attr]  # convolutions have one
        rows, columns = self.rules.padded((height, width), kernel_size)
        padded = F.pad(x, (0, 0, 0, columns - width, 0, rows - height))
        return cast(Tensor, mix(padded, mixer)[:, :height, :width])

    def unused(self, x: Tensor, mixer: Mixer, mlp_ratio: float) -> tuple[str, ...]:
        """Say how the names of weights start that `forward` does not need."""
        used = _norms_of(mixer, mlp_ratio)
        return (
            *(("mlp.",) if not mlp_ratio else ()),
            *(f"mixers.{kind}." for kind in self.mixers if kind != mixer.kind),
            *(f"norms.{name}." for name in self.norms if name not in used),
        )

    def _mixer(self, mixer: Mixer) -> Any:  # one of MIXERS
        if mixer.kind not in self.mixers:
            raise ValueError(
                f"This block offers {', '.join(self.mixers)}, got {mixer.kind}. "
                "Build the supernet from a space that contains the architecture."
            )
        return self.mixers[mixer.kind]


class SqueezeExcite(SEModule):
    """Squeeze-and-excitation of maps (B, H, W, C) with dim / ``reduction`` hidden channels.

    Hu et al. 2018. The papers do not say where it stands; here it scales the mixer's output, in
    front of the residual sum.
    """

    def __init__(self, dim: int, reduction: int) -> None:
        super().__init__(dim, rd_channels=dim // reduction)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of every image by what its mean says."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class LocalConv(nn.Module):
    """A norm and a depth-wise convolution with bias, as a residual branch in front of the MLP.

    Huang et al. 2021 (Shuffle Transformer), as Han et al. 2022 add it to I-D-DW in Table 6.
    """

    def __init__(self, place: Place, kernel_size: int) -> None:
        super().__init__()
        self.norm = build_norm(place.dim, place.norm, default="batch")
        self.conv = DepthwiseConv2d(place.dim, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the branch of a map (B, H, W, C)."""
        return self.conv(self.norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _kept(branch: Tensor) -> Tensor:
    """Drop no path."""
    return branch


def _norms_of(mixer: Mixer, mlp_ratio: float) -> tuple[str, ...]:
    """Name the norms in front of the mixer and of the MLP, where there are any."""
    is_conv = mixer.kind in CONV_KINDS
    before_mixer = () if is_conv or isinstance(mixer, NoMixer) else ("attention",)
    before_mlp = ("conv_mlp" if is_conv else "attention_mlp",) if mlp_ratio else ()
    return *before_mixer, *before_mlp
