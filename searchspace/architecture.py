"""`Architecture`: a frozen, hashable value that describes one network completely.

Equal networks are equal values and have one `key`: the mixers are canonical (`searchspace.mixers`),
a window that is larger than its map is stored as the map, which is what it computes, and a setting
that restates a default of its place is stored as the default.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, get_args

from searchspace.families import FAMILIES, map_sizes
from searchspace.mixer_text import describe_mixer
from searchspace.mixers import (
    CONV_KINDS,
    DecoupledDynamicFilter,
    DynamicDepthwiseConv,
    Elsa,
    InhomogeneousDepthwiseConv,
    Involution,
    Mixer,
    changed_settings,
    elsa_qk_dim,
    mixer_from_dict,
    mixer_to_dict,
)

BlockNorm = Literal["default", "layer", "batch", "centred_batch"]
# Windows, and cells that keys are reduced over, are at most the map.
SHRINKING = ("window_size", "sr_ratio")

BLOCK_NORMS: tuple[str, ...] = get_args(BlockNorm)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """Blocks at one resolution: their width in channels, the mixer of each, and what they share.

    Attributes:
        norm: The norms of the blocks: ``default`` is layer norm around attention and batch norm
            around and inside convolutions; ``layer``, ``batch`` and ``centred_batch`` (batch norm
            with centring calibration, Gao et al. 2021) replace all norms of the blocks (Han et al.
            2022, Table 11).
        se_reduction: Squeeze-and-excitation on the mixer's output with dim / se_reduction hidden
            channels; 0 for none (Han et al. 2022, Table 14: 16).
        local_conv: Kernel size of an extra depth-wise convolution in front of the MLP; 0 for none
            (Huang et al. 2021, Shuffle Transformer; Han et al. 2022, Table 6: 7).
        block_mlp_ratios: The MLP ratio of each block, where one has another than ``mlp_ratio``; a
            block with 0 has no MLP, nor a norm in front of it;
            else empty.
    """

    dim: int
    mixers: tuple[Mixer, ...]
    mlp_ratio: float = 4.0
    norm: BlockNorm = "default"
    se_reduction: int = 0
    local_conv: int = 0
    block_mlp_ratios: tuple[float, ...] = ()

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return len(self.mixers)

    @property
    def ratios(self) -> tuple[float, ...]:
        """The MLP ratio of each block."""
        return self.block_mlp_ratios or (self.mlp_ratio,) * self.depth

    def __post_init__(self) -> None:
        object.__setattr__(self, "mixers", tuple(self.mixers))
        object.__setattr__(self, "mlp_ratio", float(self.mlp_ratio))
        object.__setattr__(self, "block_mlp_ratios", _differing_ratios(self))
        if not _is_count(self.dim) or not self.mixers:
            raise ValueError(
                "A stage needs an integer dim >= 1 and at least one mixer, "
                f"got dim={self.dim!r} and {len(self.mixers)} mixers."
            )
        for ratio in (self.mlp_ratio, *filter(None, self.block_mlp_ratios)):
            if not 1 <= self.dim * ratio < float("inf"):
                raise ValueError(
                    "mlp_ratio * dim, the hidden width of the MLP, must be >= 1 and finite, "
                    f"got mlp_ratio={ratio} and dim={self.dim}."
                )
        if self.block_mlp_ratios and len(self.block_mlp_ratios) != self.depth:
            raise ValueError(
                "block_mlp_ratios has one ratio for each block, or none: got "
                f"{len(self.block_mlp_ratios)} for {self.depth} blocks."
            )
        _check_block_options(self)
        for mixer in self.mixers:
            _check_width(mixer, self.dim)
        canonical = (_without_defaults(mixer, self.dim) for mixer in self.mixers)
        object.__setattr__(self, "mixers", tuple(canonical))
        is_conv = {mixer.kind in CONV_KINDS for mixer in self.mixers}
        if (self.norm, is_conv) in (("layer", {False}), ("batch", {True})):
            object.__setattr__(self, "norm", "default")


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """One network: macro-architecture (`searchspace.families`) and the mixer of every block.

    Attributes:
        patch_size: Pixels a side that become one token of the first stage.
        stem_dim: Channels of the convolutions in front of the patches, in families that have them;
            0 in others.
    """

    img_size: int
    patch_size: int
    stages: tuple[Stage, ...]
    num_classes: int = 1000
    in_chans: int = 3
    family: str = "swin"
    stem_dim: int = 0

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"Unknown family {self.family!r}. Known: {', '.join(FAMILIES)}.")
        for name in ("img_size", "patch_size", "num_classes", "in_chans"):
            if not _is_count(getattr(self, name)):
                raise ValueError(f"{name} must be an integer >= 1, got {getattr(self, name)!r}.")
        if self.img_size % self.patch_size:
            raise ValueError(
                "patch_size must divide img_size, "
                f"got patch_size={self.patch_size} and img_size={self.img_size}. Choose a multiple."
            )
        if not self.stages:
            raise ValueError("An architecture needs at least one stage.")
        _check_family(self)
        canonical = (
            _shrink_windows(stage, size)
            for stage, size in zip(self.stages, self.resolutions, strict=True)
        )
        object.__setattr__(self, "stages", tuple(canonical))

    @property
    def resolutions(self) -> tuple[int, ...]:
        """The side of each stage's map, in tokens."""
        return map_sizes(self.family, self.img_size // self.patch_size, len(self.stages))

    @property
    def key(self) -> str:
        """A short name that equal networks share and others do not (12 hex digits of SHA-256).

        Only settings that differ from their defaults count, so that a key stays what it is when a
        mixer or stage gets a new setting.
        """
        return _key_of(self)

    def replace(self, **changes: Any) -> Architecture:
        """Return a copy with some fields changed, e.g. ``num_classes=10``."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Describe the architecture with JSON values; `from_dict` inverts it."""
        return {
            "family": self.family,
            "img_size": self.img_size,
            "in_chans": self.in_chans,
            "num_classes": self.num_classes,
            "patch_size": self.patch_size,
            "stages": [_stage_to_dict(stage) for stage in self.stages],
            "stem_dim": self.stem_dim,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Architecture:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: If a field is missing, unknown or out of its range.
        """
        try:
            stages = tuple(
                Stage(**{**stage, "mixers": tuple(map(mixer_from_dict, stage["mixers"]))})
                for stage in data["stages"]
            )
            return cls(**{**data, "stages": stages})
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"This is not a description of an architecture ({error}). "
                "Write one with `search show TARGET --json`."
            ) from error


def check_colours(in_chans: int) -> None:
    """Check that a network or space takes images as they are read: in red, green and blue.

    Raises:
        ValueError: If it does not.
    """
    if in_chans != 3:
        raise ValueError(
            f"Images are read in three colours, and this network takes in_chans={in_chans}. Take "
            "one with in_chans=3; grey images are read into three equal colours."
        )


def describe(architecture: Architecture, *, with_dims: bool = False) -> str:
    """Write the mixers compactly, a stage between bars: ``elsa7 h3 | win7 h24``.

    Equal blocks have their count, ``2x dw3``; blocks that differ inside a stage are joined by
    commas. An MLP ratio other than 4 stands at the end, ``dw3 m2``, and so do the channels of the
    stages if asked for, ``dw3 c96``.
    """
    return " | ".join(_describe_stage(stage, with_dims) for stage in architecture.stages)


def differ_in_dims(architectures: Iterable[Architecture]) -> bool:
    """Tell whether some of the networks are wider than others."""
    return len({tuple(stage.dim for stage in one.stages) for one in architectures}) > 1


def _describe_stage(stage: Stage, with_dim: bool) -> str:
    words = []
    if stage.mlp_ratio != 4 and not stage.block_mlp_ratios:
        words.append(f" m{stage.mlp_ratio:g}")
    if stage.norm != "default":
        words.append({"layer": " ln", "batch": " bn", "centred_batch": " ccbn"}[stage.norm])
    if stage.se_reduction:
        words.append(f" se{stage.se_reduction}")
    if stage.local_conv:
        words.append(f" +dw{stage.local_conv}")
    if with_dim:
        words.append(f" c{stage.dim}")
    blocks = [describe_mixer(mixer) for mixer in stage.mixers]
    if stage.block_mlp_ratios:
        pairs = zip(blocks, stage.block_mlp_ratios, strict=True)
        blocks = [f"{text} m{ratio:g}" for text, ratio in pairs]
    runs = [(text, len(list(run))) for text, run in groupby(blocks)]
    mixers = ", ".join(text if count == 1 else f"{count}x {text}" for text, count in runs)
    return mixers + "".join(words)


def _differing_ratios(stage: Stage) -> tuple[float, ...]:
    """Return the ratios of blocks; none where all have the stage's."""
    ratios = tuple(float(ratio) for ratio in stage.block_mlp_ratios)
    return () if set(ratios) <= {stage.mlp_ratio} else ratios


def _stage_to_dict(stage: Stage) -> dict[str, Any]:
    """Describe a stage; what only few have is left out elsewhere."""
    found = _fields(stage) | {"mixers": [mixer_to_dict(mixer) for mixer in stage.mixers]}
    ratios = found.pop("block_mlp_ratios")
    return found | ({"block_mlp_ratios": list(ratios)} if ratios else {})


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _fields(stage: Stage) -> dict[str, Any]:
    return {field.name: getattr(stage, field.name) for field in dataclasses.fields(stage)}


def _changed(stage: Stage) -> dict[str, Any]:
    defaults = {field.name: field.default for field in dataclasses.fields(stage)}
    return {name: value for name, value in _fields(stage).items() if value != defaults[name]}


def _check_block_options(stage: Stage) -> None:
    if stage.norm not in BLOCK_NORMS:
        raise ValueError(f"norm must be one of {', '.join(BLOCK_NORMS)}, got {stage.norm!r}.")
    for name in ("se_reduction", "local_conv"):
        value = getattr(stage, name)
        if (value != 0 and not _is_count(value)) or isinstance(value, bool):
            raise ValueError(f"{name} must be an integer >= 0, got {value!r}.")
    if stage.se_reduction > stage.dim:
        raise ValueError(
            "se_reduction must be at most the stage's dim, "
            f"got se_reduction={stage.se_reduction} and dim={stage.dim}."
        )


def _check_width(mixer: Mixer, dim: int) -> None:
    """Check that the mixer's heads and groups divide the channels, and that it has inner width."""
    for name in ("num_heads", "num_groups", "group_channels", "channels_per_filter"):
        parts, whole = getattr(mixer, name, 1), getattr(mixer, "v_dim", 0) or dim
        if whole % parts:
            raise ValueError(
                f"{mixer.kind}: {name} must divide the stage's dim, "
                f"got {name}={parts} and dim={whole}."
            )
    least = 1
    match mixer:
        case InhomogeneousDepthwiseConv() | DynamicDepthwiseConv():
            least = 4  # the generator has dim // 4 hidden channels
        case Involution():
            least = mixer.reduction
        case DecoupledDynamicFilter():
            least = 1 + int(0.999 / mixer.se_ratio)
        case Elsa():
            least = 3  # dim // 3 * 2 channels of queries and keys
            _check_logit_groups(mixer, dim)
    if dim < least:
        raise ValueError(f"{mixer.kind} needs dim >= {least}, got dim={dim}.")


def _check_logit_groups(mixer: Elsa, dim: int) -> None:
    qk_dim = mixer.qk_dim or elsa_qk_dim(dim, mixer.group_width)
    if qk_dim % mixer.logit_groups or mixer.num_heads * mixer.kernel_size**2 % mixer.logit_groups:
        raise ValueError(
            "elsa: logit_groups must divide the channels of queries and keys and heads * "
            f"kernel_size^2, got {mixer.logit_groups}, {qk_dim} and "
            f"{mixer.num_heads} * {mixer.kernel_size}^2."
        )


def _without_defaults(mixer: Mixer, dim: int) -> Mixer:
    """Store widths of ELSA that are those which 0 stands for as 0."""
    if not isinstance(mixer, Elsa):
        return mixer
    qk_dim = 0 if mixer.qk_dim == elsa_qk_dim(dim, mixer.group_width) else mixer.qk_dim
    v_dim = 0 if mixer.v_dim == dim else mixer.v_dim
    return dataclasses.replace(mixer, qk_dim=qk_dim, v_dim=v_dim)


def _check_family(architecture: Architecture) -> None:
    family, stages = FAMILIES[architecture.family], architecture.stages
    stem_dim = architecture.stem_dim
    is_right = (
        _is_count(stem_dim) if family.has_conv_stem else type(stem_dim) is int and not stem_dim
    )
    if not is_right:
        raise ValueError(
            f"stem_dim must be {'>= 1' if family.has_conv_stem else '0'} in the family "
            f"{architecture.family!r}, got {stem_dim!r}."
        )
    if family.has_conv_stem and architecture.patch_size % 2:
        raise ValueError(
            f"patch_size must be even in the family {architecture.family!r}, whose stem halves the "
            f"image, got {architecture.patch_size}."
        )
    if len({stage.dim for stage in stages[family.halvings :]}) > 1:
        raise ValueError(
            f"In the family {architecture.family!r} all stages behind the first must have one dim, "
            f"got {[stage.dim for stage in stages]}."
        )
    heads = getattr(stages[-1].mixers[-1], "num_heads", 1)
    if architecture.family == "volo" and stages[-1].dim % heads:
        raise ValueError(
            "In the family 'volo' class blocks have as many heads as the last mixer, which must "
            f"divide the stage's dim, got num_heads={heads} and dim={stages[-1].dim}."
        )
    if min(architecture.resolutions) < 1:
        raise ValueError(
            f"The map of stage {len(stages) - 1} would have no tokens: img_size "
            f"{architecture.img_size} is too small for {len(stages)} stages."
        )


def _shrink_windows(stage: Stage, size: int) -> Stage:
    mixers = tuple(on_map(mixer, size) for mixer in stage.mixers)
    return dataclasses.replace(stage, mixers=mixers)


def on_map(mixer: Mixer, size: int) -> Mixer:
    """Return what the mixer is on a map of that side in tokens: `SHRINKING` settings fit it."""
    shrunk = {name: min(getattr(mixer, name, 0), size) for name in SHRINKING}
    changed = {name: value for name, value in shrunk.items() if value < getattr(mixer, name, 0)}
    return mixer_from_dict({**mixer_to_dict(mixer), **changed}) if changed else mixer


@functools.lru_cache(maxsize=1 << 16)
def _key_of(architecture: Architecture) -> str:
    described = architecture.to_dict()
    described["stages"] = [
        _changed(stage) | {"mixers": [changed_settings(mixer) for mixer in stage.mixers]}
        for stage in architecture.stages
    ]
    if not architecture.stem_dim:
        del described["stem_dim"]
    text = json.dumps(described, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
