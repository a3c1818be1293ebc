"""Local MLP: window attention whose weights are parameters (Han et al. 2022, Local MLP).

    y_i = proj( sum over j in window of (W[n, h, i, j] + T[j - i, h]) * v_j ),   v = Linear(x)

There is no published code. The parameter counts of Han's Tables 2 and 4 (26.2M; 24.3M shared over
positions; 35.3M shared, one head a channel) fix the parts: the value and output projections and the
relative position table T of Swin stay, every window n has its own W unless positions are shared,
and there is no other bias. The paper leaves the following open; these are our choices:

* There is no softmax and no scale: W and T are the weights themselves.
* Windows shift in odd blocks as in Swin. Pairs that the shift brings together have weight zero
  (Swin's -100 makes no sense without softmax).
* A map that the window does not divide is padded with zeros at the bottom and right in front of the
  value projection, as for window attention: padded tokens are read with the projection's bias.
* W and T start as N(0, .02) cut, as Swin's table.

Microsoft's Swin-MLP is another model: no projections, a bias for each position of the window, and
a shift by zero padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from searchspace.mixers import LocalMlp
from supernet.mixers.sharing import (
    Place,
    centre_taps,
    check_map_size,
    head_rows,
    new_linear,
    new_table,
    state_of,
)
from supernet.mixers.windows import (
    Tiling,
    cut_windows,
    foreign_pairs,
    join_windows,
    pair_offsets,
    tile,
)


class WindowPairs(nn.Module):
    """The weights of pairs of each window, by the size of the windows."""

    def add(self, window: int, *shape: int) -> None:
        """Make weights of this shape for windows of a size."""
        self.register_parameter(str(window), new_table(*shape))

    def forward(self, window: int) -> Tensor:
        """Return the weights (windows, L, L, N) for windows of a size."""
        return cast(Tensor, getattr(self, str(window)))


class LocalMlpMixer(nn.Module):
    """Local MLP of every setting in ``options``.

    Weights that are shared over positions are one table: a smaller window is the centre of a larger
    one, fewer heads are rows of the most. Weights of each window are one table for each window size
    (windows of two sizes cover a map differently). Both read one relative position table.

    Args:
        options: The settings that the block offers.
        place: Where the mixer stands; the parity of its block decides the shift. Windows are no
            larger than ``place.size``. Any map size works, except that weights of each window
            belong to maps of ``place.size``.
    """

    def __init__(self, options: Sequence[LocalMlp], *, place: Place) -> None:
        super().__init__()
        self.size = place.size
        self.is_shifted, self.rules = place.block % 2 == 1, place.rules
        self.value = new_linear(place.dim, place.dim, bias=place.qkv_bias)
        self.proj = new_linear(place.dim, place.dim)
        self.largest = max(self._window(option) for option in options)
        heads = max(option.num_heads for option in options)
        self.table_bias = new_table((2 * self.largest - 1) ** 2, heads)
        self.pairs = None
        if shared := [option for option in options if option.shared_positions]:
            area = max(self._window(option) for option in shared) ** 2
            self.pairs = new_table(area, area, max(option.num_heads for option in shared))
        self.window_pairs = WindowPairs()
        unshared = [option for option in options if not option.shared_positions]
        for window in sorted({self._window(option) for option in unshared}):
            heads = max(o.num_heads for o in unshared if self._window(o) == window)
            windows, area = (-(-self.size // window)) ** 2, window**2
            self.window_pairs.add(window, windows, area, area, heads)

    def select(self, mixer: LocalMlp) -> dict[str, Tensor]:
        """Return the state of the module that has only this setting."""
        window = self._window(mixer)
        table = centre_taps(self.table_bias, 2 * window - 1)
        name = "pairs" if mixer.shared_positions else f"window_pairs.{window}"
        return {
            **state_of(self.value, "value"),
            **state_of(self.proj, "proj"),
            "table_bias": head_rows(table, mixer.num_heads, dim=1),
            name: self._pairs(mixer, window),
        }

    def forward(self, x: Tensor, mixer: LocalMlp) -> Tensor:
        """Mix the tokens of a map of shape (B, H, W, C); the shape stays.

        Raises:
            ValueError: If windows have their own weights and the map has another size.
        """
        if not mixer.shared_positions:
            check_map_size(x, mixer, size=self.size)
        size = (x.shape[1], x.shape[2])
        tiling = tile(
            size, window=self._window(mixer), is_shifted=self.is_shifted, rules=self.rules
        )
        v = self.value(cut_windows(x, tiling)).unflatten(-1, (mixer.num_heads, -1))
        weights = self._weights(mixer, tiling)
        equation = "ijn,bwjnd->bwind" if weights.dim() == 3 else "wijn,bwjnd->bwind"
        y = torch.einsum(equation, weights, v)
        return join_windows(self.proj(y.flatten(-2)), tiling)

    def _weights(self, mixer: LocalMlp, tiling: Tiling) -> Tensor:
        """Sum the weights of pairs and offsets: (L, L, N), or (W, L, L, N) where windows differ."""
        device = self.table_bias.device
        offsets = pair_offsets(tiling.window, self.largest, device)
        table = head_rows(self.table_bias, mixer.num_heads, dim=1)
        bias = table.index_select(0, offsets.flatten()).unflatten(0, offsets.shape)
        weights = self._pairs(mixer, tiling.window) + bias
        if tiling.shift:
            weights = weights.masked_fill(foreign_pairs(tiling, device).unsqueeze(-1), 0.0)
        return weights

    def _pairs(self, mixer: LocalMlp, window: int) -> Tensor:
        """Slice the weights of pairs: (L, L, N), unshared (W, L, L, N); queries first."""
        if not mixer.shared_positions:
            return head_rows(self.window_pairs(window), mixer.num_heads, dim=3)
        assert self.pairs is not None
        queries = centre_taps(self.pairs, window)
        keys = centre_taps(queries.transpose(0, 1), window)
        return head_rows(keys.transpose(0, 1), mixer.num_heads, dim=2)

    def _window(self, mixer: LocalMlp) -> int:
        return min(mixer.window_size, self.size)
