"""Depth-wise convolution blocks of Han et al. 2022: static (DW) and inhomogeneous dynamic (I-D-DW).

https://arxiv.org/abs/2106.04263, as in the first published DWNet code: a 1x1 convolution without
bias, batch norm, ReLU, the spatial filter, batch norm, ReLU, a 1x1 convolution without bias, batch
norm. There is no norm in front; convolutions keep PyTorch's default initialisation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from searchspace.mixers import DepthwiseConv, InhomogeneousDepthwiseConv
from supernet.kernels import aggregate, depthwise_conv
from supernet.mixers.sharing import Place, centre_taps, head_rows, state_of
from supernet.norms import BatchNorm, build_norm


class Pointwise(nn.Module):
    """The 1x1 convolutions and batch norms around the spatial filter of a convolution block."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        dim, norm = place.dim, place.norm
        self.conv_in = nn.Linear(dim, dim, bias=False)
        self.norm_in = build_norm(dim, norm, default="batch")
        self.norm_mid = build_norm(dim, norm, default="batch")
        self.conv_out = nn.Linear(dim, dim, bias=False)
        self.norm_out = build_norm(dim, norm, default="batch")

    def enter(self, x: Tensor) -> Tensor:
        """Compute what the spatial filter sees, (B, H, W, C)."""
        return F.relu(self.norm_in(self.conv_in(x)))

    def leave(self, y: Tensor) -> Tensor:
        """Compute the output of the block from the filtered map."""
        return self.norm_out(self.conv_out(F.relu(self.norm_mid(y))))


class DepthwiseConvMixer(nn.Module):
    """Depth-wise convolution of every kernel size in ``options``: centred slices of the largest.

    Args:
        options: The settings that the block offers.
        place: Where the mixer stands; any map size works.
    """

    def __init__(self, options: Sequence[DepthwiseConv], *, place: Place) -> None:
        super().__init__()
        self.pointwise = Pointwise(place)
        largest = max(option.kernel_size for option in options)
        dim = place.dim
        conv = nn.Conv2d(dim, dim, largest, groups=dim)  # for its default initialisation
        assert conv.bias is not None
        self.weight = nn.Parameter(conv.weight.detach().flatten(1).t().contiguous())  # (K*K, C)
        self.bias = nn.Parameter(conv.bias.detach())

    def select(self, mixer: DepthwiseConv) -> dict[str, Tensor]:
        """Return the state of the module that has only this setting."""
        weight = centre_taps(self.weight, mixer.kernel_size)
        return {**state_of(self.pointwise, "pointwise"), "weight": weight, "bias": self.bias}

    def forward(self, x: Tensor, mixer: DepthwiseConv) -> Tensor:
        """Mix the tokens of a map of shape (B, H, W, C); the shape stays."""
        weight = centre_taps(self.weight, mixer.kernel_size)
        kernel = weight.t().unflatten(1, (mixer.kernel_size, mixer.kernel_size))
        y = depthwise_conv(self.pointwise.enter(x).contiguous(), kernel.contiguous(), self.bias)
        return self.pointwise.leave(y)


class InhomogeneousDepthwiseConvMixer(nn.Module):
    """Filters generated at every position (I-D-DW), shared by the channels of a group.

    The generator is a bottleneck on the pixel: dim -> dim / 4 with bias, batch norm, ReLU,
    -> groups * K * K with bias. The filter is not normalised and has no additive bias.

    Args:
        options: The settings that the block offers.
        place: Where the mixer stands; any map size works.
    """

    def __init__(self, options: Sequence[InhomogeneousDepthwiseConv], *, place: Place) -> None:
        super().__init__()
        dim, hidden = place.dim, place.dim // 4
        self.pointwise = Pointwise(place)
        self.reduce = nn.Linear(dim, hidden)
        self.norm = BatchNorm(hidden)
        groups = max(option.num_groups for option in options)
        taps = max(option.kernel_size for option in options) ** 2
        generate = nn.Linear(hidden, groups * taps)  # for its default initialisation
        weight = generate.weight.detach().unflatten(0, (groups, taps))
        self.weight = nn.Parameter(weight.transpose(0, 1).contiguous())  # (K*K, G, hidden)
        self.bias = nn.Parameter(generate.bias.detach().view(groups, taps).t().contiguous())

    def select(self, mixer: InhomogeneousDepthwiseConv) -> dict[str, Tensor]:
        """Return the state of the module that has only this setting."""
        weight, bias = self._generator(mixer)
        return {
            **state_of(self.pointwise, "pointwise"),
            **state_of(self.reduce, "reduce"),
            **state_of(self.norm, "norm"),
            "weight": weight,
            "bias": bias,
        }

    def forward(self, x: Tensor, mixer: InhomogeneousDepthwiseConv) -> Tensor:
        """Mix the tokens of a map of shape (B, H, W, C); the shape stays."""
        x = self.pointwise.enter(x)
        weight, bias = self._generator(mixer)
        hidden = F.relu(self.norm(self.reduce(x)))
        # Group-major, as `aggregate` wants its filters: (G * K*K, hidden).
        filters = F.linear(hidden, weight.transpose(0, 1).flatten(0, 1), bias.t().flatten())
        filters = filters.unflatten(-1, (mixer.num_groups, mixer.kernel_size**2))
        return self.pointwise.leave(aggregate(filters, x.contiguous(), mixer.kernel_size))

    def _generator(self, mixer: InhomogeneousDepthwiseConv) -> tuple[Tensor, Tensor]:
        """Slice the generator's last layer: (K*K, G, hidden) and (K*K, G)."""
        weight, bias = (centre_taps(table, mixer.kernel_size) for table in (self.weight, self.bias))
        groups = mixer.num_groups
        return head_rows(weight, groups, dim=1), head_rows(bias, groups, dim=1)
