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
from dataclasses import asdict, dataclass, fields
from typing import ClassVar, Literal, TypeAlias, get_args

Norm = Literal["softmax", "filter_norm", "identity"]
Setting: TypeAlias = str | int | float

TERMS = ("qk", "qr", "rk", "bias")
NORMS: tuple[str, ...] = get_args(Norm)


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowAttention:
    """Attention inside (shifted) windows of ``window_size`` x ``window_size`` tokens.

    Swin Transformer, eq. (4), with the terms of Zhou et al., Eq. 4: ``qk`` (q_i.k_j), ``qr``
    (q_i.r^k_{j-i}), ``rk`` (r^q_{j-i}.k_j) and ``bias`` (r^b_{j-i}).
    """

    kind: ClassVar[str] = "window_attention"
    short: ClassVar[str] = "win"
    window_size: int
    num_heads: int
    terms: str = "qk+bias"
    norm: Norm = "softmax"

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", _canonical_terms(self.terms))
        _check_positive(self, "window_size", "num_heads")
        _check_one_of(self, "norm", NORMS)


@dataclass(frozen=True, kw_only=True, slots=True)
class NeighborhoodAttention:
    """Attention over the ``kernel_size`` x ``kernel_size`` neighbours of every token.

    Zhou et al., Eq. 4 with the sliding area. Neighbours outside the map are zero tokens that take
    part in the normalisation, as in the published ELSA and Outlooker code.
    """

    kind: ClassVar[str] = "neighborhood_attention"
    short: ClassVar[str] = "nbhd"
    kernel_size: int
    num_heads: int
    terms: str = "qk+bias"
    norm: Norm = "softmax"

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", _canonical_terms(self.terms))
        _check_positive(self, "num_heads")
        _check_odd(self, "kernel_size")
        _check_one_of(self, "norm", NORMS)


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthwiseConv:
    """A static filter for every channel, between two 1x1 convolutions (Han et al. 2022, DW)."""

    kind: ClassVar[str] = "depthwise_conv"
    short: ClassVar[str] = "dw"
    kernel_size: int

    def __post_init__(self) -> None:
        _check_odd(self, "kernel_size")


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
        _check_positive(self, "num_groups")
        _check_odd(self, "kernel_size")


@dataclass(frozen=True, kw_only=True, slots=True)
class Elsa:
    """Hadamard attention with a ghost head: filter = mul^lam * attention + gamma * add.

    Zhou et al. 2023, Eq. 7-8. ``lam = 0`` has no multiplicative matrix, ``gamma = 0`` no additive
    one; the published ELSA-Swin uses ``lam = 0``, ``gamma = 1``. ``group_width`` is the width of
    the groups of the convolution that generates the logits.
    """

    kind: ClassVar[str] = "elsa"
    short: ClassVar[str] = "elsa"
    kernel_size: int
    num_heads: int
    group_width: int = 4
    lam: float = 0.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        _check_positive(self, "num_heads", "group_width")
        _check_odd(self, "kernel_size")
        # + 0.0 turns -0.0 into 0.0, so that equal layers are equal values.
        object.__setattr__(self, "lam", float(self.lam) + 0.0)
        object.__setattr__(self, "gamma", float(self.gamma) + 0.0)
        if not 0 <= self.lam < float("inf"):
            raise ValueError(f"elsa: lam must be a finite number >= 0, got {self.lam}.")
        if not abs(self.gamma) < float("inf"):
            raise ValueError(f"elsa: gamma must be a finite number, got {self.gamma}.")


Mixer: TypeAlias = (
    WindowAttention | NeighborhoodAttention | DepthwiseConv | InhomogeneousDepthwiseConv | Elsa
)

MIXER_KINDS: dict[str, type[Mixer]] = {
    cls.kind: cls
    for cls in (
        WindowAttention,
        NeighborhoodAttention,
        DepthwiseConv,
        InhomogeneousDepthwiseConv,
        Elsa,
    )
}

# Han's convolution blocks have batch norms inside and before the FFN and no norm before the mixer;
# attention blocks are pre-norm with layer norm (reference: the published DWNet and Swin).
CONV_KINDS = frozenset({DepthwiseConv.kind, InhomogeneousDepthwiseConv.kind})


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
    return {"kind": mixer.kind, **asdict(mixer)}


def describe_mixer(mixer: Mixer) -> str:
    """Write a mixer compactly, e.g. ``nbhd5 h12 qr+rk+b``; defaults are left out."""
    size = mixer.window_size if isinstance(mixer, WindowAttention) else mixer.kernel_size
    words = [f"{mixer.short}{size}"]
    match mixer:
        case WindowAttention() | NeighborhoodAttention():
            words.append(f"h{mixer.num_heads}")
            if mixer.terms != "qk+bias":
                words.append(mixer.terms.replace("bias", "b"))
            if mixer.norm != "softmax":
                words.append({"filter_norm": "fn", "identity": "id"}[mixer.norm])
        case InhomogeneousDepthwiseConv():
            words.append(f"g{mixer.num_groups}")
        case Elsa():
            words.append(f"h{mixer.num_heads}")
            if (mixer.lam, mixer.gamma) != (0.0, 1.0):
                words.append(f"l{mixer.lam:g} g{mixer.gamma:g}")
            if mixer.group_width != 4:
                words.append(f"w{mixer.group_width}")
    return " ".join(words)


def elsa_qk_dim(dim: int, group_width: int) -> int:
    """Return the channels of ELSA's queries and keys: two thirds of ``dim``, in whole groups."""
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


def _check_positive(mixer: Mixer, *names: str) -> None:
    for name in names:
        value = getattr(mixer, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{mixer.kind}: {name} must be an integer >= 1, got {value!r}.")


def _check_odd(mixer: Mixer, name: str) -> None:
    _check_positive(mixer, name)
    if getattr(mixer, name) % 2 == 0:
        raise ValueError(
            f"{mixer.kind}: {name} must be odd, so that it has a centre, "
            f"got {getattr(mixer, name)}."
        )


def _check_one_of(mixer: Mixer, name: str, allowed: tuple[str, ...]) -> None:
    if getattr(mixer, name) not in allowed:
        raise ValueError(
            f"{mixer.kind}: {name} must be one of {', '.join(allowed)}, "
            f"got {getattr(mixer, name)!r}."
        )
