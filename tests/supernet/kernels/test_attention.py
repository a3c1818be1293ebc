"""Neighbourhood attention in one pass against its definition, for every subset of terms."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from supernet.kernels import Area, neighborhood_attention
from supernet.kernels.attention.area import NORMS
from supernet.kernels.attention.naive import neighborhood_attention_naive
from supernet.kernels.layout import join_channels, split_channels
from tests.supernet.kernels.formulations import assert_same_gradients, poisoned_buffers, use

FAST = ("c", "torch")
TERMS = tuple(terms for terms in product((False, True), repeat=4) if any(terms))
ALL_TERMS = (True, True, True, True)
Shape = tuple[int, int, int, int, int, int, int]

# (batch, height, width, heads, channels of a head, kernel size, dilation)
EDGES = (
    pytest.param((1, 1, 1, 2, 3, 5, 1), id="one pixel"),
    pytest.param((2, 3, 2, 1, 5, 9, 1), id="kernel larger than the map"),
    pytest.param((2, 3, 2, 1, 5, 12, 1), id="even kernel larger than the map"),
    pytest.param((2, 6, 7, 2, 3, 4, 2), id="even kernel, dilated"),
    pytest.param((1, 3, 4, 2, 2, 5, 7), id="dilation larger than the map"),
    pytest.param((1, 5, 18, 1, 17, 3, 1), id="ragged vectors"),
    pytest.param((1, 9, 16, 3, 16, 7, 1), id="whole vectors"),
    pytest.param((2, 6, 4, 4, 1, 2, 1), id="heads of one channel"),
)


@pytest.fixture(autouse=True)
def _poisoned_buffers() -> Iterator[None]:
    with poisoned_buffers():
        yield


def example(
    shape: Shape, terms: tuple[bool, ...], dtype: torch.dtype = torch.float64, norm: str = "softmax"
) -> tuple[dict[str, Tensor], Area]:
    """Make random operands that require gradients, and the area that they are for."""
    batch, height, width, heads, depth, size, dilation = shape
    has_product, has_query_table, has_key_table, has_bias = terms
    map_, table = (batch, height, width, heads * depth), (size**2, heads * depth)
    shapes: dict[str, tuple[int, ...]] = {"values": map_}
    if has_product or has_query_table:
        shapes["queries"] = map_
    if has_product or has_key_table:
        shapes["keys"] = map_
    if has_query_table:
        shapes["query_table"] = table
    if has_key_table:
        shapes["key_table"] = table
    if has_bias:
        shapes["bias"] = (size**2, heads)
    operands = {name: torch.randn(s, dtype=dtype).requires_grad_() for name, s in shapes.items()}
    return operands, Area(heads, size, dilation, 0.7, has_product, norm)


def definition(operands: dict[str, Tensor], area: Area) -> Tensor:
    names = ("queries", "keys", "values", "query_table", "key_table", "bias")
    q, k, v, qr, rk, bias = (operands.get(name) for name in names)
    assert v is not None
    return neighborhood_attention_naive((q, k, v, qr, rk, bias), area)


def assert_equals_definition(operands: dict[str, Tensor], area: Area, tolerance: float) -> None:
    def named(inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return dict(zip(operands, inputs, strict=True))

    assert_same_gradients(
        lambda *inputs: neighborhood_attention(area=area, **named(inputs)),
        lambda *exact: definition(named(exact), area),
        list(operands.values()),
        tolerance,
    )


@pytest.mark.parametrize("shape", EDGES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", FAST)
def test_attention_equals_its_definition_at_the_edges(
    monkeypatch: pytest.MonkeyPatch, name: str, norm: str, shape: Shape
) -> None:
    use(monkeypatch, name)

    assert_equals_definition(*example(shape, ALL_TERMS, norm=norm), 1e-11)


@pytest.mark.parametrize("name", FAST)
def test_an_empty_batch_gives_tables_no_gradient(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    use(monkeypatch, name)

    assert_equals_definition(*example((0, 4, 5, 2, 3, 3, 1), ALL_TERMS), 0)


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", FAST)
def test_every_subset_of_terms_equals_its_definition(
    monkeypatch: pytest.MonkeyPatch, name: str, norm: str, terms: tuple[bool, ...]
) -> None:
    use(monkeypatch, name)

    assert_equals_definition(*example((2, 5, 6, 2, 5, 3, 1), terms, norm=norm), 1e-11)


@given(
    name=st.sampled_from(FAST),
    terms=st.sampled_from(TERMS),
    norm=st.sampled_from(NORMS),
    shape=st.tuples(
        st.integers(1, 2),
        st.integers(1, 9),
        st.integers(1, 19),
        st.integers(1, 3),
        st.integers(1, 17),
        st.integers(1, 12),
        st.integers(1, 3),
    ),
)
def test_attention_equals_its_definition(
    name: str, terms: tuple[bool, ...], norm: str, shape: Shape
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        use(monkeypatch, name)

        # Filter normalisation divides by a spread that can be tiny.
        assert_equals_definition(*example(shape, terms, norm=norm), 1e-9)


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [("c", torch.float32, 2e-5), ("torch", torch.float32, 2e-5), ("torch", torch.bfloat16, 4e-2)],
)
def test_low_precision_stays_close_to_float64(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype, tolerance: float
) -> None:
    use(monkeypatch, name)

    assert_equals_definition(*example((2, 9, 17, 2, 16, 7, 1), ALL_TERMS, dtype), tolerance)


@pytest.mark.parametrize("terms", [(True, False, False, True), (False, True, True, False)])
def test_logits_of_float16_may_be_larger_than_its_numbers(
    terms: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are multiplied with the scale before they matter."""
    use(monkeypatch, "torch")
    operands, area = example((1, 4, 5, 1, 8, 3, 1), terms, torch.float16)
    area = area._replace(scale=1e-4)
    with torch.no_grad():
        for name, operand in operands.items():
            operand.mul_(200 if name not in ("values", "bias") else 1)
            assert operand.isfinite().all()

    y = neighborhood_attention(area=area, **operands)

    exact = {name: operand.detach().double() for name, operand in operands.items()}
    torch.testing.assert_close(y.double(), definition(exact, area), rtol=5e-3, atol=5e-3)
    grads = torch.autograd.grad(y, list(operands.values()), torch.full_like(y, 1000.0))
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", FAST)
def test_gradients_equal_finite_differences(
    monkeypatch: pytest.MonkeyPatch, name: str, norm: str
) -> None:
    use(monkeypatch, name)
    operands, area = example((1, 2, 3, 2, 2, 2, 1), ALL_TERMS, norm=norm)
    names = list(operands)

    assert torch.autograd.gradcheck(
        lambda *x: neighborhood_attention(area=area, **dict(zip(names, x, strict=True))),
        tuple(operands.values()),
    )


@pytest.mark.parametrize("name", FAST)
def test_large_logits_and_missing_numbers_behave_as_in_torch(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    use(monkeypatch, name)
    operands, area = example((1, 4, 5, 1, 3, 3, 1), ALL_TERMS, torch.float32)
    operands = {key: x.detach() * 300 for key, x in operands.items()}
    torch.testing.assert_close(
        neighborhood_attention(area=area, **operands), definition(operands, area)
    )

    operands["queries"][0, 1, 2, 0] = torch.nan
    y = neighborhood_attention(area=area, **operands)

    assert torch.equal(y.isnan(), definition(operands, area).isnan())
    assert y.isnan().sum() == 3


def test_results_repeat_and_are_right_on_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "c")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    operands, area = example((2, 17, 16, 4, 16, 7, 1), ALL_TERMS)
    inputs = list(operands.values())

    first, second = (
        torch.autograd.grad(neighborhood_attention(area=area, **operands).square().sum(), inputs)
        for _ in range(2)
    )

    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert_equals_definition(operands, area, 1e-11)


@pytest.mark.parametrize("name", FAST)
def test_the_forward_pass_saves_nothing_but_operands(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    use(monkeypatch, name)
    operands, area = example((1, 4, 5, 2, 3, 3, 1), ALL_TERMS)
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        neighborhood_attention(area=area, **operands)

    assert set(saved) <= {x.data_ptr() for x in operands.values()}


# torch's own checker looks at the gradients of intermediate tensors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("terms", [ALL_TERMS, (False, True, False, True)])
def test_the_operator_fulfils_torch_librarys_contract(
    monkeypatch: pytest.MonkeyPatch, terms: tuple[bool, ...]
) -> None:
    use(monkeypatch, "c")
    x, area = example((2, 2, 3, 2, 2, 3, 1), terms)
    names = ("queries", "keys", "values", "query_table", "key_table", "bias")
    operands = [x.get(name) for name in names]

    torch.library.opcheck(torch.ops.mixer_search.attention.default, (*operands, *area))


@pytest.mark.parametrize("name", FAST)
def test_it_compiles_without_graph_breaks(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    use(monkeypatch, name)
    operands, area = example((2, 4, 5, 2, 3, 3, 1), ALL_TERMS)
    compiled = torch.compile(neighborhood_attention, fullgraph=True, backend="aot_eager")

    y = compiled(area=area, **operands)

    torch.testing.assert_close(y, definition(operands, area))
    actual = torch.autograd.grad(y.square().sum(), list(operands.values()))
    wanted = definition(operands, area).square().sum()
    for a, e in zip(actual, torch.autograd.grad(wanted, list(operands.values())), strict=True):
        torch.testing.assert_close(a, e)


class Attend(torch.nn.Module):
    """Attention as a module, which is what `torch.export` takes."""

    def __init__(self, area: Area) -> None:
        super().__init__()
        self.area = area

    def forward(self, operands: dict[str, Tensor]) -> Tensor:
        """Attend with the product only."""
        return neighborhood_attention(area=self.area, **operands)


def test_it_can_be_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "c")
    operands, area = example((2, 4, 5, 2, 3, 3, 1), ALL_TERMS)
    operands = {name: x.detach() for name, x in operands.items()}

    program = torch.export.export(Attend(area), (operands,))

    torch.testing.assert_close(program.module()(operands), definition(operands, area))


@pytest.mark.parametrize("name", FAST)
def test_maps_may_be_views_of_one_projection_and_of_any_layout(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    use(monkeypatch, name)
    operands, area = example((2, 4, 5, 2, 3, 3, 1), ALL_TERMS)
    wanted = definition(operands, area)
    packed = torch.cat([operands[name] for name in ("queries", "keys", "values")], -1)
    views = dict(zip(("queries", "keys", "values"), packed.split(6, -1), strict=True))
    turned = {name: x.transpose(0, -1).contiguous().transpose(0, -1) for name, x in views.items()}

    for maps in (views, turned):
        assert not any(x.is_contiguous() for x in maps.values())
        torch.testing.assert_close(
            neighborhood_attention(area=area, **{**operands, **maps}), wanted
        )


@pytest.mark.parametrize("name", FAST)
def test_a_map_of_one_column_may_have_any_stride_from_column_to_column(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It is contiguous whatever that stride says."""
    use(monkeypatch, name)
    area = Area(2, 3, 1, 0.5, True, "softmax")
    rows = torch.randn(3, 2, 1, 7, 6, dtype=torch.float64).unbind()
    queries, keys, values = (x.transpose(1, 2).requires_grad_() for x in rows)
    assert values.is_contiguous()
    assert values.stride(2) == 7 * 6

    assert_equals_definition({"values": values, "queries": queries, "keys": keys}, area, 1e-11)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("terms", TERMS)
def test_flops_are_two_for_each_tap_channel_and_product(
    monkeypatch: pytest.MonkeyPatch, name: str, terms: tuple[bool, ...]
) -> None:
    use(monkeypatch, name)
    operands, area = example((2, 4, 5, 2, 3, 3, 1), terms)
    once = 2 * (2 * 4 * 5) * (2 * 3) * 3**2
    products = sum(terms[:3])

    with FlopCounterMode(display=False) as counter:
        y = neighborhood_attention(area=area, **operands)
        assert counter.get_total_flops() == once * (1 + products)
        y.sum().backward()

    assert counter.get_total_flops() == once * (1 + products) + once * (2 + 3 * products)


def test_autocast_brings_the_operands_to_its_dtype() -> None:
    operands, area = example((1, 4, 5, 2, 3, 3, 1), ALL_TERMS, torch.float32)
    operands["keys"] = operands["keys"].detach().bfloat16()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = neighborhood_attention(area=area, **operands)

    assert y.dtype == torch.bfloat16
    assert torch.autograd.grad(y.sum(), operands["bias"])[0].dtype == torch.float32


# Peak memory of one thread beside operands and results, in bytes, of heads with D channels:
# 4 * (2 * K^2 * W + S * (W + R) * (2 * K^2 + 4 * D)), S = (K - 1) * d + 1 rows,
# W and R = 2 * (K // 2) * d in whole vectors; plus a head's tables and the sums of all,
# 4 * (2 * K^2 * (D + C) + 16 * K^2 * heads).
MEMORY = """
import torch
from supernet.kernels import Area, neighborhood_attention
torch.set_num_threads(1)
def leaf(*shape):
    return torch.randn(shape).requires_grad_()
def step(batch, size):
    x = [leaf(batch, size, size, 96) for _ in range(3)]
    tables = [leaf(49, 96), leaf(49, 96), leaf(49, 3)]
    area = Area(3, 7, 1, 0.2, True, "softmax")
    y = neighborhood_attention(x[0], area, queries=x[1], keys=x[2], query_table=tables[0],
                               key_table=tables[1], bias=tables[2])
    torch.autograd.grad(y, x + tables, y)
def peak():
    # Not getrusage: its high-water mark starts with that of the process that started this one.
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
step(1, 8)
before = peak()
step(8, 56)
print(peak() - before)
"""


def test_memory_is_operands_results_and_a_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "c")
    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not tell a process's peak memory in /proc")
    map_bytes = 4 * 8 * 56 * 56 * 96
    rows = 4 * (2 * 49 * 64 + 7 * (64 + 16) * (2 * 49 + 4 * 32))
    rows += 4 * (2 * 49 * (32 + 96) + 16 * 49 * 3)

    output = subprocess.run(
        [sys.executable, "-c", MEMORY],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
        timeout=100,
    ).stdout

    # Three operands, y and three gradients; the weights alone would be 8 * 56 * 56 * 3 * 49 floats.
    assert 6 * map_bytes < int(output) <= 7 * map_bytes + rows + 2**21
    assert int(output) < 7 * map_bytes + 4 * 8 * 56 * 56 * 3 * 49


VALUES, AREA = torch.zeros(1, 4, 5, 6), Area(2, 3, 1, 1.0, False, "softmax")


@pytest.mark.parametrize(
    ("area", "operands", "message"),
    [
        (AREA, {}, r"at least one term"),
        (AREA, {"queries": VALUES}, r"queries are given exactly .* table False"),
        (AREA._replace(has_product=True), {"queries": VALUES}, r"keys are given exactly"),
        (AREA, {"key_table": torch.zeros(9, 6)}, r"keys are given exactly"),
        (AREA, {"bias": torch.zeros(2, 9)}, r"bias must have shape \(9, 2\) .* got \(2, 9\)"),
        (AREA._replace(num_heads=4), {"bias": torch.zeros(9, 4)}, r"got 4 and 6"),
        (AREA._replace(dilation=0), {"bias": torch.zeros(9, 2)}, r"at least 1, got 3 and 0"),
        (AREA._replace(norm="max"), {"bias": torch.zeros(9, 2)}, r"identity, got 'max'"),
        (AREA, {"bias": torch.zeros(9, 2).double()}, r"float32 on cpu, torch.float64 on cpu"),
    ],
)
def test_operands_that_do_not_fit_are_refused(
    area: Area, operands: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        neighborhood_attention(VALUES, area, **operands)


def test_gradients_of_a_packed_projection_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "c")
    area = Area(2, 3, 1, 0.5, True, "softmax")
    packed = torch.randn(1, 4, 5, 18, dtype=torch.float64, requires_grad=True)

    def attend(x: Tensor, split: Callable[..., tuple[Tensor, ...]]) -> Tensor:
        queries, keys, values = split(x, 6, -1)
        return neighborhood_attention(values, area, queries=queries, keys=keys)

    def split_here(x: Tensor, size: int, _: int) -> tuple[Tensor, ...]:
        return split_channels(x, size)

    wanted = torch.autograd.grad(attend(packed, torch.split).sum(), packed)[0]
    monkeypatch.setattr(torch, "cat", None)
    found = torch.autograd.grad(attend(packed, split_here).sum(), packed)[0]

    assert torch.equal(found, wanted)


def test_gradients_that_lie_apart_are_joined() -> None:
    packed = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)

    def mix(x: Tensor) -> Tensor:
        first, second, third = split_channels(x, 2)
        return first.square() * second + third

    assert torch.autograd.gradcheck(mix, (packed,))
    assert torch.autograd.gradgradcheck(mix, (packed,))


@pytest.mark.parametrize(
    "columns",
    [(slice(0, 2), slice(4, 6)), (slice(2, 4), slice(0, 2)), (slice(0, 4, 2), slice(4, 6))],
)
def test_slices_that_are_no_neighbours_are_copied(columns: tuple[slice, slice]) -> None:
    packed = torch.arange(12.0).view(2, 6)
    parts = [packed[:, column] for column in columns]

    assert torch.equal(join_channels(parts), torch.cat(parts, -1))
