"""Hypothesis strategies for mixers and small architectures that can be built."""

from __future__ import annotations

from hypothesis import strategies as st

from searchspace.architecture import Architecture, Stage
from searchspace.mixers import (
    NORMS,
    TERMS,
    DepthwiseConv,
    Elsa,
    InhomogeneousDepthwiseConv,
    Mixer,
    NeighborhoodAttention,
    WindowAttention,
)

ODD_SIZES = st.sampled_from((1, 3, 5, 7))
TERM_SUMS = st.lists(st.sampled_from(TERMS), min_size=1, max_size=4, unique=True).map("+".join)


def divisors(number: int) -> st.SearchStrategy[int]:
    """Draw a number of heads or groups that divides the channels."""
    return st.sampled_from([part for part in range(1, number + 1) if number % part == 0])


def mixers(dim: int) -> st.SearchStrategy[Mixer]:
    """Draw any mixer for a width of at least 4 channels."""
    attention = {
        "num_heads": divisors(dim),
        "terms": TERM_SUMS,
        "norm": st.sampled_from(NORMS),
    }
    return st.one_of(
        st.builds(WindowAttention, window_size=st.integers(1, 9), **attention),
        st.builds(NeighborhoodAttention, kernel_size=ODD_SIZES, **attention),
        st.builds(DepthwiseConv, kernel_size=ODD_SIZES),
        st.builds(InhomogeneousDepthwiseConv, kernel_size=ODD_SIZES, num_groups=divisors(dim)),
        st.builds(
            Elsa,
            kernel_size=ODD_SIZES,
            num_heads=divisors(dim),
            group_width=st.sampled_from((1, 2, 4, 8)),
            lam=st.sampled_from((0.0, 1.0, 2.0)),
            gamma=st.sampled_from((-1.0, 0.0, 0.5, 1.0)),
        ),
    )


@st.composite
def stages(draw: st.DrawFn) -> Stage:
    """Draw a narrow stage of one to three blocks, each with its own mixer."""
    dim = draw(st.sampled_from((4, 6, 8, 12, 16)))
    blocks = draw(st.lists(mixers(dim), min_size=1, max_size=3))
    return Stage(
        dim=dim, mixers=tuple(blocks), mlp_ratio=draw(st.sampled_from((0.5, 1.0, 2.5, 4.0)))
    )


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    """Draw a small network; its maps have odd sides too."""
    patch_size = draw(st.sampled_from((1, 2, 4)))
    return Architecture(
        img_size=patch_size * draw(st.integers(1, 9)),
        patch_size=patch_size,
        stages=tuple(draw(st.lists(stages(), min_size=1, max_size=3))),
        num_classes=draw(st.integers(1, 12)),
        in_chans=draw(st.sampled_from((1, 3))),
    )
