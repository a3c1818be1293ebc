"""How a network treats maps that its windows and kernels do not fit: a setting of its use.

A classifier sees maps of one size; a detector sees every size, also rectangles smaller than a
window. An architecture is the same value in both.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class MapRules:
    """What the blocks do at the border of a map.

    Attributes:
        keeps_windows: A window that is larger than the map keeps its size, the map is padded, and
            it is shifted like any other (Swin's published detection code); else it shrinks to the
            map and stays in place.
        pads_convolutions: A map is zero-padded at the bottom and right to a multiple of the kernel
            in front of a convolution block, in front of its batch norms, and cut back behind it
            (DWNet's published detection code, where the kernel is 7).
    """

    keeps_windows: bool = False
    pads_convolutions: bool = False

    def padded(self, size: tuple[int, int], kernel_size: int) -> tuple[int, int]:
        """Return the sides of the map that a convolution block sees."""
        if not self.pads_convolutions:
            return size
        height, width = size
        return -(-height // kernel_size) * kernel_size, -(-width // kernel_size) * kernel_size

    def window(self, window: int, size: tuple[int, int]) -> int:
        """Return the side of a window on a map."""
        return window if self.keeps_windows else min(window, max(size))


CLASSIFIER = MapRules()
