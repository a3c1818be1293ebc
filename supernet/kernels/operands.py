"""What the public operators check at the door; all raise `ValueError` with the remedy."""

from __future__ import annotations

import torch
from torch import Tensor


def check(fits: bool, rule: str, first: Tensor, second: Tensor) -> None:
    """Refuse two operands that break a rule."""
    if not fits:
        raise ValueError(f"{rule}, got shapes {tuple(first.shape)} and {tuple(second.shape)}.")


def check_map(tensor: Tensor, name: str) -> None:
    """Refuse what is not a channels-last map."""
    if tensor.dim() != 4 or tensor.shape[-1] == 0:
        raise ValueError(
            f"The {name} must be a channels-last map (B, H, W, C) with C >= 1, "
            f"got shape {tuple(tensor.shape)}."
        )


def check_taps(tensor: Tensor, name: str, kernel_size: int) -> None:
    """Refuse what has not K*K taps for every pixel and group."""
    if tensor.dim() != 5 or tensor.shape[3] == 0 or tensor.shape[4] != kernel_size**2:
        raise ValueError(
            f"The {name} must have shape (B, H, W, G, K*K) with G >= 1 and K*K = "
            f"{kernel_size**2}, got {tuple(tensor.shape)}. "
            "Slice or reshape them to the kernel size in use."
        )


def check_area(kernel_size: int, dilation: int) -> None:
    """Refuse kernel sizes and dilations below one."""
    if kernel_size < 1 or dilation < 1:
        raise ValueError(
            "The kernel size and the dilation must be at least 1, "
            f"got {kernel_size} and {dilation}."
        )


def check_divides(groups: int, tensor: Tensor, name: str) -> None:
    """Refuse groups that do not divide the channels."""
    channels = tensor.shape[-1]
    if groups < 1 or channels % groups:
        raise ValueError(
            f"The number of groups or heads must divide the channels of the {name}, "
            f"got {groups} and {channels}."
        )


def alike(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Cast both to the dtype of autocast where it is on; refuse two dtypes or devices."""
    device = first.device
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
        first, second = first.to(dtype), second.to(dtype)
    if first.dtype != second.dtype or device != second.device:
        raise ValueError(
            f"The operands must have one dtype and device, got {first.dtype} on {device} and "
            f"{second.dtype} on {second.device}. Convert one with .to()."
        )
    return first, second
