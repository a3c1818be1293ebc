"""The mixer family as values: one frozen dataclass for each published mixer, with its settings.

A mixer moves information between tokens. Every kind is a point of one family (Zhou et al. 2023,
Eq. 4-7; Han et al. 2022, App. B-C)::

    y_i = sum over j in area(i) of  ghost( norm_area( terms(i, j) ) ) * v_j

Two values are equal exactly when they describe the same layer: a kind has only the fields that it
uses, and a field with several spellings (the order of terms, ``1`` and ``1.0``) has one stored
form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import ClassVar, Literal, TypeAlias, get_args

Norm = Literal["softmax", "filter_norm", "identity"]
AttentionConv = Literal["none", "post", "pre", "pre_depthwise", "pre_full"]
Combine = Literal["mul", "add"]
Setting: TypeAlias = str | int | float  # a bool is an int

TERMS = ("qk", "qr", "rk", "static", "bias")
NORMS: tuple[str, ...] = get_args(Norm)
CONVS: tuple[str, ...] = get_args(AttentionConv)


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowAttention:
    """Attention inside (shifted) windows of ``window_size`` x ``window_size`` tokens.

    Swin Transformer, eq. (4), with the terms of Zhou et al., Eq. 4: ``qk`` (q_i.k_j), ``qr``
    (q_i.r^k_{j-i}), ``rk`` (r^q_{j-i}.k_j), ``bias`` (r^b_{j-i}), and Han et al.'s Eq. 24:
    ``static`` (theta_{j-i}.x_i). ``conv`` is convolutional attention: ``post`` convolves the qk
    logits over the area (Eq. 25), ``pre`` convolves the map that queries and keys are made of with
    one 3x3 kernel for all channels (Eq. 26), ``pre_depthwise`` with one a channel, ``pre_full``
    with a whole convolution (Eq. 27).
    """

    kind: ClassVar[str] = "window_attention"
    short: ClassVar[str] = "win"
    window_size: int
    num_heads: int
    terms: str = "qk+bias"
    norm: Norm = "softmax"
    conv: AttentionConv = "none"

    def __post_init__(self) -> None:
        _check_attention(self)
        _check_positive(self, "window_size", "num_heads")


@dataclass(frozen=True, kw_only=True, slots=True)
class NeighborhoodAttention:
    """Attention over the ``kernel_size`` x ``kernel_size`` neighbours of every token.

    Zhou et al., Eq. 4 with the sliding area. Neighbours outside the map are zero tokens that take
    part in the normalisation, as in the published ELSA and Outlooker code. The settings are those
    of `WindowAttention`.
    """

    kind: ClassVar[str] = "neighborhood_attention"
    short: ClassVar[str] = "nbhd"
    kernel_size: int
    num_heads: int
    terms: str = "qk+bias"
    norm: Norm = "softmax"
    conv: AttentionConv = "none"

    def __post_init__(self) -> None:
        _check_attention(self)
        _check_positive(self, "num_heads", "kernel_size")


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalMlp:
    """Window attention whose weights are parameters (Han et al. 2022, Local MLP).

    One weight for each pair of tokens of a (shifted) window and head, plus Swin's relative position
    bias. ``shared_positions`` uses the same weights in every window. As many heads as channels
    share nothing across channels.
    """

    kind: ClassVar[str] = "local_mlp"
    short: ClassVar[str] = "lmlp"
    window_size: int
    num_heads: int
    shared_positions: bool = False

    def __post_init__(self) -> None:
        _check_positive(self, "window_size", "num_heads")
        _check_bool(self, "shared_positions")


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthwiseConv:
    """A static filter for every channel, between two 1x1 convolutions (Han et al. 2022, DW).

    Han's Table 4 varies the sharing: ``channels_per_filter`` channels have one filter, and without
    ``shared_positions`` every position of the map has filters of its own.
    """

    kind: ClassVar[str] = "depthwise_conv"
    short: ClassVar[str] = "dw"
    kernel_size: int
    channels_per_filter: int = 1
    shared_positions: bool = True

    def __post_init__(self) -> None:
        _check_positive(self, "kernel_size", "channels_per_filter")
        _check_bool(self, "shared_positions")


@dataclass(frozen=True, kw_only=True, slots=True)
class DynamicDepthwiseConv:
    """A filter for every channel, generated from the pooled map (Han et al. 2022, D-DW)."""

    kind: ClassVar[str] = "dynamic_depthwise_conv"
    short: ClassVar[str] = "ddw"
    kernel_size: int

    def __post_init__(self) -> None:
        _check_positive(self, "kernel_size")


@dataclass(frozen=True, kw_only=True, slots=True)
class InhomogeneousDepthwiseConv:
    """A filter generated at every position for each of ``num_groups`` groups of channels.

    Han et al. 2022, I-D-DW. The published networks use 32 groups in every stage.
    """

    kind: ClassVar[str] = "inhomogeneous_depthwise_conv"
    short: ClassVar[str] = "iddw"
    kernel_size: int
    num_groups: int

    def __post_init__(self) -> None:
        _check_positive(self, "num_groups", "kernel_size")


@dataclass(frozen=True, kw_only=True, slots=True)
class Involution:
    """A filter generated at every position for each ``group_channels`` channels.

    Li et al. 2021 (Involution), between two 1x1 convolutions as in RedNet. It differs from
    `InhomogeneousDepthwiseConv` in its generator: dim / ``reduction`` hidden channels without bias.
    """

    kind: ClassVar[str] = "involution"
    short: ClassVar[str] = "inv"
    kernel_size: int
    group_channels: int = 16
    reduction: int = 4

    def __post_init__(self) -> None:
        _check_positive(self, "kernel_size", "group_channels", "reduction")


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoupledDynamicFilter:
    """A filter per position and head, combined with a filter per channel of each image.

    Zhou et al. 2021 (DDF), in the place of attention: between the value and output projections.
    ``combine`` multiplies or adds the two filters, both filter-normalised. ``se_ratio`` is the
    width of the channel branch over ``dim``.
    """

    kind: ClassVar[str] = "decoupled_dynamic_filter"
    short: ClassVar[str] = "ddf"
    kernel_size: int
    num_heads: int = 1
    combine: Combine = "mul"
    se_ratio: float = 0.2
    dilation: int = 1

    def __post_init__(self) -> None:
        _check_positive(self, "kernel_size", "num_heads", "dilation")
        _check_one_of(self, "combine", get_args(Combine))
        object.__setattr__(self, "se_ratio", float(self.se_ratio))
        if not 0 < self.se_ratio <= 1:
            raise ValueError(f"{self.kind}: se_ratio must be in (0, 1], got {self.se_ratio}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class OutlookAttention:
    """Attention that a pooled token generates for the K x K values around it, overlaps summed.

    Yuan et al. 2021 (VOLO). ``stride`` is that of the pooling.
    """

    kind: ClassVar[str] = "outlook_attention"
    short: ClassVar[str] = "outlook"
    num_heads: int
    kernel_size: int = 3
    stride: int = 2

    def __post_init__(self) -> None:
        _check_positive(self, "num_heads", "kernel_size", "stride")
        if self.kernel_size % 2 == 0 or self.stride > self.kernel_size:
            raise ValueError(
                f"{self.kind}: kernel_size must be odd and at least the stride, got "
                f"kernel_size={self.kernel_size} and stride={self.stride}."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Elsa:
    """Hadamard attention with a ghost head: filter = mul^lam * attention + gamma * add.

    Zhou et al. 2023, Eq. 7-8. ``lam = 0`` has no multiplicative matrix, ``gamma = 0`` no additive
    one; the published ELSA-Swin uses ``lam = 0``, ``gamma = 1``. ``group_width`` is the width of
    the groups of the convolution that generates the logits, ``logit_groups`` the number of groups
    of the 1x1 convolution behind it. ``qk_dim`` and ``v_dim`` are the channels of queries and keys
    and of values; 0 is the published default, two thirds of ``dim`` in whole groups, and ``dim``.
    """

    kind: ClassVar[str] = "elsa"
    short: ClassVar[str] = "elsa"
    kernel_size: int
    num_heads: int
    group_width: int = 4
    lam: float = 0.0
    gamma: float = 1.0
    dilation: int = 1
    logit_groups: int = 1
    qk_dim: int = 0
    v_dim: int = 0

    def __post_init__(self) -> None:
        _check_positive(self, "kernel_size", "num_heads", "group_width", "dilation", "logit_groups")
        # + 0.0 turns -0.0 into 0.0, so that equal layers are equal values.
        object.__setattr__(self, "lam", float(self.lam) + 0.0)
        object.__setattr__(self, "gamma", float(self.gamma) + 0.0)
        if not 0 <= self.lam < float("inf"):
            raise ValueError(f"elsa: lam must be a finite number >= 0, got {self.lam}.")
        if not abs(self.gamma) < float("inf"):
            raise ValueError(f"elsa: gamma must be a finite number, got {self.gamma}.")
        for name in ("qk_dim", "v_dim"):
            if not _is_int(getattr(self, name)) or getattr(self, name) < 0:
                raise ValueError(
                    f"elsa: {name} must be an integer >= 0, got {getattr(self, name)!r}."
                )
        if self.qk_dim % self.group_width:
            raise ValueError(
                "elsa: group_width must divide qk_dim, "
                f"got group_width={self.group_width} and qk_dim={self.qk_dim}."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class GlobalAttention:
    """Attention of every token to all tokens, or to a map reduced ``sr_ratio`` times a side.

    Dosovitskiy et al. 2021; spatially reduced as in PVT and Twins-SVT (GSA): a convolution with
    kernel and stride ``sr_ratio`` and a layer norm in front of keys and values.
    """

    kind: ClassVar[str] = "global_attention"
    short: ClassVar[str] = "global"
    num_heads: int
    sr_ratio: int = 1

    def __post_init__(self) -> None:
        _check_positive(self, "num_heads", "sr_ratio")


@dataclass(frozen=True, kw_only=True, slots=True)
class NoMixer:
    """No mixing at all: the block is its MLP alone, as a block that lost its attention is.

    Puzzle (Bercovich et al. 2024) offers it to every block of a trained network. It counts as one
    of the attention kinds: a layer norm stands in front of the MLP, and none in front of nothing.
    """

    kind: ClassVar[str] = "no_mixer"
    short: ClassVar[str] = "none"


Mixer: TypeAlias = (
    WindowAttention
    | NeighborhoodAttention
    | LocalMlp
    | DepthwiseConv
    | DynamicDepthwiseConv
    | InhomogeneousDepthwiseConv
    | Involution
    | DecoupledDynamicFilter
    | OutlookAttention
    | Elsa
    | GlobalAttention
    | NoMixer
)

MIXER_KINDS: dict[str, type[Mixer]] = {cls.kind: cls for cls in get_args(Mixer)}

# Han's convolution blocks have batch norms inside and before the FFN and no norm before the mixer;
# attention blocks are pre-norm with layer norm (reference: the published DWNet and Swin). An
# involution stands between 1x1 convolutions in the same way (RedNet's bottleneck).
CONV_KINDS = frozenset(
    cls.kind
    for cls in (DepthwiseConv, DynamicDepthwiseConv, InhomogeneousDepthwiseConv, Involution)
)


@cache
def mixer_settings(kind: str) -> tuple[str, ...]:
    """Name the settings of a mixer kind, in their declared order."""
    return tuple(field.name for field in fields(_mixer_class(kind)))


def mixer_from_dict(data: Mapping[str, Setting]) -> Mixer:
    """Build a mixer from ``{"kind": ..., setting: value, ...}``, the inverse of `mixer_to_dict`."""
    settings = dict(data)
    cls = _mixer_class(str(settings.pop("kind", "")))
    known = mixer_settings(cls.kind)
    if unknown := sorted(set(settings) - set(known)):
        raise ValueError(
            f"{cls.kind} has no setting {unknown[0]!r}. Its settings are {', '.join(known)}."
        )
    try:
        return cls(**settings)  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(f"{cls.kind} needs the settings {', '.join(known)}: {error}.") from error


def mixer_to_dict(mixer: Mixer) -> dict[str, Setting]:
    """Describe a mixer with JSON values."""
    return {
        "kind": mixer.kind,
        **{name: getattr(mixer, name) for name in mixer_settings(mixer.kind)},
    }


def changed_settings(mixer: Mixer) -> dict[str, Setting]:
    """Describe a mixer with the settings that differ from their defaults, and its kind."""
    changed = {
        field.name: getattr(mixer, field.name)
        for field in fields(mixer)
        if getattr(mixer, field.name) != field.default
    }
    return {"kind": mixer.kind, **changed}


def elsa_qk_dim(dim: int, group_width: int) -> int:
    """Return the default channels of ELSA's queries and keys: two thirds of ``dim``, rounded up.

    The published code divides first, ``dim // 3 * 2``, and rounds up to whole groups.
    """
    return -(-(dim // 3 * 2) // group_width) * group_width


def split_terms(terms: str) -> tuple[str, ...]:
    """Split ``"qk+bias"`` into its terms."""
    return tuple(terms.split("+"))


def _mixer_class(kind: str) -> type[Mixer]:
    if kind not in MIXER_KINDS:
        raise ValueError(f"Unknown mixer {kind!r}. Known mixers: {', '.join(MIXER_KINDS)}.")
    return MIXER_KINDS[kind]


def _canonical_terms(terms: str) -> str:
    parts = set(str(terms).split("+"))
    if not parts <= set(TERMS):
        raise ValueError(
            f"Attention terms are a sum of {', '.join(TERMS)}, got {terms!r}. Write e.g. 'qk+bias'."
        )
    return "+".join(term for term in TERMS if term in parts)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_attention(mixer: WindowAttention | NeighborhoodAttention) -> None:
    """Check the settings of attention and bring them into one form."""
    object.__setattr__(mixer, "terms", _canonical_terms(mixer.terms))
    _check_one_of(mixer, "norm", NORMS)
    _check_one_of(mixer, "conv", CONVS)
    # A convolution of what no term uses does nothing.
    used = {"qk"} if mixer.conv == "post" else {"qk", "qr", "rk"}
    if not used & set(split_terms(mixer.terms)):
        object.__setattr__(mixer, "conv", "none")


def _check_positive(mixer: Mixer, *names: str) -> None:
    for name in names:
        value = getattr(mixer, name)
        if not _is_int(value) or value < 1:
            raise ValueError(f"{mixer.kind}: {name} must be an integer >= 1, got {value!r}.")


def _check_bool(mixer: Mixer, name: str) -> None:
    if not isinstance(getattr(mixer, name), bool):
        raise ValueError(
            f"{mixer.kind}: {name} must be true or false, got {getattr(mixer, name)!r}."
        )


def _check_one_of(mixer: Mixer, name: str, allowed: tuple[str, ...]) -> None:
    if getattr(mixer, name) not in allowed:
        raise ValueError(
            f"{mixer.kind}: {name} must be one of {', '.join(allowed)}, "
            f"got {getattr(mixer, name)!r}."
        )
