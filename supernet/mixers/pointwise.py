"""The frame of convolution blocks: 1x1 convolutions and norms around the spatial filter.

Han et al. 2022 (https://arxiv.org/abs/2106.04263), as in the first published DWNet code: a 1x1
convolution without bias, batch norm, ReLU, the spatial filter, batch norm, ReLU, a 1x1 convolution
without bias, batch norm. There is no norm in front; convolutions keep PyTorch's default
initialisation. RedNet's bottleneck (Li et al. 2021) puts involution in the same frame.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from supernet.mixers.norms import build_norm
from supernet.mixers.sharing import Place


class Pointwise(nn.Module):
    """The 1x1 convolutions and norms around the spatial filter of a convolution block."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        dim, norm = place.dim, place.norm
        self.conv_in = nn.Linear(dim, dim, bias=False)
        self.norm_in = build_norm(dim, norm, default="batch")
        self.norm_mid = build_norm(dim, norm, default="batch")
        self.conv_out = nn.Linear(dim, dim, bias=False)
        self.norm_out = build_norm(dim, norm, default="batch")

    def forward(self, x: Tensor, convolve: Callable[[Tensor], Tensor]) -> Tensor:
        """Map (B, H, W, C) through the frame and the spatial filter that stands in it."""
        y = convolve(F.relu(self.norm_in(self.conv_in(x))))
        return self.norm_out(self.conv_out(F.relu(self.norm_mid(y))))
