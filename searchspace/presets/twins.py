"""Twins-SVT S, B and L (Chu et al. 2021): local windows and reduced global attention in turn."""

from __future__ import annotations

from searchspace.architecture import Architecture, Stage
from searchspace.mixers import GlobalAttention
from searchspace.presets.preset import Preset
from searchspace.presets.swin import MakeMixer, depthwise, window

# Widths, depths and channels in each head.
_SIZES = {
    "s": ((64, 128, 256, 512), (2, 2, 10, 4), 32),
    "b": ((96, 192, 384, 768), (2, 2, 18, 2), 32),
    "l": ((128, 256, 512, 1024), (2, 2, 18, 2), 32),
}
_REDUCTIONS = (8, 4, 2, 1)


def twins_presets() -> dict[str, Preset]:
    """Return Twins-SVT, and SVT-S with depth-wise convolution in the place of local attention."""
    presets = {
        f"twins_svt_{size}": Preset(
            f"Twins-SVT-{size.upper()}: 7x7 windows and spatially reduced global attention in "
            "turn (Chu et al. 2021)",
            _network(size, window(terms="qk", head_dim=_SIZES[size][2])),
        )
        for size in _SIZES
    }
    presets["twins_svt_s_dwconv"] = Preset(
        "Twins-SVT-S with 7x7 depth-wise convolution instead of windows "
        "(Han et al. 2022, Table 12)",
        _network("s", depthwise()),
    )
    return presets


def _network(size: str, local: MakeMixer) -> Architecture:
    widths, depths, head_dim = _SIZES[size]
    stages = []
    for dim, depth, ratio in zip(widths, depths, _REDUCTIONS, strict=True):
        reduced = GlobalAttention(num_heads=dim // head_dim, sr_ratio=ratio)
        mixers = [reduced if block % 2 else local(dim) for block in range(depth)]
        stages.append(Stage(dim=dim, mixers=tuple(mixers)))
    return Architecture(family="twins", img_size=224, patch_size=4, stages=tuple(stages))
