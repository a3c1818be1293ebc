"""Masks as run lengths, by pycocotools, which comes with the extra ``dense``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor


def require_pycocotools() -> None:
    """Check that what masks and AP need is installed.

    Raises:
        ValueError: If it is not.
    """
    if find_spec("pycocotools") is None:
        raise ValueError(
            "Detection needs pycocotools, which is not installed. "
            "Run: pip install 'mixer-search[dense]'"
        )


def decode_masks(masks: Sequence[dict[str, Any]], size: tuple[int, int]) -> Tensor:
    """Decode run lengths into bytes (N, H, W)."""
    from pycocotools import mask as coco_mask

    if not masks:
        return torch.zeros(0, *size, dtype=torch.uint8)
    decoded: np.ndarray = coco_mask.decode(list(masks))  # (H, W, N)
    return torch.from_numpy(np.ascontiguousarray(decoded.transpose(2, 0, 1)))


def encode_masks(masks: Tensor) -> list[dict[str, Any]]:
    """Encode booleans (N, H, W) as run lengths."""
    from pycocotools import mask as coco_mask

    bytes_HWN = np.asfortranarray(masks.cpu().numpy().astype(np.uint8).transpose(1, 2, 0))
    found: list[dict[str, Any]] = coco_mask.encode(bytes_HWN)
    return found
