"""Every formulation of the neighbourhood operators against their definition, with gradients.

Output buffers are poisoned: `torch.empty` holds NaN, so that a value nobody wrote is seen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from supernet.kernels import aggregate, depthwise_conv, library, neighborhood_logits, skew
from supernet.kernels.aggregation.naive import (
    aggregate_naive,
    depthwise_conv_naive,
    neighborhood_logits_naive,
    skew_naive,
)
from supernet.kernels.select import VARIABLE, depthwise_formulation, formulation
from tests.supernet.kernels.formulations import assert_same_gradients, poisoned_buffers, use

OPERATORS = (
    "aggregate",
    "multiplier",
    "image_multiplier",
    "logits",
    "skew",
    "depthwise",
    "image_depthwise",
)
FAST = ("c", "torch")
Shape = tuple[int, int, int, int, int, int, int]

# (batch, height, width, groups, channels of a group, kernel size, dilation)
EDGES = (
    pytest.param((1, 1, 1, 2, 3, 5, 1), id="one pixel"),
    pytest.param((2, 3, 2, 1, 5, 9, 1), id="kernel larger than the map"),
    pytest.param((2, 3, 2, 1, 5, 12, 1), id="even kernel larger than the map"),
    pytest.param((1, 5, 4, 2, 3, 2, 1), id="smallest even kernel"),
    pytest.param((2, 6, 7, 2, 3, 4, 2), id="even kernel, dilated"),
    pytest.param((1, 9, 5, 1, 3, 3, 3), id="dilation that leaves one column"),
    pytest.param((1, 3, 4, 2, 2, 5, 7), id="dilation larger than the map"),
    pytest.param((1, 4, 5, 19, 1, 3, 1), id="a filter for every channel"),
    pytest.param((1, 5, 18, 1, 17, 3, 1), id="one filter for all channels"),
    pytest.param((1, 5, 3, 3, 16, 7, 1), id="whole vectors of channels"),
    pytest.param((2, 6, 4, 4, 3, 1, 1), id="kernel of one tap"),
    pytest.param((0, 4, 5, 2, 3, 3, 1), id="empty batch"),
)


@pytest.fixture(autouse=True)
def _poisoned_buffers() -> Iterator[None]:
    with poisoned_buffers():
        yield


@pytest.fixture
def fresh_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Forget what was loaded, and use an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    library.load.cache_clear()
    library._say_once.cache_clear()
    yield tmp_path
    library.load.cache_clear()


def example(operator: str, shape: Shape, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Make random operands that require gradients."""
    batch, height, width, groups, depth, size, _ = shape
    channels, taps = groups * depth, size**2
    map_, filters = (batch, height, width, channels), (batch, height, width, groups, taps)
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {
        "aggregate": (filters, map_),
        "multiplier": (filters, map_, (taps, channels)),
        "image_multiplier": (filters, map_, (batch, taps, channels)),
        "logits": (map_, map_),
        "skew": (filters,),
        "depthwise": (map_, (channels, size, size), (channels,)),
        "image_depthwise": (map_, (batch, channels, size, size), (channels,)),
    }
    return tuple(torch.randn(s, dtype=dtype).requires_grad_() for s in shapes[operator])


def functions(operator: str, shape: Shape) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Return the public operator and its definition, of the operands alone."""
    groups, size, dilation = shape[3], shape[5], shape[6]
    if operator in ("aggregate", "multiplier", "image_multiplier"):
        return (
            lambda a, v, m=None: aggregate(a, v, size, m, dilation=dilation),
            lambda a, v, m=None: aggregate_naive(a, v, size, m, dilation=dilation),
        )
    if operator == "logits":
        return (
            lambda q, k: neighborhood_logits(q, k, groups, size, dilation=dilation),
            lambda q, k: neighborhood_logits_naive(q, k, groups, size, dilation=dilation),
        )
    if operator == "skew":
        return (
            lambda t: skew(t, size, dilation=dilation),
            lambda t: skew_naive(t, size, dilation=dilation),
        )
    return (
        lambda v, w, b: depthwise_conv(v, w, b, dilation=dilation),
        lambda v, w, b: depthwise_conv_naive(v, w, b, dilation=dilation),
    )


def assert_equals_definition(
    operator: str, shape: Shape, dtype: torch.dtype, tolerance: float
) -> None:
    """Compare outputs and all gradients with those of the definition in float64."""
    fast, definition = functions(operator, shape)
    assert_same_gradients(fast, definition, example(operator, shape, dtype), tolerance)


@pytest.mark.parametrize("shape", EDGES)
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", FAST)
def test_formulations_equal_the_definition_at_the_edges(
    monkeypatch: pytest.MonkeyPatch, name: str, operator: str, shape: Shape
) -> None:
    use(monkeypatch, name)

    assert_equals_definition(operator, shape, torch.float64, 1e-12)


@given(
    operator=st.sampled_from(OPERATORS),
    name=st.sampled_from(FAST),
    shape=st.tuples(
        st.integers(1, 2),
        st.integers(1, 9),
        st.integers(1, 19),
        st.integers(1, 5),
        st.integers(1, 17),
        st.integers(1, 12),
        st.integers(1, 3),
    ),
)
def test_formulations_equal_the_definition(operator: str, name: str, shape: Shape) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        use(monkeypatch, name)

        assert_equals_definition(operator, shape, torch.float64, 1e-12)


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [("c", torch.float32, 1e-5), ("torch", torch.float32, 1e-5), ("torch", torch.bfloat16, 2e-2)],
)
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("shape", [(2, 5, 17, 2, 16, 5, 1), (1, 9, 4, 7, 3, 7, 2)])
def test_low_precision_stays_close_to_float64(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    dtype: torch.dtype,
    tolerance: float,
    operator: str,
    shape: Shape,
) -> None:
    use(monkeypatch, name)

    assert_equals_definition(operator, shape, dtype, tolerance)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("operator", OPERATORS)
def test_gradients_equal_finite_differences(
    monkeypatch: pytest.MonkeyPatch, name: str, operator: str
) -> None:
    use(monkeypatch, name)
    shape = (2, 2, 3, 2, 2, 2, 1)
    fast, _ = functions(operator, shape)
    inputs = example(operator, shape, torch.float64)

    assert torch.autograd.gradcheck(fast, inputs)
    assert torch.autograd.gradgradcheck(fast, inputs)


# torch's own checker looks at the gradients of intermediate tensors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("operator", [*OPERATORS, "depthwise_grad"])
def test_the_operators_fulfil_torch_librarys_contract(
    monkeypatch: pytest.MonkeyPatch, operator: str
) -> None:
    use(monkeypatch, "c")
    ops = torch.ops.mixer_search
    x = example(operator.removesuffix("_grad"), (2, 2, 3, 2, 2, 3, 1), torch.float64)
    calls = {
        "aggregate": lambda: (ops.aggregate.default, (*x, 3, 1, None, None, False)),
        "multiplier": lambda: (ops.multiplier_grad.default, (x[0], x[1], x[1], 3, 1, False)),
        "image_multiplier": lambda: (ops.multiplier_grad.default, (x[0], x[1], x[1], 3, 1, True)),
        "logits": lambda: (ops.logits.default, (*x, 2, 3, 1, None)),
        "skew": lambda: (ops.skew.default, (x[0], 3, 1, False)),
        "depthwise_grad": lambda: (
            ops.depthwise_grad.default,
            (torch.randn_like(x[0]), x[0], 3, 1, x[1].flatten(1).t()),
        ),
        "depthwise": lambda: (
            ops.aggregate.default,
            (None, x[0], 3, 1, x[1].flatten(1).t(), None, True),
        ),
        "image_depthwise": lambda: (
            ops.aggregate.default,
            (None, x[0], 3, 1, x[1].flatten(2).mT, None, False),
        ),
    }

    torch.library.opcheck(*calls[operator]())


@pytest.mark.parametrize("name", FAST)
def test_memory_layout_of_the_operands_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    use(monkeypatch, name)
    filters = torch.randn(1, 4, 5, 9, 2).transpose(3, 4)
    values, keys = torch.randn(1, 4, 5, 12).split(6, -1)
    multiplier = torch.randn(6, 9).t()

    torch.testing.assert_close(
        aggregate(filters, values, 3, multiplier), aggregate_naive(filters, values, 3, multiplier)
    )
    torch.testing.assert_close(
        neighborhood_logits(values, keys, 2, 3), neighborhood_logits_naive(values, keys, 2, 3)
    )
    torch.testing.assert_close(skew(filters, 3), skew_naive(filters, 3))


@pytest.mark.parametrize("operator", OPERATORS)
def test_results_repeat_and_are_right_on_several_threads(
    monkeypatch: pytest.MonkeyPatch, operator: str
) -> None:
    use(monkeypatch, "c")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    shape = (2, 17, 16, 4, 16, 7, 1)
    fast, _ = functions(operator, shape)
    inputs = example(operator, shape, torch.float64)

    first, second = (torch.autograd.grad(fast(*inputs).square().sum(), inputs) for _ in range(2))

    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert_equals_definition(operator, shape, torch.float64, 1e-12)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize(
    "operator", ["aggregate", "multiplier", "image_multiplier", "logits", "skew"]
)
def test_the_forward_pass_saves_nothing_but_inputs(
    monkeypatch: pytest.MonkeyPatch, name: str, operator: str
) -> None:
    use(monkeypatch, name)
    shape = (1, 4, 5, 2, 3, 3, 1)
    fast, _ = functions(operator, shape)
    inputs = example(operator, shape, torch.float32)
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fast(*inputs)

    assert set(saved) <= {x.data_ptr() for x in inputs}


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize(("operator", "num_passes"), [("aggregate", 3), ("logits", 3)])
def test_flops_are_two_for_each_tap_of_each_channel(
    monkeypatch: pytest.MonkeyPatch, name: str, operator: str, num_passes: int
) -> None:
    use(monkeypatch, name)
    shape = (2, 4, 5, 2, 3, 3, 1)
    fast, _ = functions(operator, shape)
    inputs = example(operator, shape, torch.float32)
    forward = 2 * (2 * 4 * 5) * (2 * 3) * 3**2

    with FlopCounterMode(display=False) as counter:
        y = fast(*inputs)
        assert counter.get_total_flops() == forward
        y.sum().backward()

    assert counter.get_total_flops() == num_passes * forward


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("operator", OPERATORS)
def test_they_compile_without_graph_breaks(
    monkeypatch: pytest.MonkeyPatch, name: str, operator: str
) -> None:
    use(monkeypatch, name)
    shape = (2, 4, 5, 2, 3, 4, 1)
    fast, definition = functions(operator, shape)
    inputs = example(operator, shape, torch.float64)

    y = torch.compile(fast, fullgraph=True, backend="aot_eager")(*inputs)

    torch.testing.assert_close(y, definition(*inputs))


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("size", [3, 5])
def test_a_depthwise_convolution_counts_like_an_aggregation(
    monkeypatch: pytest.MonkeyPatch, name: str, size: int
) -> None:
    use(monkeypatch, name)
    values, weight, bias = example("depthwise", (2, 4, 5, 2, 3, size, 1), torch.float32)

    with FlopCounterMode(display=False) as counter:
        depthwise_conv(values, weight, bias)

    assert counter.get_total_flops() == 2 * (2 * 4 * 5) * (2 * 3) * size**2


def test_autocast_brings_the_operands_to_its_dtype() -> None:
    values, weight, _ = example("depthwise", (1, 4, 5, 2, 3, 3, 1), torch.float32)
    filters = torch.randn(1, 4, 5, 2, 9)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = aggregate(filters, values.bfloat16(), 3), depthwise_conv(values, weight)

    assert [y.dtype for y in results] == [torch.bfloat16] * 2


@pytest.mark.parametrize("broken", [False, True])
def test_without_a_working_compiler_torch_serves_and_the_log_says_so_once(
    monkeypatch: pytest.MonkeyPatch,
    fresh_library: Path,
    caplog: pytest.LogCaptureFixture,
    broken: bool,
) -> None:
    compiler = fresh_library / "cc"
    compiler.write_text("#!/bin/sh\necho no such header >&2\nexit 1\n", encoding="utf-8")
    compiler.chmod(0o755)
    monkeypatch.setattr(library, "find_compiler", lambda: (str(compiler),) if broken else None)
    filters, values = example("aggregate", (1, 4, 5, 2, 3, 3, 1), torch.float32)

    with caplog.at_level(logging.WARNING):
        results = [aggregate(filters, values, 3) for _ in range(2)]

    for y in results:
        torch.testing.assert_close(y, aggregate_naive(filters, values, 3))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert ("no such header" if broken else "no C compiler") in caplog.text
    assert formulation(values) == "torch"


def test_a_library_is_built_once_and_nothing_else_stays(fresh_library: Path) -> None:
    if library.find_compiler() is None:
        pytest.skip("this machine has no C compiler")

    first = library.build(torch.float32)
    built = first.stat().st_mtime_ns

    assert library.build(torch.float32) == first
    assert first.stat().st_mtime_ns == built
    assert list(first.parent.iterdir()) == [first]
    assert first.is_relative_to(fresh_library)


def test_the_compiler_is_what_cc_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "mycc"
    compiler.write_text("#!/bin/sh\n", encoding="utf-8")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", f"{compiler} -pipe")

    assert library.find_compiler() == (str(compiler), "-pipe")


def test_convolutions_on_a_cpu_go_to_c_and_half_precision_to_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(monkeypatch, "c")
    values = torch.zeros(1, 4, 5, 2)
    monkeypatch.setenv(VARIABLE, "auto")

    assert depthwise_formulation(values) == "c"
    assert depthwise_formulation(values.bfloat16()) == "torch"


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("size", [3, 5, 7])
def test_convolution_gradients_do_not_depend_on_the_layout(
    monkeypatch: pytest.MonkeyPatch, name: str, size: int
) -> None:
    use(monkeypatch, name)
    wide = torch.randn(2, 9, 7, 40, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(size, size, 19, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(38, dtype=torch.float64, requires_grad=True)
    inputs, grad = (wide, weight, bias), torch.randn(19, 2, 9, 7, dtype=torch.float64)

    def strided(convolve: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        y = convolve(wide[..., ::2][..., :19], weight.permute(2, 0, 1), bias[::2])
        return torch.autograd.grad(y, inputs, grad.permute(1, 2, 3, 0))

    for actual, expected in zip(
        strided(depthwise_conv), strided(depthwise_conv_naive), strict=True
    ):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("kept", [[0], [1], [2], [0, 1], [1, 2], [0, 2]])
def test_a_convolution_gives_each_gradient_without_the_others(
    monkeypatch: pytest.MonkeyPatch, name: str, kept: list[int]
) -> None:
    use(monkeypatch, name)
    inputs = example("depthwise", (2, 3, 5, 3, 3, 7, 1), torch.float64)
    wanted = [inputs[index] for index in kept]
    for index, tensor in enumerate(inputs):
        tensor.requires_grad_(index in kept)

    found, expected = (
        torch.autograd.grad(convolve(*inputs).square().sum(), wanted)
        for convolve in (depthwise_conv, depthwise_conv_naive)
    )

    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("fast", "one of auto, c, triton, torch, naive, got 'fast'"),
        ("c", "float64, got torch.bfloat16"),
        ("triton", "GPU tensors"),
    ],
)
def test_an_impossible_formulation_is_refused(
    monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    monkeypatch.setenv(VARIABLE, value)

    with pytest.raises(ValueError, match=message):
        formulation(torch.zeros(1, dtype=torch.bfloat16))


def test_the_naive_formulation_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "naive")
    shape = (1, 3, 4, 2, 2, 3, 1)
    for operator in OPERATORS:
        fast, definition = functions(operator, shape)
        inputs = example(operator, shape, torch.float32)

        assert torch.equal(fast(*inputs), definition(*inputs))


MAP, FILTERS = torch.zeros(1, 4, 5, 6), torch.zeros(1, 4, 5, 2, 9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: aggregate(FILTERS, MAP, 4), r"16, got \(1, 4, 5, 2, 9\)"),
        (lambda: aggregate(FILTERS, MAP, 3, dilation=0), r"at least 1, got 3 and 0"),
        (lambda: aggregate(FILTERS, MAP, 5), r"25, got \(1, 4, 5, 2, 9\)"),
        (lambda: aggregate(FILTERS, MAP[0], 3), r"\(B, H, W, C\).* got shape \(4, 5, 6\)"),
        (lambda: aggregate(FILTERS, MAP[:, :3], 3), r"\(1, 4, 5, 2, 9\) and \(1, 3, 5, 6\)"),
        (lambda: aggregate(FILTERS, MAP[..., :5], 3), r"got 2 and 5"),
        (lambda: aggregate(FILTERS, MAP, 3, torch.zeros(25, 6)), r"\(9, 6\), .* got \(25, 6\)"),
        (lambda: aggregate(FILTERS, MAP, 3, torch.zeros(2, 9, 6)), r"got \(2, 9, 6\)"),
        (lambda: aggregate(FILTERS, MAP.double(), 3), r"torch.float32 .*torch.float64"),
        (lambda: neighborhood_logits(MAP, MAP[..., :3], 3, 3), r"\(1, 4, 5, 6\) and .*, 3\)"),
        (lambda: neighborhood_logits(MAP, MAP, 4, 3), r"got 4 and 6"),
        (lambda: neighborhood_logits(MAP, MAP, 2, 0), r"at least 1, got 0"),
        (lambda: skew(FILTERS[0], 3), r"got \(4, 5, 2, 9\)"),
        (lambda: depthwise_conv(MAP, torch.zeros(5, 3, 3)), r"\(5, 3, 3\) and \(1, 4, 5, 6\)"),
        (lambda: depthwise_conv(MAP, torch.zeros(6, 3, 3), torch.zeros(5)), r"\(5,\) and"),
    ],
)
def test_operands_that_do_not_fit_are_refused(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
