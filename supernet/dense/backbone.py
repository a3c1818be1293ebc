"""A network of the search space, or a whole supernet, as the backbone of a detector or segmenter.

As in the published detection code of Swin (Swin-Transformer-Object-Detection@c7b2011), ELSA and
DWNet: no final norm and no classifier, but a norm behind every stage; images are zero-padded to
whole patches; windows keep their size on maps that are smaller (`searchspace.map_rules`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from searchspace.architecture import Architecture, Stage
from searchspace.dense import check_backbone
from searchspace.map_rules import MapRules
from searchspace.mixers import CONV_KINDS
from searchspace.space import SearchSpace
from supernet.mixers import BatchNorm, NarrowPart, WeightSharing
from supernet.network import Supernet


class Backbone(nn.Module):
    """Images to one normed map behind every stage.

    The norm is that of the published backbones: batch norm behind a stage whose blocks are all
    convolutions, layer norm behind any other.

    Args:
        space: The networks that it can be; a space of one point has one.
        rules: What is done at the border of a map.
        drop_path_rate: Stochastic depth of the last block.
        sharing: What the choices of a block share; by default little.

    Raises:
        ValueError: If a network of the space is no backbone for images of every size.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        rules: MapRules,
        drop_path_rate: float = 0.0,
        sharing: WeightSharing | None = None,
    ) -> None:
        super().__init__()
        check_backbone(space)
        self.network = Supernet(space, drop_path_rate, sharing=sharing, backbone=rules)
        self.norms = nn.ModuleList(
            nn.ModuleDict({kind: _new_norm(kind, stage.max_dim) for kind in _norm_kinds(space, i)})
            for i, stage in enumerate(space.stages)
        )
        self._narrow: dict[tuple[int, str, int], NarrowPart] = {}

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels of the widest map of each stage."""
        return tuple(stage.max_dim for stage in self.network.space.stages)

    def checked(self, architecture: Architecture | None) -> Architecture:
        """Return the architecture, or the only one that there is.

        Raises:
            ValueError: If it does not fit the space or is missing.
        """
        return self.network._checked(architecture)

    def strides(self, architecture: Architecture) -> list[int]:
        """Return the pixels between the positions of each map."""
        return [architecture.patch_size * 2**index for index in range(len(architecture.stages))]

    def dims_of(self, architecture: Architecture) -> tuple[int, ...]:
        """Return the channels of each map."""
        return stage_dims(architecture)

    def forward(self, images: Tensor, architecture: Architecture | None = None) -> list[Tensor]:
        """Compute the normed maps (B, C, H, W) of images (B, in_chans, H, W)."""
        architecture = self.checked(architecture)
        patch = architecture.patch_size
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % patch, 0, -height % patch))
        maps = self.network.stage_maps(images, architecture)
        return [
            self._norm(index, stage)(x).permute(0, 3, 1, 2).contiguous()
            for index, (stage, x) in enumerate(zip(architecture.stages, maps, strict=True))
        ]

    def select(self, architecture: Architecture) -> dict[str, Tensor]:
        """Return the state of the architecture's own backbone: slices of the shared weights."""
        state = self.network.select(architecture)
        found = {f"network.{name}": value for name, value in state.items()}
        for index, stage in enumerate(architecture.stages):
            found |= state_of_part(self._norm(index, stage), f"norms.{index}.{norm_kind(stage)}")
        return found

    def _norm(self, index: int, stage: Stage) -> Any:
        kind = norm_kind(stage)
        norms: Any = self.norms[index]
        if stage.dim == self.dims[index]:
            return norms[kind]
        key = (index, kind, stage.dim)
        if key not in self._narrow:
            self._narrow[key] = narrow_part(norms[kind], lambda: _new_norm(kind, stage.dim))
        return self._narrow[key]


def norm_kind(stage: Stage) -> str:
    """Say which norm stands behind a stage."""
    return "batch" if all(mixer.kind in CONV_KINDS for mixer in stage.mixers) else "layer"


def narrow_part(wide: nn.Module, build: Callable[[], nn.Module]) -> NarrowPart:
    """Lend a module of fewer channels the first channels of the wide one's weights."""
    with torch.device("meta"):
        return NarrowPart(wide, build())


def state_of_part(part: Any, prefix: str) -> dict[str, Tensor]:
    """Return the state of a module or of a narrow part, under names that start with ``prefix.``."""
    is_narrow = isinstance(part, NarrowPart)
    state = part.select() if is_narrow else part.state_dict(keep_vars=True)
    return {f"{prefix}.{name}": value for name, value in state.items()}


def stage_dims(architecture: Architecture) -> tuple[int, ...]:
    """Return the channels of each stage."""
    return tuple(stage.dim for stage in architecture.stages)


def _new_norm(kind: str, dim: int) -> nn.Module:
    return BatchNorm(dim) if kind == "batch" else nn.LayerNorm(dim)


def _norm_kinds(space: SearchSpace, index: int) -> Sequence[str]:
    """Say which norms the networks of a space may need behind a stage."""
    blocks = [space.mixers_of(index, block) for block in range(space.stages[index].max_depth)]
    shallowest = min(space.stages[index].depths)
    kinds = []
    if all(any(m.kind in CONV_KINDS for m in mixers) for mixers in blocks[:shallowest]):
        kinds.append("batch")
    if any(m.kind not in CONV_KINDS for mixers in blocks for m in mixers):
        kinds.append("layer")
    return kinds
