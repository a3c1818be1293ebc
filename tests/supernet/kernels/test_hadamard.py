"""The convolution of Hadamard logits: every formulation against its definition in float64."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from supernet.kernels import hadamard_conv
from supernet.kernels.hadamard import in_c
from supernet.kernels.hadamard.naive import hadamard_conv_naive
from supernet.kernels.select import VARIABLE
from tests.supernet.kernels.formulations import assert_same_gradients, poisoned_buffers, use

FAST = ("torch", "c")
# (batch, height, width, groups, channels of a group, kernel size, dilation)
Shape = tuple[int, int, int, int, int, int, int]
EDGES: tuple[Shape, ...] = (
    (1, 1, 1, 1, 1, 1, 1),
    (2, 3, 4, 3, 4, 7, 1),
    (1, 2, 3, 1, 2, 9, 2),
    (1, 5, 4, 5, 2, 4, 1),
    (2, 4, 9, 9, 4, 3, 1),
    (1, 4, 5, 2, 3, 3, 1),
    (1, 3, 3, 1, 32, 3, 1),
    (0, 2, 3, 2, 2, 3, 1),
)


@pytest.fixture(autouse=True)
def _poisoned_buffers() -> Iterator[None]:
    with poisoned_buffers():
        yield


def example(shape: Shape, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    batch, height, width, groups, depth, size, _ = shape
    map_, channels = (batch, height, width, groups * depth), groups * depth
    shapes = (map_, map_, (size**2, channels, depth), (channels,))
    return tuple(torch.randn(s, dtype=dtype).requires_grad_() for s in shapes)


def assert_equals_definition(shape: Shape, dtype: torch.dtype, tolerance: float) -> None:
    assert_same_gradients(
        partial(hadamard_conv, dilation=shape[-1]),
        partial(hadamard_conv_naive, dilation=shape[-1]),
        example(shape, dtype),
        tolerance,
    )


@pytest.mark.parametrize("shape", EDGES)
@pytest.mark.parametrize("name", FAST)
def test_formulations_equal_the_definition_at_the_edges(
    monkeypatch: pytest.MonkeyPatch, name: str, shape: Shape
) -> None:
    use(monkeypatch, name)

    assert_equals_definition(shape, torch.float64, 1e-12)


def test_a_map_without_pixels_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "c")
    inputs = example((2, 3, 0, 2, 4, 3, 1))

    y = hadamard_conv(*inputs)
    grads = torch.autograd.grad(y.sum(), inputs)

    assert y.shape == (2, 3, 0, 8)
    assert all(not grad.any() for grad in grads)


@given(
    name=st.sampled_from(FAST),
    shape=st.tuples(
        st.integers(1, 2),
        st.integers(1, 8),
        st.integers(1, 15),
        st.integers(1, 5),
        st.sampled_from((1, 2, 3, 4, 8)),
        st.integers(1, 9),
        st.integers(1, 3),
    ),
)
def test_formulations_equal_the_definition(name: str, shape: Shape) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        use(monkeypatch, name)

        assert_equals_definition(shape, torch.float64, 1e-12)


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [("c", torch.float32, 1e-5), ("torch", torch.float32, 1e-5), ("torch", torch.bfloat16, 3e-2)],
)
@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_low_precision_stays_close_to_float64(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype, tolerance: float, depth: int
) -> None:
    use(monkeypatch, name)

    assert_equals_definition((2, 5, 17, 3, depth, 5, 1), dtype, tolerance)


@pytest.mark.parametrize("name", FAST)
def test_gradients_equal_finite_differences(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    use(monkeypatch, name)
    inputs = example((1, 2, 3, 2, 2, 2, 1))

    assert torch.autograd.gradcheck(hadamard_conv, inputs)
    assert torch.autograd.gradgradcheck(hadamard_conv, inputs)


def test_c_serves_groups_that_fit_a_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "c")

    served = [width for width in (1, 2, 3, 4, 6, 64) if in_c.serves(torch.empty(9, 192, width))]

    assert served == [1, 2, 4]


# torch's own checker looks at the gradients of intermediate tensors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", FAST)
def test_the_operator_fulfils_torch_librarys_contract(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    use(monkeypatch, name)

    torch.library.opcheck(
        torch.ops.mixer_search.hadamard_conv.default, (*example((2, 2, 3, 2, 2, 3, 1)), 1)
    )


@pytest.mark.parametrize("name", FAST)
def test_the_parts_of_a_packed_projection_are_read_where_they_lie(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    use(monkeypatch, name)
    queries, keys, _ = torch.randn(2, 4, 5, 24, dtype=torch.float64).split(8, -1)
    weight = torch.randn(8, 4, 9, dtype=torch.float64).movedim(2, 0)

    y = hadamard_conv(queries, keys, weight)

    torch.testing.assert_close(y, hadamard_conv_naive(queries, keys, weight))


@pytest.mark.parametrize("name", FAST)
def test_a_map_of_one_column_may_have_any_stride_from_column_to_column(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    use(monkeypatch, name)
    queries, keys = (torch.randn(2, 1, 7, 8, dtype=torch.float64).transpose(1, 2) for _ in "qk")
    weight = torch.randn(9, 8, 4, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (queries, keys, weight)]
    assert queries.is_contiguous()
    assert queries.stride(2) == 7 * 8

    assert_same_gradients(hadamard_conv, hadamard_conv_naive, inputs, 1e-11)


def test_results_repeat_and_are_right_on_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "c")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    shape = (2, 17, 16, 8, 4, 7, 1)
    inputs = example(shape)

    first, second = (
        torch.autograd.grad(hadamard_conv(*inputs).square().sum(), inputs) for _ in range(2)
    )

    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert_equals_definition(shape, torch.float64, 1e-12)


def test_the_forward_pass_saves_nothing_but_inputs() -> None:
    inputs = example((1, 4, 5, 2, 4, 3, 1), torch.float32)
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hadamard_conv(*inputs)

    assert set(saved) <= {x.data_ptr() for x in inputs}


@pytest.mark.parametrize("name", FAST)
def test_flops_are_those_of_the_grouped_convolution(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    use(monkeypatch, name)
    inputs = example((2, 4, 5, 3, 4, 3, 1), torch.float32)
    forward = 2 * (2 * 4 * 5) * 12 * 4 * 3**2

    with FlopCounterMode(display=False) as counter:
        y = hadamard_conv(*inputs)
        assert counter.get_total_flops() == forward
        y.sum().backward()

    assert counter.get_total_flops() == 3 * forward


@pytest.mark.parametrize("name", FAST)
def test_it_compiles_without_graph_breaks(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    use(monkeypatch, name)
    inputs = example((2, 4, 5, 2, 4, 3, 1))

    y = torch.compile(hadamard_conv, fullgraph=True, backend="aot_eager")(*inputs)
    grads = torch.autograd.grad(y.sum(), inputs)

    wanted = hadamard_conv_naive(*inputs)
    torch.testing.assert_close(y, wanted)
    for actual, expected in zip(grads, torch.autograd.grad(wanted.sum(), inputs), strict=True):
        torch.testing.assert_close(actual, expected)


def test_autocast_brings_the_operands_to_its_dtype() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = hadamard_conv(*example((1, 4, 5, 2, 4, 3, 1), torch.float32))

    assert y.dtype == torch.bfloat16


def test_the_naive_formulation_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "naive")
    inputs = example((1, 4, 5, 2, 4, 3, 1))

    assert torch.equal(hadamard_conv(*inputs), hadamard_conv_naive(*inputs))


@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [
        ((9, 8), (8,), "The weight must have shape"),
        ((8, 8, 4), (8,), "The weight must have shape"),
        ((9, 8, 3), (8,), "The weight must have shape"),
        ((9, 4, 4), (8,), "The weight must have shape"),
        ((9, 8, 4), (4,), "The bias must have shape"),
    ],
)
def test_operands_that_do_not_fit_are_refused(
    weight: tuple[int, ...], bias: tuple[int, ...], message: str
) -> None:
    x = torch.randn(1, 3, 3, 8)

    with pytest.raises(ValueError, match=message):
        hadamard_conv(x, x, torch.randn(weight), torch.randn(bias))
