"""What the public operators check of their operands at the door."""

from __future__ import annotations

import torch
from torch import Tensor


def check_map(tensor: Tensor, name: str) -> None:
    """Refuse what is not a map (B, H, W, C)."""
    if tensor.dim() != 4 or tensor.shape[-1] == 0:
        raise ValueError(
            f"The {name} must be a channels-last map (B, H, W, C) with C >= 1, "
            f"got shape {tuple(tensor.shape)}."
        )


def check_divides(groups: int, tensor: Tensor, name: str) -> None:
    """Refuse groups or heads that do not divide the channels."""
    channels = tensor.shape[-1]
    if groups < 1 or channels % groups:
        raise ValueError(
            f"The number of groups or heads must divide the channels of the {name}, "
            f"got {groups} and {channels}."
        )


def alike(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Cast both to the dtype of autocast where it is on; refuse two dtypes or devices."""
    device = first.device
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
        first, second = first.to(dtype), second.to(dtype)
    if first.dtype != second.dtype or device != second.device:
        raise ValueError(
            f"The operands must have one dtype and device, got {first.dtype} on {device} and "
            f"{second.dtype} on {second.device}. Convert one with .to()."
        )
    return first, second
