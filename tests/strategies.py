"""Hypothesis strategies for mixers and small architectures that can be built."""

from __future__ import annotations

from hypothesis import strategies as st

from searchspace.architecture import BLOCK_NORMS, Architecture, Stage
from searchspace.families import FAMILIES
from searchspace.mixers import (
    CONVS,
    NORMS,
    TERMS,
    DecoupledDynamicFilter,
    DepthwiseConv,
    DynamicDepthwiseConv,
    Elsa,
    GlobalAttention,
    InhomogeneousDepthwiseConv,
    Involution,
    LocalMlp,
    Mixer,
    NeighborhoodAttention,
    NoMixer,
    OutlookAttention,
    WindowAttention,
)

KERNEL_SIZES = st.sampled_from((1, 2, 3, 4, 5, 7))
TERM_SUMS = st.lists(st.sampled_from(TERMS), min_size=1, max_size=5, unique=True).map("+".join)


def divisors(number: int) -> st.SearchStrategy[int]:
    """Draw a number of heads or groups that divides the channels."""
    return st.sampled_from([part for part in range(1, number + 1) if number % part == 0])


def mixers(dim: int) -> st.SearchStrategy[Mixer]:
    """Draw any mixer for a width of at least 4 channels."""
    return st.one_of(_attention(dim), _static(dim), _dynamic(dim))


def _attention(dim: int) -> st.SearchStrategy[Mixer]:
    terms = {
        "num_heads": divisors(dim),
        "terms": TERM_SUMS,
        "norm": st.sampled_from(NORMS),
        "conv": st.sampled_from(CONVS),
    }
    return st.one_of(
        st.builds(WindowAttention, window_size=st.integers(1, 9), **terms),
        st.builds(NeighborhoodAttention, kernel_size=KERNEL_SIZES, **terms),
        st.builds(GlobalAttention, num_heads=divisors(dim), sr_ratio=st.integers(1, 3)),
        st.builds(
            OutlookAttention,
            num_heads=divisors(dim),
            kernel_size=st.sampled_from((3, 5)),
            stride=st.integers(1, 3),
        ),
        st.builds(
            Elsa,
            kernel_size=KERNEL_SIZES,
            num_heads=divisors(dim),
            group_width=st.sampled_from((1, 2, 4, 8)),
            lam=st.sampled_from((0.0, 0.5, 1.0, 2.0)),
            gamma=st.sampled_from((-1.0, 0.0, 0.5, 1.0)),
            dilation=st.integers(1, 2),
        ),
    )


def _static(dim: int) -> st.SearchStrategy[Mixer]:
    return st.one_of(
        st.builds(
            LocalMlp,
            window_size=st.integers(1, 9),
            num_heads=divisors(dim),
            shared_positions=st.booleans(),
        ),
        st.builds(
            DepthwiseConv,
            kernel_size=KERNEL_SIZES,
            channels_per_filter=divisors(dim),
            shared_positions=st.booleans(),
        ),
        st.just(NoMixer()),
    )


def _dynamic(dim: int) -> st.SearchStrategy[Mixer]:
    return st.one_of(
        st.builds(DynamicDepthwiseConv, kernel_size=KERNEL_SIZES),
        st.builds(InhomogeneousDepthwiseConv, kernel_size=KERNEL_SIZES, num_groups=divisors(dim)),
        st.builds(
            Involution,
            kernel_size=KERNEL_SIZES,
            group_channels=divisors(dim),
            reduction=st.sampled_from((1, 2, 4)),
        ),
        st.builds(
            DecoupledDynamicFilter,
            kernel_size=KERNEL_SIZES,
            num_heads=divisors(dim),
            combine=st.sampled_from(("mul", "add")),
            se_ratio=st.sampled_from((0.3, 0.5, 1.0)),
            dilation=st.integers(1, 2),
        ),
    )


@st.composite
def stages(draw: st.DrawFn, dim: int | None = None) -> Stage:
    """Draw a narrow stage of one to three blocks, each with its own mixer."""
    dim = dim or draw(st.sampled_from((4, 6, 8, 12, 16)))
    blocks = draw(st.lists(mixers(dim), min_size=1, max_size=3))
    ratio = st.sampled_from((0.5, 1.0, 2.5, 4.0))
    own = st.lists(ratio | st.just(0.0), min_size=len(blocks), max_size=len(blocks))
    return Stage(
        dim=dim,
        mixers=tuple(blocks),
        mlp_ratio=draw(ratio),
        block_mlp_ratios=draw(st.one_of(st.just(()), own.map(tuple))),
        norm=draw(st.sampled_from(BLOCK_NORMS)),
        se_reduction=draw(st.sampled_from((0, 0, 2, 4))),
        local_conv=draw(st.sampled_from((0, 0, 3))),
    )


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    """Draw a small network of any family; its maps have odd sides too."""
    family = draw(st.sampled_from(tuple(FAMILIES)))
    rule = FAMILIES[family]
    number = draw(st.integers(1, 3))
    # Families that round down need a token left in the last stage.
    least = 1 if rule.rounds_up else 2 ** min(number - 1, rule.halvings)
    patch_size = draw(st.sampled_from((2, 4) if rule.has_conv_stem else (1, 2, 4)))
    drawn = [draw(stages()) for _ in range(min(number, rule.halvings))]
    if number > rule.halvings:
        dim = draw(st.sampled_from((4, 8, 12)))
        drawn += [draw(stages(dim)) for _ in range(number - rule.halvings)]
    return Architecture(
        family=family,
        img_size=patch_size * draw(st.integers(least, 9)),
        patch_size=patch_size,
        stages=tuple(drawn),
        num_classes=draw(st.integers(1, 12)),
        in_chans=draw(st.sampled_from((1, 3))),
        stem_dim=draw(st.integers(1, 4)) if rule.has_conv_stem else 0,
    )
