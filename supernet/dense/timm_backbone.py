"""A network of timm as the backbone of a detector or segmenter, for comparison."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from searchspace.architecture import Architecture
from supernet.mixers import BatchNorm

PREFIX = "timm:"
MOST_MAPS = 4
# What networks call the leave to see images of other sizes than their own.
_ANY_SIZE: tuple[dict[str, Any], ...] = ({}, {"strict_img_size": False})
_TRIED_SIZE = (96, 160)


@dataclass(frozen=True, slots=True)
class TimmTarget:
    """A network of timm, by the name that ``timm.create_model`` knows."""

    name: str

    @property
    def key(self) -> str:
        """A name for it beside the keys of architectures."""
        return f"{PREFIX}{self.name}"

    def to_dict(self) -> dict[str, Any]:
        """Describe it with JSON values."""
        return {"timm": self.name}


class TimmBackbone(nn.Module):
    """Images to one normed map behind each of its last stages, each half as fine as the last.

    As in `supernet.dense.backbone` a norm stands behind every stage: batch norm where the network
    has batch norms, else layer norm.

    Args:
        target: The network.
        drop_path_rate: Stochastic depth, where the network has any.

    Raises:
        ValueError: If timm does not know the network, or it gives no such maps of images of any
            size.
    """

    def __init__(self, target: TimmTarget, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.network = timm_features(target.name, drop_path_rate)
        info: Any = self.network.feature_info
        self.dims: tuple[int, ...] = tuple(info.channels())
        self._strides: list[int] = list(info.reduction())
        has_batch_norms = any(isinstance(part, _BatchNorm) for part in self.network.modules())
        new_norm = BatchNorm if has_batch_norms else nn.LayerNorm
        self.norms = nn.ModuleList(new_norm(dim) for dim in self.dims)

    def checked(self, architecture: Architecture | None) -> None:
        """There is one network, whatever is asked for."""

    def strides(self, _: Architecture | None) -> list[int]:
        """Return the pixels between the positions of each map."""
        return self._strides

    def dims_of(self, _: Architecture | None) -> tuple[int, ...]:
        """Return the channels of each map."""
        return self.dims

    def forward(self, images: Tensor, _: Architecture | None = None) -> list[Tensor]:
        """Compute the normed maps (B, C, H, W) of images (B, 3, H, W).

        They are of the images alone, as those of our networks: not of what is padded.
        """
        height, width = images.shape[-2:]
        step = self._strides[-1]
        images = F.pad(images, (0, -width % step, 0, -height % step))
        found: list[Tensor] = []
        maps = zip(self.network(images), self.norms, self._strides, strict=True)
        for x, norm, stride in maps:
            last = x if _is_channels_last(x, len(found), self.dims) else x.permute(0, 2, 3, 1)
            own = last[:, : -(-height // stride), : -(-width // stride)]
            found.append(norm(own).permute(0, 3, 1, 2).contiguous())
        return found

    def select(self, _: Architecture | None) -> dict[str, Tensor]:
        """Return all of its state."""
        return dict(self.state_dict(keep_vars=True))


def timm_features(name: str, drop_path_rate: float = 0.0, *, file: Path | None = None) -> nn.Module:
    """Build a network of timm that gives its last maps.

    Args:
        file: With its weights, as timm reads them; None: fresh ones.

    Raises:
        ValueError: See `TimmBackbone`; or if the weights are of another network.
    """
    import timm

    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        words = f"Close names: {', '.join(close)}." if close else "See timm.list_models()."
        raise ValueError(f"timm knows no model {name!r}. {words}")
    options, indices = _found_options(name)
    if drop_path_rate and _takes(name, drop_path_rate=drop_path_rate):
        options = {**options, "drop_path_rate": drop_path_rate}
    if file is not None:
        options = {**options, "pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}
    try:
        return timm.create_model(name, features_only=True, out_indices=indices, **options)
    except (RuntimeError, KeyError, OSError) as error:
        raise ValueError(
            f"{file} has no weights of {name} ({str(error)[:200]}). Name a file of timm's."
        ) from error


def _found_options(name: str) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Find out, without memory, how the network takes images of any size, and which maps fit."""
    import timm

    why = ""
    for options in _ANY_SIZE:
        try:
            with torch.device("meta"):
                network: Any = timm.create_model(name, features_only=True, **options).eval()
                network(torch.empty(1, 3, *_TRIED_SIZE))
        # timm's own checks are assertions and errors of all kinds.
        except (AssertionError, ArithmeticError, AttributeError, RuntimeError, TypeError) as error:
            why = why or str(error) or type(error).__name__
            continue
        indices = _halving(network.feature_info.reduction())
        if len(indices) < 2:
            why = f"its maps have the strides {network.feature_info.reduction()}"
            break
        return dict(options), indices
    raise ValueError(
        f"A backbone gives at least two maps of images of every size, each half as fine as the "
        f"last, and timm's {name} does not: {why[:200]}. Choose another network."
    )


def _halving(strides: list[int]) -> tuple[int, ...]:
    """Return the indices of the last maps, each of twice the stride before."""
    found = [len(strides) - 1]
    while (
        found[0] > 0 and len(found) < MOST_MAPS and (strides[found[0]] == 2 * strides[found[0] - 1])
    ):
        found.insert(0, found[0] - 1)
    return tuple(found)


def _takes(name: str, **options: Any) -> bool:
    import timm

    try:
        with torch.device("meta"):
            timm.create_model(name, **options)
    except TypeError:
        logging.getLogger(__name__).warning("timm's %s has no stochastic depth.", name)
        return False
    return True


def _is_channels_last(x: Tensor, index: int, dims: tuple[int, ...]) -> bool:
    return x.shape[1] != dims[index] and x.shape[-1] == dims[index]
