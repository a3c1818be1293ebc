"""How a smaller kernel comes out of a larger one: its centre, or a learned transform of that."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from math import isqrt
from typing import cast

import torch
from torch import Tensor, nn

from supernet.mixers.sharing import centre_taps


class KernelTransforms(nn.Module):
    """Cuts kernels of several sizes out of the largest through learned matrices.

    The kernel of a size is ``(I + D) c``, where c is the centre of the next larger kernel and D a
    matrix (K*K, K*K) over taps, the same for all channels (Cai et al. 2020, Once-for-All,
    https://arxiv.org/abs/1908.09791, "elastic kernel size"). The paper learns I + D as a whole; D
    begins with zeros, and weight decay draws towards plain centres, not towards kernels of zeros.

    Args:
        sizes: Of the kernels that the block offers.
    """

    def __init__(self, sizes: Iterable[int]) -> None:
        super().__init__()
        self.sizes = sorted(set(sizes), reverse=True)
        self.corrections = nn.ParameterDict(
            {str(size): nn.Parameter(torch.zeros(size**2, size**2)) for size in self.sizes[1:]}
        )

    def forward(self, table: Tensor, size: int) -> Tensor:
        """Make the kernels of a size.

        Args:
            table: Shape (S * S, ...), kernels of one of the sizes, row-major over their taps.
            size: One of the sizes, at most S.

        Returns:
            Shape (size * size, ...); the table itself for its own size.
        """
        full = isqrt(table.shape[0])
        steps = [full, *(other for other in self.sizes if size <= other < full)]
        for _, smaller in pairwise(steps):
            table = centre_taps(table, smaller)
            correction = cast(Tensor, self.corrections[str(smaller)])
            table = table + (correction @ table.flatten(1)).view_as(table)
        return table
