"""AdamW on parts of weights: each element as if it were trained alone, in C and in torch."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import Tensor

from supernet.kernels import Part, Rule, update_parts
from supernet.kernels.adamw import in_c
from tests.supernet.kernels.formulations import use

RULE = Rule(lr=0.01, beta1=0.9, beta2=0.999, eps=1e-6, weight_decay=0.1)
Element = tuple[int, ...]


def by_definition(part: Part, rule: Rule) -> dict[Element, tuple[float, float, float]]:
    """Take the step of each used element by the formulas, in Python; others stay."""
    shape = part.parameter.shape
    mask, count = part.mask.expand(shape), part.step.expand(shape)
    after = {}
    for at in product(*map(range, shape)):
        p, g = float(part.parameter[at]), float(part.gradient[at])
        m, v = float(part.mean[at]), float(part.square[at])
        if mask[at]:
            n = float(count[at]) + 1
            m = rule.beta1 * m + (1 - rule.beta1) * g
            v = rule.beta2 * v + (1 - rule.beta2) * g * g
            root = math.sqrt(v / (1 - rule.beta2**n)) + rule.eps
            p = p - rule.lr * rule.weight_decay * p - rule.lr * m / (1 - rule.beta1**n) / root
        after[at] = (p, m, v)
    return after


def some_block(rng: random.Random, shape: list[int]) -> Tensor:
    """Draw a block in the middle of a larger tensor, with its axes in any order in memory."""
    order = rng.sample(range(len(shape)), len(shape))
    large = torch.randn([shape[axis] + rng.randint(0, 2) for axis in order])
    back = [order.index(axis) for axis in range(len(shape))]
    return large.permute(back)[tuple(slice(size) for size in shape)]


def drawn_part(seed: int) -> Part:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    shape = [rng.randint(1, 5) for _ in range(rng.randint(0, 5))]
    own = [size if rng.random() < 0.6 else 1 for size in shape]
    counted = [a if rng.random() < 0.7 else b for a, b in zip(own, shape, strict=True)]
    mask = (torch.rand(own) < 0.6).float()
    step = torch.randint(0, 40, counted).float() * rng.choice([0, 1, 1_000])
    state = (some_block(rng, shape), some_block(rng, shape).square_())
    gradient = some_block(rng, shape) * mask
    return Part(some_block(rng, shape), gradient, mask, *state, step)


def parts_of(seed: int) -> Iterator[Part]:
    yield from (drawn_part(100 * seed + index) for index in range(8))


@pytest.mark.parametrize("name", ["c", "torch"])
@pytest.mark.parametrize("seed", range(6))
def test_each_element_takes_its_own_step(
    seed: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, name)
    parts = list(parts_of(seed))
    expected = [by_definition(part, RULE) for part in parts]
    counts = [part.step + part.mask for part in parts]
    update_parts(parts, RULE)
    for part, after, count in zip(parts, expected, counts, strict=True):
        assert torch.equal(part.step, count)
        for at, values in after.items():
            found = [float(x[at]) for x in (part.parameter, part.mean, part.square)]
            assert found == pytest.approx(values, rel=2e-5, abs=2e-6), at


@pytest.mark.parametrize("seed", range(3))
def test_nothing_around_a_block_or_unused_changes_to_the_bit(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, "c")
    torch.manual_seed(seed)
    wide = [torch.randn(6, 7, 3, 3).abs_() for _ in range(3)]
    before = [tensor.clone() for tensor in wide]
    box = (slice(1, 5), slice(0, 4))
    mask = torch.zeros(4, 4, 1, 1)
    mask[::2, 1:] = 1
    parameter, mean, square = (tensor[box] for tensor in wide)
    gradient = torch.randn(4, 4, 3, 3) * mask
    update_parts([Part(parameter, gradient, mask, mean, square, torch.zeros(4, 4, 1, 1))], RULE)
    used = torch.zeros(6, 7, 3, 3, dtype=torch.bool)
    used[box] = mask.bool().expand(4, 4, 3, 3)
    for now, then in zip(wide, before, strict=True):
        assert torch.equal(now[~used], then[~used])
        assert (now[used] != then[used]).all()


@pytest.mark.parametrize("rule", [RULE._replace(beta1=0.0), RULE._replace(weight_decay=0.0)])
def test_other_settings(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("c", "torch"):
        use(monkeypatch, name)
        part = drawn_part(7)
        expected = by_definition(part, rule)
        update_parts([part], rule)
        for at, values in expected.items():
            found = [float(x[at]) for x in (part.parameter, part.mean, part.square)]
            assert found == pytest.approx(values, rel=2e-5, abs=2e-6), (name, at)


def test_what_c_does_not_serve_is_served_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many axes, bias corrections that need tables too long, counts of another type."""
    use(monkeypatch, "c")
    part = drawn_part(3)
    ones = torch.ones([1] * 7)
    deep = Part(ones.clone(), ones, ones, ones.clone(), ones.clone(), torch.zeros([1] * 7))
    slow, counted = RULE._replace(beta2=1 - 1e-9), part._replace(step=part.step.double())
    for odd, rule in ((deep, RULE), (part, slow), (counted, RULE)):
        assert not in_c.serves([odd], rule)
        expected = by_definition(odd, rule)
        update_parts([odd], rule)
        for at, (value, *_) in expected.items():
            assert float(odd.parameter[at]) == pytest.approx(value, rel=1e-3, abs=1e-4)


def test_threads_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "c")
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            parts = list(parts_of(9))
            update_parts(parts, RULE)
            found.append(parts)
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(one[:-1], other[:-1], strict=True))


def test_late_steps_are_corrected_by_the_last_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "c")
    one = torch.ones(3)
    step = torch.tensor([in_c._last(0.999) - 1.0, in_c._last(0.999) + 5.0, 1e7])
    part = Part(one.clone(), one, one, one.clone(), one.clone(), step)
    update_parts([part], RULE)
    right = 1 - RULE.lr * RULE.weight_decay - RULE.lr / (1 + RULE.eps)
    assert part.parameter.tolist() == pytest.approx([right] * 3, rel=1e-6)
