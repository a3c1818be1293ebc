"""Static depth-wise convolution (Han et al. 2022, DW), with the weight sharing of their Table 4.

``channels_per_filter`` neighbouring channels have one filter. With ``shared_positions=False`` every
position of the map has filters of its own (a locally connected layer); every channel has one bias
either way, as Han's parameter counts say (23.9M and 26.2M for the tiny network).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from searchspace.mixers import DepthwiseConv
from supernet.kernels import aggregate, depthwise_conv
from supernet.mixers.kernel_transforms import KernelTransforms
from supernet.mixers.pointwise import Pointwise
from supernet.mixers.sharing import Place, centre_taps, check_map_size, head_rows, state_of


class DepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d` with one filter a channel and zeros around the map, computed by our operators.

    An even filter reaches one pixel further up and left than down and right.

    Args:
        dim: Channels.
        kernel_size: Side of the filters.
    """

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, H, W), best channels-last in memory; the shape stays."""
        maps = x.permute(0, 2, 3, 1).contiguous()
        return depthwise_conv(maps, self.weight[:, 0].contiguous(), self.bias).permute(0, 3, 1, 2)


class DepthwiseConvMixer(nn.Module):
    """Depth-wise convolution of every setting in ``options``.

    Smaller kernels are centres of the largest, or learned transforms of these. A filter for more
    channels is the finest filter that begins at the same channel. Filters for all positions and
    filters for each position are separate weights; the bias is one.

    Args:
        options: The settings that the block offers.
        place: Where the mixer stands. Any map size works, except that filters for each position
            belong to maps of ``place.size``.
    """

    def __init__(self, options: Sequence[DepthwiseConv], *, place: Place) -> None:
        super().__init__()
        dim = place.dim
        self.size = place.size
        self.pointwise = Pointwise(place)
        sizes = {option.kernel_size for option in options}
        is_learned = place.sharing.kernels == "transformed" and len(sizes) > 1
        self.transforms = KernelTransforms(sizes) if is_learned else None
        self.weight = self.position_weight = None
        if shared := [option for option in options if option.shared_positions]:
            self.weight = nn.Parameter(_new_filters(shared, dim).t().contiguous())  # (K*K, F)
        if unshared := [option for option in options if not option.shared_positions]:
            table = _new_filters(unshared, dim, positions=place.size**2)
            table = table.t().unflatten(1, (place.size**2, -1))
            self.position_weight = nn.Parameter(table.contiguous())  # (K*K, H*W, F)
        bound = 1 / max(option.kernel_size for option in options)
        self.bias = nn.Parameter(torch.empty(dim).uniform_(-bound, bound))

    def select(self, mixer: DepthwiseConv) -> dict[str, Tensor]:
        """Return the state of the module that has only this setting."""
        name = "weight" if mixer.shared_positions else "position_weight"
        return {
            **state_of(self.pointwise, "pointwise"),
            "bias": self.bias,
            name: self._filters(mixer),
        }

    def forward(self, x: Tensor, mixer: DepthwiseConv) -> Tensor:
        """Mix the tokens of a map of shape (B, H, W, C); the shape stays.

        Raises:
            ValueError: If positions have their own filters and the map has another size.
        """
        return self.pointwise(x, partial(self.convolve, mixer=mixer))

    def convolve(self, x: Tensor, mixer: DepthwiseConv) -> Tensor:
        """Apply the spatial filter alone to (B, H, W, C)."""
        filters = self._filters(mixer)
        if not mixer.shared_positions:
            check_map_size(x, mixer, size=self.size)
            return _filter_positions(x, filters, mixer.kernel_size) + self.bias
        rows = filters.t().repeat_interleave(mixer.channels_per_filter, 0)  # (C, K*K)
        kernel = rows.unflatten(1, (mixer.kernel_size, mixer.kernel_size))
        return depthwise_conv(x.contiguous(), kernel.contiguous(), self.bias)

    def _filters(self, mixer: DepthwiseConv) -> Tensor:
        """Slice the filters of the setting: (K*K, F), unshared (K*K, H*W, F)."""
        table = self.weight if mixer.shared_positions else self.position_weight
        assert table is not None
        filters = self.bias.shape[0] // mixer.channels_per_filter
        cut = centre_taps if self.transforms is None else self.transforms
        return head_rows(cut(table, mixer.kernel_size), filters, dim=table.dim() - 1)


def _new_filters(options: Sequence[DepthwiseConv], dim: int, *, positions: int = 1) -> Tensor:
    """Draw the finest filters of the options as `nn.Conv2d` would, (positions * F, K*K)."""
    kernel = max(option.kernel_size for option in options)
    filters = dim // min(option.channels_per_filter for option in options)
    return torch.empty(positions * filters, kernel**2).uniform_(-1 / kernel, 1 / kernel)


def _filter_positions(x: Tensor, filters: Tensor, kernel_size: int) -> Tensor:
    """Filter a map (B, H, W, C) with filters (K*K, H*W, F) that depend on the position only."""
    batch, height, width, _ = x.shape
    num_filters = filters.shape[-1]
    # One map whose groups hold the channels of all images: no filter is repeated for a batch.
    folded = x.unflatten(-1, (num_filters, -1)).permute(1, 2, 3, 0, 4).flatten(2)
    areas = filters.permute(1, 2, 0).unflatten(0, (height, width))  # (H, W, F, K*K)
    y = aggregate(areas[None].contiguous(), folded[None].contiguous(), kernel_size)
    return y[0].unflatten(-1, (num_filters, batch, -1)).permute(3, 0, 1, 2, 4).flatten(3)
