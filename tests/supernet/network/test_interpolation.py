"""Laws of starting at another size: what is kept, what is interpolated, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from searchspace.architecture import Architecture, Stage
from searchspace.mixers import (
    DepthwiseConv,
    DynamicDepthwiseConv,
    Elsa,
    InhomogeneousDepthwiseConv,
    Involution,
    Mixer,
    NeighborhoodAttention,
    WindowAttention,
)
from supernet.network.interpolation import interpolated_start, resize_taps
from supernet.network.supernet import Supernet, build_subnet


def network(
    img_size: int = 16, *, kernel: int = 3, window: int = 4, num_classes: int = 4
) -> Supernet:
    mixers = (
        DepthwiseConv(kernel_size=kernel),
        WindowAttention(window_size=window, num_heads=2),
        NeighborhoodAttention(kernel_size=kernel, num_heads=2, terms="qk+qr+rk+bias"),
        Elsa(kernel_size=kernel, num_heads=2, lam=1.0, gamma=1.0),
    )
    torch.manual_seed(0)
    return build_subnet(
        Architecture(
            img_size=img_size,
            patch_size=2,
            num_classes=num_classes,
            stages=(Stage(dim=8, mixers=mixers),),
        )
    )


def test_the_same_sizes_are_copied_as_they_are() -> None:
    old = network().state_dict()

    start = interpolated_start(old, network())

    assert start.interpolated == ()
    assert all(torch.equal(value, old[name]) for name, value in start.state.items())


def test_another_image_size_alone_changes_no_weight() -> None:
    old = network(16)

    start = interpolated_start(old.state_dict(), network(32))

    assert start.interpolated == ()


def test_tables_and_kernels_are_interpolated_and_summed_taps_keep_their_sum() -> None:
    old, new = network(kernel=3, window=4), network(32, kernel=5, window=8)

    start = interpolated_start(old.state_dict(), new)
    new.load_state_dict(start.state)

    ends = {name.partition("mixers.")[2] for name in start.interpolated}
    assert ends == {
        "depthwise_conv.weight",
        "window_attention.attention.table_bias",
        *(f"neighborhood_attention.attention.table_{term}" for term in ("bias", "qr", "rk")),
        *(f"elsa.{part}" for part in ("conv_weight", "logit_weight", "logit_bias", "mul", "add")),
    }
    # A constant kernel stays constant, with the same sum; a constant table keeps its value.
    for name, summed in (("depthwise_conv.weight", True), ("elsa.add", True), ("elsa.mul", False)):
        constant = old.state_dict()
        (full,) = (key for key in constant if key.endswith(name))
        constant[full] = torch.full_like(constant[full], 9.0)
        resized = interpolated_start(constant, new).state[full]
        expected = 9.0 * 9 / 25 if summed else 9.0
        torch.testing.assert_close(resized, torch.full_like(resized, expected))


@pytest.mark.parametrize(
    ("make", "tables"),
    [
        (DynamicDepthwiseConv, ("generator.weight", "generator.bias")),
        (
            partial(InhomogeneousDepthwiseConv, num_groups=2),
            ("generator.weight", "generator.bias"),
        ),
        (partial(Involution, group_channels=4), ("generators.4.weight", "generators.4.bias")),
        (partial(DepthwiseConv, shared_positions=False), ("position_weight",)),
    ],
)
def test_filters_that_are_made_or_of_one_position_keep_their_sum(
    make: Callable[..., Mixer], tables: tuple[str, ...]
) -> None:
    def built(kernel_size: int) -> Supernet:
        stage = Stage(dim=8, mixers=(make(kernel_size=kernel_size),))
        return build_subnet(Architecture(img_size=8, patch_size=2, stages=(stage,)))

    old = built(3).state_dict()
    names = [name for name in old if name.endswith(tables)]
    assert len(names) == len(tables)
    # The same filter at each of its taps, so that it is constant at the other size, too.
    flat = {name: old[name][:1].expand_as(old[name]).clone() for name in names}

    start = interpolated_start(old | flat, built(5))

    for name in names:
        torch.testing.assert_close(start.state[name].sum(0), flat[name].sum(0))


def cubic_matrix(old: int, new: int) -> torch.Tensor:
    """Return Keys' cubic convolution (a = -0.75) with repeated borders as a matrix (new, old)."""
    matrix = torch.zeros(new, old)
    for row in range(new):
        centre = (row + 0.5) * old / new - 0.5
        for tap in range(int(centre // 1) - 1, int(centre // 1) + 3):
            x = abs(centre - tap)
            weight = (
                1.25 * x**3 - 2.25 * x**2 + 1 if x <= 1 else -0.75 * x**3 + 3.75 * x**2 - 6 * x + 3
            )
            matrix[row, min(max(tap, 0), old - 1)] += weight
    return matrix


def test_a_table_is_interpolated_bicubically_over_its_offsets() -> None:
    # 7 to 12, as in Han's Table 13.
    table = torch.randn(49, 3)
    matrix = cubic_matrix(7, 12)

    resized = resize_taps(table, 12, keep_sum=False)

    expected = torch.einsum("ir,js,rsc->ijc", matrix, matrix, table.unflatten(0, (7, 7)))
    torch.testing.assert_close(resized, expected.flatten(0, 1), rtol=1e-4, atol=1e-5)


def test_a_classifier_of_other_classes_starts_fresh() -> None:
    new = network(num_classes=7)

    start = interpolated_start(network().state_dict(), new)

    assert torch.equal(start.state["head.weight"], new.head.weight)
    assert torch.equal(start.state["head.bias"], new.head.bias)


class Embedded(nn.Module):
    """Has a position embedding, as the VOLO family has."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.full((1, side, side, 3), float(side)))


def test_position_embeddings_are_interpolated_over_places() -> None:
    start = interpolated_start(Embedded(4).state_dict(), Embedded(6))

    torch.testing.assert_close(start.state["pos_embed"], torch.full((1, 6, 6, 3), 4.0))


def test_another_network_is_refused() -> None:
    with pytest.raises(ValueError, match="Choose the folder of a retraining of this network"):
        interpolated_start(network().state_dict(), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"weight is \(2, 3\) .* \(2, 5\) in the network"):
        interpolated_start(nn.Linear(3, 2).state_dict(), nn.Linear(5, 2))
