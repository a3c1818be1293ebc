"""The networks of the papers by name, e.g. ``preset("elsa_swin_t")``.

A preset is exactly the published network, for 1000 classes. Sources: Liu et al. 2021 (Swin), Han et
al. 2022 (depth-wise convolutions, heads study), Zhou et al. 2023 (Net1 to Net7, ELSA).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from searchspace.architecture import Architecture, Stage
from searchspace.mixers import (
    DepthwiseConv,
    Elsa,
    InhomogeneousDepthwiseConv,
    Mixer,
    NeighborhoodAttention,
    WindowAttention,
)

MakeMixer: TypeAlias = Callable[[int], Mixer]

# The width of the first stage (it doubles from stage to stage) and the depths.
_SIZES = {
    "t": (96, (2, 2, 6, 2)),
    "s": (96, (2, 2, 18, 2)),
    "b": (128, (2, 2, 18, 2)),
    "l": (192, (2, 2, 18, 2)),
}
_NET_TERMS = {
    1: "qk",
    2: "qr",
    3: "rk",
    4: "bias",
    5: "qr+rk",
    6: "qr+rk+bias",
    7: "qk+qr+rk+bias",
}


@dataclass(frozen=True, slots=True)
class Preset:
    """A published network, and one line that says which."""

    about: str
    architecture: Architecture


def preset(name: str) -> Architecture:
    """Return a published network.

    Raises:
        ValueError: If no preset has that name.
    """
    return _find(name).architecture


def preset_about(name: str) -> str:
    """Return the line that says which network of which paper the preset is.

    Raises:
        ValueError: If no preset has that name.
    """
    return _find(name).about


def _find(name: str) -> Preset:
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=3)
        guess = f"Did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(f"Unknown preset {name!r}. {guess}List them with `search presets`.")
    return PRESETS[name]


def _window(
    window_size: int = 7, *, head_dim: int = 32, terms: str = "qk+bias"
) -> Callable[[int], WindowAttention]:
    return lambda dim: WindowAttention(
        window_size=window_size, num_heads=dim // head_dim, terms=terms
    )


def _neighborhood(terms: str = "qk+bias") -> MakeMixer:
    return lambda dim: NeighborhoodAttention(kernel_size=7, num_heads=dim // 32, terms=terms)


def _elsa(group_width: int, gamma: float = 1.0) -> MakeMixer:
    return lambda dim: Elsa(
        kernel_size=7, num_heads=dim // 32, group_width=group_width, lam=0.0, gamma=gamma
    )


def _depthwise(_dim: int) -> Mixer:
    return DepthwiseConv(kernel_size=7)


def _inhomogeneous(_dim: int) -> Mixer:
    return InhomogeneousDepthwiseConv(kernel_size=7, num_groups=32)


def _network(
    size: str, mixer: MakeMixer, *, last: MakeMixer | None = None, img_size: int = 224
) -> Architecture:
    """Build Swin's macro-architecture with one mixer, and maybe another in the last stage."""
    width, depths = _SIZES[size]
    stages = []
    for index, depth in enumerate(depths):
        dim = width * 2**index
        make = last if last is not None and index == len(depths) - 1 else mixer
        stages.append(Stage(dim=dim, mixers=(make(dim),) * depth))
    return Architecture(img_size=img_size, patch_size=4, stages=tuple(stages))


def _swin_presets() -> dict[str, Preset]:
    presets = {
        f"swin_{size}": Preset(
            f"Swin-{size.upper()}: shifted 7x7 windows (Liu et al. 2021, Table 1)",
            _network(size, _window()),
        )
        for size in _SIZES
    }
    presets["swin_t_384"] = Preset(
        "Swin-T at 384 pixels, 12x12 windows (Han et al. 2022, Table 13)",
        _network("t", _window(12), img_size=384),
    )
    presets["swin_t_384_w7"] = Preset(
        "Swin-T at 384 pixels, 7x7 windows on padded maps (Han et al. 2022, Table 13)",
        _network("t", _window(), img_size=384),
    )
    presets["swin_l_384"] = Preset(
        "Swin-L at 384 pixels, 12x12 windows (Liu et al. 2021, Table 1)",
        _network("l", _window(12), img_size=384),
    )
    presets["swin_n_t"] = Preset(
        "Swin-T with sliding 7x7 neighbourhoods in the first three stages "
        "(Zhou et al. 2023, Table 3; Han et al. 2022, Table 5)",
        _network("t", _neighborhood(), last=_window()),
    )
    return presets


def _heads_study() -> dict[str, Preset]:
    return {
        f"swin_t_h{channels}": Preset(
            f"Swin-T, channels in each head: {channels} (Han et al. 2022, Fig. 2)",
            _network("t", _window(head_dim=channels)),
        )
        for channels in (1, 2, 3, 4, 6, 8, 16, 32, 48, 96)
    }


def _convolution_presets() -> dict[str, Preset]:
    presets = {}
    for size in ("t", "b"):
        presets[f"dwconv_{size}"] = Preset(
            f"DW-Conv-{size.upper()}: static 7x7 depth-wise convolution (Han et al. 2022, Table 2)",
            _network(size, _depthwise),
        )
        presets[f"id_dwconv_{size}"] = Preset(
            f"I-D-DW-Conv-{size.upper()}: 7x7 filters generated at every position, 32 groups "
            "(Han et al. 2022, Table 2)",
            _network(size, _inhomogeneous),
        )
    presets["dwconv_t_384"] = Preset(
        "DW-Conv-T at 384 pixels (Han et al. 2022, Table 13)",
        _network("t", _depthwise, img_size=384),
    )
    return presets


def _net_presets() -> dict[str, Preset]:
    presets = {
        f"net{number}_t": Preset(
            f"Net{number}: Swin-T with the terms {terms} (Zhou et al. 2023, Table 1)",
            _network("t", _window(terms=terms)),
        )
        for number, terms in _NET_TERMS.items()
    }
    for number in (6, 7):
        terms = _NET_TERMS[number]
        presets[f"net{number}n_t"] = Preset(
            f"Net{number}-N: Net{number} on 7x7 neighbourhoods in the first three stages "
            "(Zhou et al. 2023, Table 3)",
            _network("t", _neighborhood(terms), last=_window(terms=terms)),
        )
    return presets


def _elsa_presets() -> dict[str, Preset]:
    presets = {
        f"elsa_swin_{size}": Preset(
            f"ELSA-Swin-{size.upper()}: Hadamard attention with ghost head in the first three "
            "stages (Zhou et al. 2023, Table 8)",
            _network(size, _elsa(4 if size == "t" else 8), last=_window()),
        )
        for size in _SIZES
    }
    presets["elsa_swin_t_no_ghost"] = Preset(
        "ELSA-Swin-T without the ghost head (Zhou et al. 2023, Table 4)",
        _network("t", _elsa(4, gamma=0.0), last=_window()),
    )
    presets["elsa_swin_l_384"] = Preset(
        "ELSA-Swin-L at 384 pixels, 12x12 windows in the last stage (Zhou et al. 2023, Table 8)",
        _network("l", _elsa(8), last=_window(12), img_size=384),
    )
    return presets


PRESETS: dict[str, Preset] = {
    **_swin_presets(),
    **_heads_study(),
    **_convolution_presets(),
    **_net_presets(),
    **_elsa_presets(),
}
