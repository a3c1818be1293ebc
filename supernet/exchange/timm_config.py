"""What timm's default configurations say of a network; needs no torch of our own."""

from __future__ import annotations

from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from searchspace.architecture import Architecture
from searchspace.families import FAMILIES


def default_config(architecture: Architecture) -> dict[str, Any]:
    """Describe a network as timm's default configurations do."""
    channels, size = architecture.in_chans, architecture.img_size
    least = _least_size(architecture)
    return {
        "input_size": (channels, size, size),
        "min_input_size": None if least is None else (channels, least, least),
        "fixed_input_size": _has_fixed_size(architecture),
        "pool_size": (architecture.resolutions[-1],) * 2,
        "num_classes": architecture.num_classes,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "first_conv": "patch_embed.conv.0" if architecture.stem_dim else "patch_embed.proj",
        "classifier": ("head", "aux_head") if architecture.family == "volo" else "head",
    }


def feature_info(architecture: Architecture) -> list[dict[str, Any]]:
    """List channels, reduction and module of the map behind each stage, as timm does."""
    halvings = FAMILIES[architecture.family].halvings
    return [
        {
            "num_chs": stage.dim,
            "reduction": architecture.patch_size * 2 ** min(index, halvings),
            "module": f"stages.{index}",
        }
        for index, stage in enumerate(architecture.stages)
    ]


def _has_fixed_size(architecture: Architecture) -> bool:
    """Tell whether the network has weights for each position of its maps."""
    return any(
        not getattr(mixer, "shared_positions", True)
        for stage in architecture.stages
        for mixer in stage.mixers
    )


def _least_size(architecture: Architecture) -> int | None:
    """Return the side of the smallest images whose maps all have tokens, where it matters."""
    reductions = [info["reduction"] for info in feature_info(architecture)]
    ratios = [
        max(getattr(mixer, "sr_ratio", 1) for mixer in stage.mixers)
        for stage in architecture.stages
    ]
    if FAMILIES[architecture.family].rounds_up and max(ratios) == 1:
        return None
    return max(size * ratio for size, ratio in zip(reductions, ratios, strict=True))
