"""The bottleneck that generates filters: what all dynamic convolutions share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from supernet.mixers.norms import BatchNorm
from supernet.mixers.sharing import centre_taps, head_rows, state_of


class FilterGenerator(nn.Module):
    """Filters from features: dim -> hidden, batch norm, ReLU, -> groups * K * K with bias.

    The filters are not normalised. The norm inside is a batch norm whatever norms the stage asks
    for: it is a part of the published generators, not of the block.

    Args:
        dim: Channels of the features.
        hidden: Channels of the bottleneck.
        groups: Filters of a position, of the finest setting.
        kernel_size: Side of the largest filter; a smaller one is its centre.
        bias: Whether the first layer has a bias.
    """

    def __init__(self, dim: int, hidden: int, *, groups: int, kernel_size: int, bias: bool) -> None:
        super().__init__()
        self.reduce = nn.Linear(dim, hidden, bias=bias)
        self.norm = BatchNorm(hidden)
        shape = (groups, kernel_size**2)
        expand = nn.Linear(hidden, groups * kernel_size**2)  # for its default initialisation
        weight = expand.weight.detach().unflatten(0, shape)
        self.weight = nn.Parameter(weight.transpose(0, 1).contiguous())  # (K*K, G, hidden)
        self.bias = nn.Parameter(expand.bias.detach().view(shape).t().contiguous())

    def select(self, groups: int, kernel_size: int) -> dict[str, Tensor]:
        """Return the state of the generator that makes only such filters."""
        weight, bias = self._last_layer(groups, kernel_size)
        return {
            **state_of(self.reduce, "reduce"),
            **state_of(self.norm, "norm"),
            "weight": weight,
            "bias": bias,
        }

    def forward(self, x: Tensor, groups: int, kernel_size: int) -> Tensor:
        """Generate filters (B, H, W, groups, K*K) at every position of a map (B, H, W, C)."""
        weight, bias = self._last_layer(groups, kernel_size)
        hidden = F.relu(self.norm(self.reduce(x)))
        # Group-major, as `aggregate` wants its filters: (G * K*K, hidden).
        filters = F.linear(hidden, weight.transpose(0, 1).flatten(0, 1), bias.t().flatten())
        return filters.unflatten(-1, (groups, kernel_size**2))

    def _last_layer(self, groups: int, kernel_size: int) -> tuple[Tensor, Tensor]:
        """Slice the last layer: (K*K, G, hidden) and (K*K, G)."""
        weight, bias = (centre_taps(table, kernel_size) for table in (self.weight, self.bias))
        return head_rows(weight, groups, dim=1), head_rows(bias, groups, dim=1)
