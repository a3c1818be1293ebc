"""Convolutions with filters generated at every position: I-D-DW (Han et al. 2022) and involution.

Both make a filter for each group of channels from the pixel itself, without normalisation and
without a bias after it: ``y_c(i) = sum over o of w[g(c), o](x_i) * x_c(i + o)``. They differ in
the generator alone: I-D-DW names the number of groups and its first layer has a bias; involution
(Li et al. 2021, https://arxiv.org/abs/2103.06255) names the channels of a group and the width of
the generator, has no such bias and other initial weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

from torch import Tensor, nn

from searchspace.mixers import InhomogeneousDepthwiseConv, Involution
from supernet.kernels import aggregate
from supernet.mixers.filter_generator import FilterGenerator
from supernet.mixers.pointwise import Pointwise
from supernet.mixers.sharing import Place, state_of


class InhomogeneousDepthwiseConvMixer(nn.Module):
    """I-D-DW of every setting in ``options``; dim / 4 hidden channels in the generator.

    Smaller kernels are centres of the largest, fewer groups rows of the most.

    Args:
        options: The settings that the block offers.
        place: Where the mixer stands; any map size works.
    """

    def __init__(self, options: Sequence[InhomogeneousDepthwiseConv], *, place: Place) -> None:
        super().__init__()
        dim = place.dim
        self.pointwise = Pointwise(place)
        self.generator = FilterGenerator(
            dim,
            dim // 4,
            groups=max(option.num_groups for option in options),
            kernel_size=max(option.kernel_size for option in options),
            bias=True,
        )

    def select(self, mixer: InhomogeneousDepthwiseConv) -> dict[str, Tensor]:
        """Return the state of the module that has only this setting."""
        generator = self.generator.select(mixer.num_groups, mixer.kernel_size)
        return {
            **state_of(self.pointwise, "pointwise"),
            **{f"generator.{name}": value for name, value in generator.items()},
        }

    def forward(self, x: Tensor, mixer: InhomogeneousDepthwiseConv) -> Tensor:
        """Mix the tokens of a map of shape (B, H, W, C); the shape stays."""
        return self.pointwise(x, partial(self.convolve, mixer=mixer))

    def convolve(self, x: Tensor, mixer: InhomogeneousDepthwiseConv) -> Tensor:
        """Apply the spatial filter alone to (B, H, W, C)."""
        filters = self.generator(x, mixer.num_groups, mixer.kernel_size)
        return aggregate(filters, x.contiguous(), mixer.kernel_size)


class InvolutionMixer(nn.Module):
    """Involution of every setting in ``options``.

    Generators of different ``reduction`` are separate weights; within one, smaller kernels are
    centres of the largest and fewer groups rows of the most. Weights start as published:
    N(0, 2 / fan_out), biases 0.

    Args:
        options: The settings that the block offers.
        place: Where the mixer stands; any map size works.
    """

    def __init__(self, options: Sequence[Involution], *, place: Place) -> None:
        super().__init__()
        self.dim = place.dim
        self.pointwise = Pointwise(place)
        self.generators = nn.ModuleDict()
        for reduction in sorted({option.reduction for option in options}):
            alike = [option for option in options if option.reduction == reduction]
            self.generators[str(reduction)] = _involution_generator(alike, place.dim)

    def select(self, mixer: Involution) -> dict[str, Tensor]:
        """Return the state of the module that has only this setting."""
        groups = self.dim // mixer.group_channels
        generator = self.generator(mixer).select(groups, mixer.kernel_size)
        prefix = f"generators.{mixer.reduction}"
        return {
            **state_of(self.pointwise, "pointwise"),
            **{f"{prefix}.{name}": value for name, value in generator.items()},
        }

    def forward(self, x: Tensor, mixer: Involution) -> Tensor:
        """Mix the tokens of a map of shape (B, H, W, C); the shape stays."""
        return self.pointwise(x, partial(self.convolve, mixer=mixer))

    def convolve(self, x: Tensor, mixer: Involution) -> Tensor:
        """Apply the spatial filter alone to (B, H, W, C)."""
        filters = self.generator(mixer)(x, self.dim // mixer.group_channels, mixer.kernel_size)
        return aggregate(filters, x.contiguous(), mixer.kernel_size)

    def generator(self, mixer: Involution) -> FilterGenerator:
        """Return the generator of the setting."""
        return cast(FilterGenerator, self.generators[str(mixer.reduction)])


def _involution_generator(options: Sequence[Involution], dim: int) -> FilterGenerator:
    groups = dim // min(option.group_channels for option in options)
    kernel_size = max(option.kernel_size for option in options)
    generator = FilterGenerator(
        dim, dim // options[0].reduction, groups=groups, kernel_size=kernel_size, bias=False
    )
    nn.init.kaiming_normal_(generator.reduce.weight, mode="fan_out", nonlinearity="relu")
    nn.init.normal_(generator.weight, std=(2 / (groups * kernel_size**2)) ** 0.5)
    nn.init.zeros_(generator.bias)
    return generator
