"""VOLO D1 to D5 (Yuan et al. 2021), and with other mixers in the place of outlook attention.

ELSA-VOLO's settings are not published ("we adjust several hyperparameters of ELSA blocks"). Ours
are those of the published ELSA block (7 x 7 kernels, lam = gamma = 1), with the group width that
comes closest to the printed sizes: 32 for D1, 16 for D5, 8 for the others.
"""

from __future__ import annotations

from dataclasses import replace

from searchspace.architecture import Architecture, Stage
from searchspace.mixers import Elsa, GlobalAttention, OutlookAttention
from searchspace.presets.preset import Preset
from searchspace.presets.swin import MakeMixer, depthwise, window

# Depths of the four stages; width of the first and of the others; heads of the others (the first
# stage has heads of 32 channels); MLP ratio; width of the stem.
_SIZES = {
    1: ((4, 4, 8, 2), (192, 384), 12, 3.0, 64),
    2: ((6, 4, 10, 4), (256, 512), 16, 3.0, 64),
    3: ((8, 8, 16, 4), (256, 512), 16, 3.0, 64),
    4: ((8, 8, 16, 4), (384, 768), 16, 3.0, 64),
    5: ((12, 12, 20, 4), (384, 768), 16, 4.0, 128),
}
_RESOLUTIONS = {1: 384, 3: 448, 4: 448, 5: 512}
_ELSA_GROUP_WIDTHS = {1: 32, 2: 8, 3: 8, 4: 8, 5: 16}


def volo_presets() -> dict[str, Preset]:
    """Return VOLO, ELSA-VOLO and VOLO-D1 with local attention and depth-wise convolution."""
    presets = {}
    for number in _SIZES:
        published = _network(number, lambda dim: OutlookAttention(num_heads=dim // 32))
        elsa = _network(number, _elsa(number))
        presets[f"volo_d{number}"] = Preset(
            f"VOLO-D{number}: outlook attention, then global attention (Yuan et al. 2021)",
            published,
        )
        presets[f"elsa_volo_d{number}"] = Preset(
            f"VOLO-D{number} with ELSA instead of outlook attention (Zhou et al. 2023, Table 8; "
            "settings inferred)",
            elsa,
        )
        if number in _RESOLUTIONS:
            pixels = _RESOLUTIONS[number]
            for name, network in (("volo", published), ("elsa_volo", elsa)):
                presets[f"{name}_d{number}_{pixels}"] = Preset(
                    f"{'ELSA-' * (name != 'volo')}VOLO-D{number} at {pixels} pixels "
                    "(Zhou et al. 2023, Table 8)",
                    replace(network, img_size=pixels),
                )
    presets["volo_d1_lsa"] = Preset(
        "VOLO-D1 with shifted 7x7 windows instead of outlook attention "
        "(Han et al. 2022, Table 12; Zhou et al. 2023, Table 6)",
        _network(1, window()),
    )
    presets["volo_d1_dwconv"] = Preset(
        "VOLO-D1 with 7x7 depth-wise convolution instead of outlook attention "
        "(Han et al. 2022, Table 12; Zhou et al. 2023, Table 6)",
        _network(1, depthwise()),
    )
    return presets


def _elsa(number: int) -> MakeMixer:
    return lambda dim: Elsa(
        kernel_size=7,
        num_heads=dim // 32,
        group_width=_ELSA_GROUP_WIDTHS[number],
        lam=1.0,
        gamma=1.0,
    )


def _network(number: int, first: MakeMixer) -> Architecture:
    """Build a VOLO with the mixer in its first stage and global attention in the others."""
    depths, (narrow, wide), num_heads, ratio, stem_dim = _SIZES[number]
    stages = [Stage(dim=narrow, mixers=(first(narrow),) * depths[0], mlp_ratio=ratio)]
    attention = GlobalAttention(num_heads=num_heads)
    for depth in depths[1:]:
        stages.append(Stage(dim=wide, mixers=(attention,) * depth, mlp_ratio=ratio))
    return Architecture(
        family="volo", img_size=224, patch_size=8, stages=tuple(stages), stem_dim=stem_dim
    )
