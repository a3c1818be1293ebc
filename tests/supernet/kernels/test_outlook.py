"""Every formulation of outlook aggregation against its definition, with gradients.

Output buffers are poisoned: `torch.empty` holds NaN, so that a value nobody wrote is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from supernet.kernels import outlook_aggregate
from supernet.kernels.outlook.naive import outlook_aggregate_naive
from supernet.kernels.select import VARIABLE
from tests.supernet.kernels.formulations import assert_same_gradients, poisoned_buffers, use

FAST = ("c", "torch")
Shape = tuple[int, int, int, int, int, int, int]
Operator = Callable[[Tensor, Tensor], Tensor]

# (batch, height, width, heads, channels of a head, kernel size, stride)
EDGES = (
    pytest.param((1, 1, 1, 2, 3, 5, 1), id="one pixel"),
    pytest.param((2, 3, 2, 1, 5, 9, 2), id="kernel larger than the map"),
    pytest.param((2, 3, 2, 1, 5, 8, 1), id="even kernel larger than the map"),
    pytest.param((1, 5, 4, 2, 3, 2, 1), id="smallest even kernel"),
    pytest.param((2, 6, 8, 2, 3, 4, 2), id="even kernel, stride that divides the map"),
    pytest.param((1, 7, 6, 1, 3, 3, 2), id="stride that divides one side"),
    pytest.param((1, 8, 7, 2, 3, 3, 3), id="no overlap"),
    pytest.param((2, 7, 9, 2, 2, 2, 4), id="pixels that no token reaches"),
    pytest.param((1, 3, 4, 2, 2, 3, 7), id="stride larger than the map"),
    pytest.param((1, 4, 5, 19, 1, 3, 2), id="a head for every channel"),
    pytest.param((1, 5, 18, 1, 17, 3, 2), id="one head for all channels"),
    pytest.param((1, 5, 3, 3, 16, 7, 2), id="whole vectors of channels"),
    pytest.param((1, 6, 7, 2, 24, 5, 2), id="several vectors of channels"),
    pytest.param((2, 6, 4, 4, 3, 1, 1), id="kernel of one tap"),
    pytest.param((0, 4, 5, 2, 3, 3, 2), id="empty batch"),
)


@pytest.fixture(autouse=True)
def _poisoned_buffers() -> Iterator[None]:
    with poisoned_buffers():
        yield


def example(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Make random weights and values that require gradients."""
    batch, height, width, heads, depth, size, stride = shape
    tokens = (-(-height // stride), -(-width // stride))
    shapes = (batch, *tokens, heads, size**2, size**2), (batch, height, width, heads * depth)
    weights, values = (torch.randn(s, dtype=dtype).requires_grad_() for s in shapes)
    return weights, values


def functions(shape: Shape) -> tuple[Operator, Operator]:
    """Return the public operator and its definition, of the operands alone."""
    area = shape[5:]
    return lambda w, v: outlook_aggregate(w, v, *area), lambda w, v: outlook_aggregate_naive(
        w, v, *area
    )


def assert_equals_definition(shape: Shape, dtype: torch.dtype, tolerance: float) -> None:
    """Compare outputs and all gradients with those of the definition in float64."""
    fast, definition = functions(shape)
    assert_same_gradients(fast, definition, example(shape, dtype), tolerance)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_the_definition_is_its_formula(size: int, stride: int) -> None:
    weights, values = example((1, 5, 4, 2, 1, size, stride), torch.float64)
    expected = torch.zeros_like(values)
    for row, column in product(range(weights.shape[1]), range(weights.shape[2])):
        here = [
            (stride * row + kh - size // 2, stride * column + kw - size // 2)
            for kh, kw in product(range(size), repeat=2)
        ]
        inside = [0 <= h < 5 and 0 <= w < 4 for h, w in here]
        for (o, output), (u, value) in product(enumerate(here), repeat=2):
            if inside[o] and inside[u]:
                expected[0][output] += weights[0, row, column, :, o, u] * values[0][value]

    actual = outlook_aggregate_naive(weights, values, size, stride)

    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", EDGES)
@pytest.mark.parametrize("name", FAST)
def test_formulations_equal_the_definition_at_the_edges(
    monkeypatch: pytest.MonkeyPatch, name: str, shape: Shape
) -> None:
    use(monkeypatch, name)

    assert_equals_definition(shape, torch.float64, 1e-12)


@pytest.mark.parametrize("sides", [(0, 5), (5, 0)])
@pytest.mark.parametrize("area", [(1, 2), (4, 1), (3, 2)])
def test_maps_without_pixels_stay_so(
    monkeypatch: pytest.MonkeyPatch, sides: tuple[int, int], area: tuple[int, int]
) -> None:
    use(monkeypatch, "c")
    shape = (2, *sides, 2, 3, *area)
    inputs = example(shape, torch.float32)
    fast, _ = functions(shape)

    y = fast(*inputs)

    grads = torch.autograd.grad(y.sum(), inputs)
    assert [x.shape for x in (y, *grads)] == [inputs[1].shape, *(x.shape for x in inputs)]


@given(
    name=st.sampled_from(FAST),
    shape=st.tuples(
        st.integers(1, 2),
        st.integers(1, 9),
        st.integers(1, 19),
        st.integers(1, 4),
        st.integers(1, 19),
        st.integers(1, 8),
        st.integers(1, 4),
    ),
)
def test_formulations_equal_the_definition(name: str, shape: Shape) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        use(monkeypatch, name)

        assert_equals_definition(shape, torch.float64, 1e-12)


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [("c", torch.float32, 1e-5), ("torch", torch.float32, 1e-5), ("torch", torch.bfloat16, 2e-2)],
)
@pytest.mark.parametrize("shape", [(2, 5, 17, 2, 16, 5, 2), (1, 9, 4, 3, 3, 3, 1)])
def test_low_precision_stays_close_to_float64(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    dtype: torch.dtype,
    tolerance: float,
    shape: Shape,
) -> None:
    use(monkeypatch, name)

    assert_equals_definition(shape, dtype, tolerance)


def test_half_precision_is_float32_rounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "torch")
    shape = (2, 6, 5, 2, 8, 3, 1)
    fast, _ = functions(shape)
    low = example(shape, torch.bfloat16)
    high = tuple(x.detach().float().requires_grad_() for x in low)
    y, wanted = fast(*low), fast(*high)

    grad = torch.randn_like(y)
    actual = (y, *torch.autograd.grad(y, low, grad))
    expected = (wanted, *torch.autograd.grad(wanted, high, grad.float()))

    assert all(torch.equal(a, e.bfloat16()) for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("shape", [(1, 3, 2, 2, 2, 2, 1), (2, 3, 4, 1, 2, 3, 2)])
def test_gradients_equal_finite_differences(
    monkeypatch: pytest.MonkeyPatch, name: str, shape: Shape
) -> None:
    use(monkeypatch, name)
    fast, _ = functions(shape)
    inputs = example(shape, torch.float64)

    assert torch.autograd.gradcheck(fast, inputs)
    assert torch.autograd.gradgradcheck(fast, inputs)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("kept", [0, 1])
def test_each_gradient_comes_without_the_other(
    monkeypatch: pytest.MonkeyPatch, name: str, kept: int
) -> None:
    use(monkeypatch, name)
    shape = (2, 5, 6, 2, 3, 3, 2)
    inputs = example(shape, torch.float64)
    inputs[1 - kept].requires_grad_(False)

    found, expected = (
        torch.autograd.grad(function(*inputs).square().sum(), inputs[kept])
        for function in functions(shape)
    )

    torch.testing.assert_close(found, expected)


# torch's own checker looks at the gradients of intermediate tensors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("operator", ["aggregate", "transposed", "products"])
def test_the_operators_fulfil_torch_librarys_contract(
    monkeypatch: pytest.MonkeyPatch, name: str, operator: str
) -> None:
    use(monkeypatch, name)
    weights, values = example((2, 3, 4, 2, 2, 3, 2), torch.float64)
    x = torch.randn_like(values).requires_grad_()

    if operator == "products":
        arguments = (x, values, 2, 3, 2)
        torch.library.opcheck(torch.ops.mixer_search.outlook_products.default, arguments)
    else:
        settings = (3, 2, operator == "transposed")
        aggregate = torch.ops.mixer_search.outlook_aggregate.default
        torch.library.opcheck(aggregate, (weights, values, *settings))


@pytest.mark.parametrize("name", FAST)
def test_memory_layout_of_the_operands_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    use(monkeypatch, name)
    weights = torch.randn(1, 2, 3, 2, 9, 9).transpose(4, 5).requires_grad_()
    wide = torch.randn(1, 4, 5, 12, requires_grad=True)
    grad = torch.randn(6, 1, 4, 5).permute(1, 2, 3, 0)

    found, expected = (
        torch.autograd.grad(function(weights, wide[..., ::2], 3, 2), (weights, wide), grad)
        for function in (outlook_aggregate, outlook_aggregate_naive)
    )

    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shape", [(2, 17, 16, 4, 16, 5, 2), (1, 9, 30, 3, 40, 3, 1)])
def test_results_repeat_to_the_bit_on_any_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, shape: Shape
) -> None:
    use(monkeypatch, "c")
    fast, _ = functions(shape)
    inputs = example(shape, torch.float64)
    results = []
    for threads in (1, 3, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        y = fast(*inputs)
        results.append((y, *torch.autograd.grad(y.square().sum(), inputs)))

    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    assert_equals_definition(shape, torch.float64, 1e-12)


@pytest.mark.parametrize("name", FAST)
def test_the_forward_pass_saves_nothing_but_inputs(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    use(monkeypatch, name)
    shape = (1, 4, 5, 2, 3, 3, 2)
    fast, _ = functions(shape)
    inputs = example(shape, torch.float32)
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fast(*inputs)

    assert set(saved) == {x.data_ptr() for x in inputs}


@pytest.mark.parametrize("name", FAST)
def test_flops_are_two_for_each_pair_of_each_channel(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    use(monkeypatch, name)
    shape = (2, 4, 5, 2, 3, 3, 2)
    fast, _ = functions(shape)
    inputs = example(shape, torch.float32)
    forward = 2 * (2 * 2 * 3) * 3**4 * (2 * 3)

    with FlopCounterMode(display=False) as counter:
        y = fast(*inputs)
        assert counter.get_total_flops() == forward
        y.sum().backward()

    assert counter.get_total_flops() == 3 * forward


@pytest.mark.parametrize("name", FAST)
def test_it_compiles_without_graph_breaks(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    use(monkeypatch, name)
    shape = (2, 4, 5, 2, 3, 3, 2)
    fast, definition = functions(shape)
    inputs = example(shape, torch.float64)

    y = torch.compile(fast, fullgraph=True, backend="aot_eager")(*inputs)

    torch.testing.assert_close(y, definition(*inputs))
    found, expected = (
        torch.autograd.grad(result.square().sum(), inputs) for result in (y, definition(*inputs))
    )
    torch.testing.assert_close(found, expected)


def test_autocast_brings_the_operands_to_its_dtype() -> None:
    weights, values = example((1, 4, 5, 2, 3, 3, 2), torch.float32)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = outlook_aggregate(weights, values.bfloat16(), 3, 2)

    assert y.dtype == torch.bfloat16


def test_the_naive_formulation_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "naive")
    shape = (1, 3, 4, 2, 2, 3, 2)
    fast, definition = functions(shape)
    inputs = example(shape, torch.float32)

    y = fast(*inputs)

    assert torch.equal(y, definition(*inputs))
    assert "outlook_aggregate" not in str(y.grad_fn).lower()


MAP, WEIGHTS = torch.zeros(1, 4, 5, 6), torch.zeros(1, 2, 3, 2, 9, 9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: outlook_aggregate(WEIGHTS, MAP[0], 3, 2), r"\(B, H, W, C\).* shape \(4, 5, 6\)"),
        (lambda: outlook_aggregate(WEIGHTS, MAP, 0, 2), r"at least 1, got 0 and 2"),
        (lambda: outlook_aggregate(WEIGHTS, MAP, 3, 0), r"at least 1, got 3 and 0"),
        (
            lambda: outlook_aggregate(WEIGHTS, MAP, 3, 1),
            r"\(1, 4, 5, 2, 9, 9\) .* s = 1, got \(1, 2, 3, 2, 9, 9\)",
        ),
        (lambda: outlook_aggregate(WEIGHTS, MAP, 5, 2), r"\(1, 2, 3, 2, 25, 25\) .* K = 5"),
        (lambda: outlook_aggregate(WEIGHTS[0], MAP, 3, 2), r"got \(2, 3, 2, 9, 9\)"),
        (lambda: outlook_aggregate(WEIGHTS[:, :, :, :0], MAP, 3, 2), r"got \(1, 2, 3, 0, 9, 9\)"),
        (lambda: outlook_aggregate(WEIGHTS, MAP[..., :5], 3, 2), r"got 2 and 5"),
        (lambda: outlook_aggregate(WEIGHTS, MAP.double(), 3, 2), r"torch.float32 .*torch.float64"),
    ],
)
def test_operands_that_do_not_fit_are_refused(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
