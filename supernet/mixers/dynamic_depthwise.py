"""Dynamic depth-wise convolution: filters of each image, from its mean (Han et al. 2022, D-DW).

As in the first published commit of the DWNet code; its latest one overwrites the dynamic
convolution by a static one. The generator's first layer has no bias, every channel has a static
bias after the filter, and the filters are neither normalised nor squashed.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        return self.pointwise.leave(self.convolve(self.pointwise.enter(x), mixer))

    def convolve(self, x: Tensor, mixer: DynamicDepthwiseConv) -> Tensor:
        """Apply the spatial filter alone to (B, H, W, C)."""
        size = mixer.kernel_size
        filters = self.generator(x.mean((1, 2), keepdim=True), self.dim, size)  # (B, 1, 1, C, K*K)
        return _filter_images(x, filters.flatten(0, 3).unflatten(-1, (size, size)), self.bias)


def _filter_images(x: Tensor, kernels: Tensor, bias: Tensor) -> Tensor:
    """Convolve image b of (B, H, W, C) with kernels b*C to (b+1)*C of (B*C, K, K)."""
    batch, _, _, dim = x.shape
    folded = x.permute(1, 2, 0, 3).flatten(2)[None]  # one image of B*C channels
    y = depthwise_conv(folded.contiguous(), kernels.contiguous())
    return y[0].unflatten(-1, (batch, dim)).permute(2, 0, 1, 3) + bias
