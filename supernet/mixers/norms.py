"""The norms of blocks, for channels-last maps (B, H, W, C)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from searchspace.architecture import BlockNorm


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation of channels-last maps (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel over the batch and all positions.

        Raises:
            ValueError: In train mode, if there is one image of one position (a pooled map).
        """
        if self.training and x.shape[0] * x.shape[1] * x.shape[2] == 1:
            raise ValueError(
                "Batch norm in train mode needs more than one value a channel, got a batch of one "
                "image whose map is 1 x 1 (or pooled). Train with a batch size of at least 2, drop "
                "a last batch of one image, or call eval()."
            )
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class CentredBatchNorm(BatchNorm):
    """Batch norm with centring calibration: ``BN(x + w * mean of x over the map)``.

    Gao et al. 2021, Representative Batch Normalization, without its scaling calibration, as Han et
    al. 2022 (Table 11, CC-BN) use it. ``w`` has one number a channel and starts at 0.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.center_weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Centre every image by a share of its own mean, then normalise."""
        return super().forward(x + self.center_weight * x.mean((1, 2), keepdim=True))


def build_norm(dim: int, norm: BlockNorm, *, default: BlockNorm, eps: float = 1e-5) -> nn.Module:
    """Build a norm of a block.

    Args:
        dim: Channels.
        norm: The norm that the stage asks for.
        default: What ``"default"`` means here: ``layer`` around attention, ``batch`` in and around
            convolutions.
        eps: Added to the variance by layer norm; batch norms use PyTorch's 1e-5.
    """
    match default if norm == "default" else norm:
        case "batch":
            return BatchNorm(dim)
        case "centred_batch":
            return CentredBatchNorm(dim)
        case _:
            return nn.LayerNorm(dim, eps=eps)
