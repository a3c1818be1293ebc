"""Swin's macro-architecture with the mixers of both papers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from searchspace.architecture import Architecture, Stage
from searchspace.mixers import (
    DecoupledDynamicFilter,
    DepthwiseConv,
    DynamicDepthwiseConv,
    Elsa,
    InhomogeneousDepthwiseConv,
    LocalMlp,
    Mixer,
    NeighborhoodAttention,
    WindowAttention,
)
from searchspace.presets.preset import Preset

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


def window(
    window_size: int = 7, *, head_dim: int = 32, terms: str = "qk+bias", norm: str = "softmax"
) -> MakeMixer:
    """Attention in windows, with heads of ``head_dim`` channels."""
    return lambda dim: WindowAttention(
        window_size=window_size,
        num_heads=dim // head_dim,
        terms=terms,
        norm=norm,  # type: ignore[arg-type]
    )


def depthwise(kernel_size: int = 7) -> MakeMixer:
    """A static depth-wise convolution."""
    return lambda _dim: DepthwiseConv(kernel_size=kernel_size)


def local_mlp(*, head_dim: int = 32, shared: bool = False) -> MakeMixer:
    """Static weights in 7x7 windows."""
    return lambda dim: LocalMlp(window_size=7, num_heads=dim // head_dim, shared_positions=shared)


def swin_network(
    size: str,
    mixer: MakeMixer,
    *,
    last: MakeMixer | None = None,
    img_size: int = 224,
    **options: Any,
) -> Architecture:
    """Build Swin's macro-architecture with one mixer, and maybe another in the last stage.

    Args:
        size: ``t``, ``s``, ``b`` or ``l``.
        mixer: Makes the mixer for a width.
        last: Makes that of the last stage.
        img_size: In pixels.
        options: Settings of all stages, see `Stage`.
    """
    width, depths = _SIZES[size]
    stages = []
    for index, depth in enumerate(depths):
        dim = width * 2**index
        make = last if last is not None and index == len(depths) - 1 else mixer
        stages.append(Stage(dim=dim, mixers=(make(dim),) * depth, **options))
    return Architecture(img_size=img_size, patch_size=4, stages=tuple(stages))


def swin_presets() -> dict[str, Preset]:
    """Return the networks that are published at several sizes, and Net1 to Net7."""
    return {**_window_presets(), **_convolution_presets(), **_net_presets(), **_elsa_presets()}


def _neighborhood(terms: str = "qk+bias") -> MakeMixer:
    return lambda dim: NeighborhoodAttention(kernel_size=7, num_heads=dim // 32, terms=terms)


def _elsa(group_width: int, gamma: float = 1.0) -> MakeMixer:
    return lambda dim: Elsa(
        kernel_size=7, num_heads=dim // 32, group_width=group_width, lam=0.0, gamma=gamma
    )


def _window_presets() -> dict[str, Preset]:
    presets = {
        f"swin_{size}": Preset(
            f"Swin-{size.upper()}: shifted 7x7 windows (Liu et al. 2021, Table 1)",
            swin_network(size, window()),
        )
        for size in _SIZES
    }
    presets["swin_l_384"] = Preset(
        "Swin-L at 384 pixels, 12x12 windows (Liu et al. 2021, Table 1)",
        swin_network("l", window(12), img_size=384),
    )
    presets["swin_n_t"] = Preset(
        "Swin-T with sliding 7x7 neighbourhoods in the first three stages "
        "(Zhou et al. 2023, Table 3; Han et al. 2022, Table 5)",
        swin_network("t", _neighborhood(), last=window()),
    )
    for size in ("t", "b"):
        presets[f"local_mlp_{size}"] = Preset(
            f"Swin-Local-MLP-{size.upper()}: static weights in shifted 7x7 windows, every window "
            "its own (Han et al. 2022, Table 2)",
            swin_network(size, local_mlp()),
        )
    return presets


def _convolution_presets() -> dict[str, Preset]:
    kinds: dict[str, tuple[str, Mixer]] = {
        "dwconv": ("DW-Conv-{}: static 7x7 depth-wise convolution", DepthwiseConv(kernel_size=7)),
        "d_dwconv": (
            "D-DW-Conv-{}: 7x7 filters generated for every image",
            DynamicDepthwiseConv(kernel_size=7),
        ),
        "id_dwconv": (
            "I-D-DW-Conv-{}: 7x7 filters generated at every position, 32 groups",
            InhomogeneousDepthwiseConv(kernel_size=7, num_groups=32),
        ),
    }
    presets = {
        f"{name}_{size}": Preset(
            f"{about.format(size.upper())} (Han et al. 2022, Table 2)",
            swin_network(size, lambda _dim, mixer=mixer: mixer),  # type: ignore[misc]
        )
        for name, (about, mixer) in kinds.items()
        for size in ("t", "b")
    }
    presets["id_dwconv_dw_t"] = Preset(
        "I-D-DW-Conv-T with another 7x7 depth-wise convolution in front of every MLP "
        "(Han et al. 2022, Table 6)",
        swin_network("t", lambda _dim: kinds["id_dwconv"][1], local_conv=7),
    )
    presets["ddf_swin_t"] = Preset(
        "Swin-T with decoupled dynamic 7x7 filters, one head (Zhou et al. 2023, Table 6)",
        swin_network("t", lambda _dim: DecoupledDynamicFilter(kernel_size=7)),
    )
    return presets


def _net_presets() -> dict[str, Preset]:
    presets = {
        f"net{number}_t": Preset(
            f"Net{number}: Swin-T with the terms {terms} (Zhou et al. 2023, Table 1)",
            swin_network("t", window(terms=terms)),
        )
        for number, terms in _NET_TERMS.items()
    }
    for suffix, norm, words in (
        ("id", "identity", "no normalisation"),
        ("fn", "filter_norm", "filter normalisation"),
    ):
        presets[f"net7_t_{suffix}"] = Preset(
            f"Net7 with {words} instead of softmax (Zhou et al. 2023, Table 2)",
            swin_network("t", window(terms=_NET_TERMS[7], norm=norm)),
        )
    for number in (6, 7):
        terms = _NET_TERMS[number]
        presets[f"net{number}n_t"] = Preset(
            f"Net{number}-N: Net{number} on 7x7 neighbourhoods in the first three stages "
            "(Zhou et al. 2023, Table 3)",
            swin_network("t", _neighborhood(terms), last=window(terms=terms)),
        )
    return presets


def _elsa_presets() -> dict[str, Preset]:
    presets = {
        f"elsa_swin_{size}": Preset(
            f"ELSA-Swin-{size.upper()}: Hadamard attention with ghost head in the first three "
            "stages (Zhou et al. 2023, Table 8)",
            swin_network(size, _elsa(4 if size == "t" else 8), last=window()),
        )
        for size in _SIZES
    }
    presets["elsa_swin_t_no_ghost"] = Preset(
        "ELSA-Swin-T without the ghost head (Zhou et al. 2023, Table 4)",
        swin_network("t", _elsa(4, gamma=0.0), last=window()),
    )
    presets["elsa_swin_l_384"] = Preset(
        "ELSA-Swin-L at 384 pixels, 12x12 windows in the last stage (Zhou et al. 2023, Table 8)",
        swin_network("l", _elsa(8), last=window(12), img_size=384),
    )
    return presets
