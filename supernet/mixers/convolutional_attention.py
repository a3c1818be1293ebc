"""What Han et al. 2022 propose in Appendix C and do not build: static terms, convolved attention.

Equations (24) to (27) are one-dimensional, for one head. These are our choices:

* The static term (Eq. 24) adds ``theta_{j-i} . x_i`` to the logits: one vector of ``dim`` channels
  for each offset and head, on the mixer's input and without a scale, since no projection makes it.
* Post-convolution (Eq. 25) convolves the ``qk`` logits of a query over the grid of its area with
  one 3 x 3 kernel a head, before the other terms. It is circular, as the printed matrix is: the
  first and last row, and column, of the area are neighbours. Taps outside the map take part with
  their logits of zero, masked pairs with the logits that they would have. It starts as the
  identity.
* Pre-convolution (Eq. 26, 27) makes queries and keys, but not values, of a convolved map: 3 x 3
  with zeros outside the map (before it is cut into windows, so it sees the neighbour windows),
  without bias, then batch norm and ReLU. ``pre`` has one kernel for all channels, ``pre_depthwise``
  one a channel ("it is also fine not to share weights"), ``pre_full`` is a whole convolution. They
  start as PyTorch's convolutions do.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.kernels import depthwise_conv
from supernet.mixers.norms import BatchNorm


class PreConvolution(nn.Module):
    """Convolve the map that queries and keys are made of, then batch norm and ReLU.

    Args:
        conv: ``pre``, ``pre_depthwise`` or ``pre_full``.
        dim: Channels.
    """

    def __init__(self, conv: str, dim: int) -> None:
        super().__init__()
        outputs, inputs = {"pre": (1, 1), "pre_depthwise": (dim, 1), "pre_full": (dim, dim)}[conv]
        bound = (9 * inputs) ** -0.5
        weight = torch.empty(outputs, inputs, 3, 3).uniform_(-bound, bound)
        self.is_full = conv == "pre_full"
        self.weight = nn.Parameter(weight)
        self.norm = BatchNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve a map (B, H, W, C); the shape stays."""
        if self.is_full:
            y = F.conv2d(x.permute(0, 3, 1, 2), self.weight, padding=1).permute(0, 2, 3, 1)
        else:
            kernel = self.weight[:, 0].expand(x.shape[-1], 3, 3)
            y = depthwise_conv(x.contiguous(), kernel.contiguous())
        return F.relu(self.norm(y))


def new_post_kernel(num_heads: int) -> nn.Parameter:
    """Make post-convolution kernels (9, num_heads) that are the identity."""
    kernel = torch.zeros(9, num_heads)
    kernel[4] = 1
    return nn.Parameter(kernel)


def convolve_logits(logits: Tensor, kernel: Tensor) -> Tensor:
    """Convolve the logits of every query over the grid of its area, circularly.

    Args:
        logits: Shape (..., heads, taps), taps row-major over a square.
        kernel: Shape (9, heads): ``kernel[3 * r + c]`` weighs the logit at (row + r - 1,
            column + c - 1).

    Returns:
        The same shape.
    """
    heads, taps = logits.shape[-2:]
    side = math.isqrt(taps)
    grids = logits.reshape(-1, heads, side, side)
    weight = kernel.t().reshape(heads, 1, 3, 3)
    convolved = F.conv2d(F.pad(grids, (1, 1, 1, 1), "circular"), weight, groups=heads)
    return convolved.reshape(logits.shape)


def respond(x: Tensor, theta: Tensor) -> Tensor:
    """Multiply tokens (..., C) with the vectors (offsets, heads, C): (..., heads, offsets)."""
    responses = F.linear(x, theta.transpose(0, 1).flatten(0, 1))
    return responses.unflatten(-1, (theta.shape[1], -1))


def static_in_windows(x_BWLC: Tensor, theta: Tensor, offsets: Tensor) -> Tensor:
    """Compute the static term between the tokens of every window.

    The responses to all offsets are computed once a token, then each key picks its own.

    Args:
        x_BWLC: The tokens of the windows.
        theta: Shape (offsets, heads, C).
        offsets: Shape (L, L), the offset from each query to each key as a row of ``theta``.

    Returns:
        Shape (B, W, heads, L, L).
    """
    responses = respond(x_BWLC, theta).transpose(2, 3)  # (B, W, heads, L, offsets)
    return responses.gather(-1, offsets.expand(*responses.shape[:3], -1, -1))
