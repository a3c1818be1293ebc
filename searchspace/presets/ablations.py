"""The variants of Swin-T, DW-Conv-T and Local-MLP-T that Han et al. 2022 compare."""

from __future__ import annotations

from searchspace.architecture import BlockNorm
from searchspace.mixers import DepthwiseConv
from searchspace.presets.preset import Preset
from searchspace.presets.swin import MakeMixer, depthwise, local_mlp, swin_network, window

_NORMS: dict[str, tuple[BlockNorm, str]] = {
    "ln": ("layer", "layer norm"),
    "bn": ("batch", "batch norm"),
    "ccbn": ("centred_batch", "centring-calibrated batch norm"),
}


def ablation_presets() -> dict[str, Preset]:
    """Return the heads, sharing, norm, squeeze-and-excitation and resolution studies."""
    return {
        **_heads_study(),
        **_sharing_study(),
        **_norm_study(),
        **_squeeze_study(),
        **_resolution_study(),
    }


def _heads_study() -> dict[str, Preset]:
    return {
        f"swin_t_h{channels}": Preset(
            f"Swin-T, channels in each head: {channels} (Han et al. 2022, Fig. 2)",
            swin_network("t", window(head_dim=channels)),
        )
        for channels in (1, 2, 3, 4, 6, 8, 16, 32, 48, 96)
    }


def _sharing_study() -> dict[str, Preset]:
    """Table 4: what is shared across the channels of a head, and across positions."""

    def conv(channels: int, shared: bool) -> MakeMixer:
        return lambda _dim: DepthwiseConv(
            kernel_size=7, channels_per_filter=channels, shared_positions=shared
        )

    table = "(Han et al. 2022, Table 4)"
    return {
        "local_mlp_t_sp": Preset(
            f"Local-MLP-T, weights shared by all windows {table}",
            swin_network("t", local_mlp(shared=True)),
        ),
        "local_mlp_t_h1_sp": Preset(
            f"Local-MLP-T, one head a channel, weights shared by all windows {table}",
            swin_network("t", local_mlp(head_dim=1, shared=True)),
        ),
        "dwconv_t_c32": Preset(
            f"DW-Conv-T, 32 channels a filter {table}", swin_network("t", conv(32, True))
        ),
        "dwconv_t_c32_nosp": Preset(
            f"DW-Conv-T, 32 channels a filter, every position its own {table}",
            swin_network("t", conv(32, False)),
        ),
    }


def _norm_study() -> dict[str, Preset]:
    presets = {}
    for name, title, mixer, suffixes in (
        ("swin_t", "Swin-T", window(), ("bn", "ccbn")),
        ("dwconv_t", "DW-Conv-T", depthwise(), ("ln", "ccbn")),
    ):
        for suffix in suffixes:
            norm, words = _NORMS[suffix]
            presets[f"{name}_{suffix}"] = Preset(
                f"{title} with {words} in its blocks (Han et al. 2022, Table 11)",
                swin_network("t", mixer, norm=norm),
            )
    return presets


def _squeeze_study() -> dict[str, Preset]:
    return {
        f"{name}_se": Preset(
            f"{title} with squeeze-and-excitation (Han et al. 2022, Table 14)",
            swin_network("t", mixer, se_reduction=16),
        )
        for name, title, mixer in (
            ("swin_t", "Swin-T", window()),
            ("dwconv_t", "DW-Conv-T", depthwise()),
        )
    }


def _resolution_study() -> dict[str, Preset]:
    return {
        "swin_t_384": Preset(
            "Swin-T at 384 pixels, 12x12 windows (Han et al. 2022, Table 13)",
            swin_network("t", window(12), img_size=384),
        ),
        "swin_t_384_w7": Preset(
            "Swin-T at 384 pixels, 7x7 windows on padded maps (Han et al. 2022, Table 13)",
            swin_network("t", window(), img_size=384),
        ),
        "dwconv_t_384": Preset(
            "DW-Conv-T at 384 pixels (Han et al. 2022, Table 13)",
            swin_network("t", depthwise(), img_size=384),
        ),
        "dwconv_t_384_k12": Preset(
            "DW-Conv-T at 384 pixels, 12x12 kernels (Han et al. 2022, Table 13)",
            swin_network("t", depthwise(12), img_size=384),
        ),
    }
