"""Dynamic depth-wise convolution: filters of each image, from its mean (Han et al. 2022, D-DW).

As in the first published commit of the DWNet code; its latest one overwrites the dynamic
convolution by a static one. The generator's first layer has no bias, every channel has a static
bias after the filter, and the filters are neither normalised nor squashed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from searchspace.mixers import DynamicDepthwiseConv
from supernet.kernels import depthwise_conv
from supernet.mixers.filter_generator import FilterGenerator
from supernet.mixers.pointwise import Pointwise
from supernet.mixers.sharing import Place, state_of


class DynamicDepthwiseConvMixer(nn.Module):
    """Dynamic depth-wise convolution of every kernel size in ``options``: centres of the largest.

    The batch norm inside the generator sees one value of each image, so that training needs at
    least two images in a batch; in eval mode one is enough.

    Args:
        options: The settings that the block offers.
        place: Where the mixer stands; any map size works.
    """

    def __init__(self, options: Sequence[DynamicDepthwiseConv], *, place: Place) -> None:
        super().__init__()
        dim = self.dim = place.dim
        self.pointwise = Pointwise(place)
        largest = max(option.kernel_size for option in options)
        self.generator = FilterGenerator(dim, dim // 4, groups=dim, kernel_size=largest, bias=False)
        self.bias = nn.Parameter(torch.zeros(dim))

    def select(self, mixer: DynamicDepthwiseConv) -> dict[str, Tensor]:
        """Return the state of the module that has only this setting."""
        generator = self.generator.select(self.dim, mixer.kernel_size)
        return {
            **state_of(self.pointwise, "pointwise"),
            **{f"generator.{name}": value for name, value in generator.items()},
            "bias": self.bias,
        }

    def forward(self, x: Tensor, mixer: DynamicDepthwiseConv) -> Tensor:
        """Mix the tokens of a map of shape (B, H, W, C); the shape stays.

        Raises:
            ValueError: If the batch has one image and the generator's batch norm is in train mode.
        """
        return self.pointwise(x, partial(self.convolve, mixer=mixer))

    def convolve(self, x: Tensor, mixer: DynamicDepthwiseConv) -> Tensor:
        """Apply the spatial filter alone to (B, H, W, C)."""
        size = mixer.kernel_size
        filters = self.generator(x.mean((1, 2), keepdim=True), self.dim, size)  # (B, 1, 1, C, K*K)
        kernels = filters.flatten(1, 3).unflatten(-1, (size, size))
        return depthwise_conv(x.contiguous(), kernels.contiguous()) + self.bias
