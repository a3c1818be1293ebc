"""A step changes the elements that its architectures use, as AdamW does, and nothing else."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import Tensor

from searchspace.architecture import Architecture
from searchspace.spec_file import load_space
from supernet.kernels import Rule, update_parts
from supernet.mixers.weight_sharing import PROJECTIONS, WeightSharing
from supernet.network.supernet import Supernet, extract
from supernet.recipes.recipe import load_recipe
from supernet.shared_weights.ema import SharedEma
from supernet.shared_weights.shared_adamw import SharedAdamW
from supernet.shared_weights.shared_training import apply_gradients
from supernet.shared_weights.trainer import accumulate_gradients, build_shared_optimizer
from supernet.shared_weights.usage import Mask, UsedWeights, _trace
from tests.supernet.kernels.formulations import use
from tests.supernet.network.test_supernet import SPACE, randomise, samples

RECIPE = load_recipe("supernet").model_copy(update={"weight_decay": 0.3, "lr": 0.01})


@pytest.fixture(autouse=True, params=["c", "torch"])
def _formulation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, request.param)


def used_by_numbering(supernet: Supernet, architecture: Architecture) -> dict[str, Tensor]:
    """Find the used elements without autograd: number all elements and see which are selected."""
    numbered = copy.deepcopy(supernet).double()
    first, places = 0, {}
    for name, parameter in numbered.named_parameters():
        numbers = torch.arange(first, first + parameter.numel(), dtype=torch.float64)
        parameter.data = numbers.view_as(parameter)
        places[name] = parameter.data
        first += parameter.numel()
    own = {name for name, _ in extract(supernet, architecture).named_parameters()}
    selected = [v.flatten() for n, v in numbered.select(architecture).items() if n in own]
    found = torch.cat(selected)
    return {name: torch.isin(numbers, found) for name, numbers in places.items()}


def state_of_all(
    supernet: Supernet, optimizer: SharedAdamW, ema: SharedEma
) -> dict[str, dict[str, Tensor]]:
    """Copy the weight, moments, count and average of every parameter, elementwise."""
    averages = dict(ema.supernet.named_parameters())
    found = {}
    for name, parameter in supernet.named_parameters():
        state = optimizer.state.get(parameter) or {}
        moments = [state.get(key, torch.zeros(())) for key in ("exp_avg", "exp_avg_sq", "step")]
        values = [parameter.detach(), averages[name], *moments]
        keys = ("weight", "average", "mean", "square", "count")
        found[name] = {
            key: value.expand_as(parameter).clone() for key, value in zip(keys, values, strict=True)
        }
    return found


def step(
    supernet: Supernet, optimizer: SharedAdamW, ema: SharedEma, named: list[Architecture]
) -> None:
    images = torch.randn(4, 3, 22, 22)
    optimizer.zero_grad(set_to_none=True)
    accumulate_gradients(supernet, named, images, torch.tensor([0, 3, 1, 2]), RECIPE)
    used = UsedWeights(supernet)(named)
    optimizer.update(used)
    ema.update(supernet, optimizer, used)


@pytest.mark.parametrize("projections", PROJECTIONS)
@pytest.mark.parametrize("seed", range(4))
def test_a_step_leaves_all_that_its_architecture_does_not_use(seed: int, projections: str) -> None:
    torch.manual_seed(seed)
    supernet = randomise(Supernet(SPACE, sharing=WeightSharing(projections=projections))).train()
    optimizer = build_shared_optimizer(supernet, RECIPE)
    ema = SharedEma(supernet, decay=0.9, warmup=True)
    named = samples(6, seed=seed)
    for architecture in named[1:]:  # gives all of them momentum
        step(supernet, optimizer, ema, [architecture])
    before = state_of_all(supernet, optimizer, ema)
    buffers = {name: value.clone() for name, value in supernet.named_buffers()}
    step(supernet, optimizer, ema, named[:1])
    after = state_of_all(supernet, optimizer, ema)
    used = used_by_numbering(supernet, named[0])
    for name, values in after.items():
        for key, value in values.items():
            unused = ~used[name]
            assert torch.equal(value[unused], before[name][key][unused]), (name, key)
        assert (values["count"] - before[name]["count"] == used[name]).all(), name
        # Weight decay alone changes what is used, as far as float32 can tell.
        decayed = used[name] & (values["weight"].abs() > 1e-3)
        if not name.endswith("bias") and values["weight"].dim() > 1:
            assert (values["weight"] != before[name]["weight"])[decayed].all(), name
    own = set(extract(supernet, named[0]).state_dict())
    for name, value in supernet.named_buffers():
        assert name in own or torch.equal(value, buffers[name]), name


def test_several_architectures_use_what_any_of_them_uses() -> None:
    supernet = Supernet(SPACE)
    first, second = samples(2, seed=9)
    used_weights = UsedWeights(supernet)
    used_weights([samples(1, seed=10)[0]])  # what is remembered of others changes nothing
    found = used_weights([first, second])
    expected = [used_by_numbering(supernet, architecture) for architecture in (first, second)]
    for name, parameter in supernet.named_parameters():
        mask = found.get(parameter, Mask.of(torch.zeros_like(parameter)))
        values = torch.ones_like(parameter) if mask is None else mask.values
        right = expected[0][name] | expected[1][name]
        assert torch.equal(values.bool().expand_as(parameter), right), name
        outside = right.clone()
        outside[() if mask is None else mask.box] = False
        assert not outside.any(), name


def test_every_element_is_trained_as_adamw_trains_it_alone() -> None:
    rng = random.Random(0)
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(5))
    shared = SharedAdamW([weight], lr=0.1, weight_decay=0.2, fused=True)
    alone = [torch.nn.Parameter(value.clone()) for value in weight.detach()]
    optimizers = [torch.optim.AdamW([p], lr=0.1, weight_decay=0.2) for p in alone]
    for _ in range(30):
        mask = torch.tensor([True, *(rng.random() < 0.4 for _ in range(4))])
        gradient = torch.randn(5)
        weight.grad = gradient * mask
        shared.update({weight: None if mask.all() else Mask.of(mask.float())})
        for index in mask.nonzero().flatten().tolist():
            alone[index].grad = gradient[index]
            optimizers[index].step()
    torch.testing.assert_close(weight.detach(), torch.stack([p.detach() for p in alone]))


def test_parts_that_are_told_apart_later_keep_their_count() -> None:
    """Rows first, then columns: each element is trained as if it were alone."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(3, 2))
    shared = SharedAdamW([weight], lr=0.1, weight_decay=0.2, fused=True)
    alone = [torch.nn.Parameter(value.clone()) for value in weight.detach().flatten()]
    optimizers = [torch.optim.AdamW([p], lr=0.1, weight_decay=0.2) for p in alone]
    rows, columns = torch.tensor([[1.0], [0.0], [1.0]]), torch.tensor([[1.0, 0.0]])
    for mask in (None, rows, rows, columns, None, columns, rows):
        used = torch.ones(3, 2) if mask is None else mask.expand(3, 2)
        weight.grad = torch.randn(3, 2) * used
        shared.update({weight: None if mask is None else Mask.of(mask)})
        for index in used.flatten().nonzero().flatten().tolist():
            alone[index].grad = weight.grad.flatten()[index]
            optimizers[index].step()
    expected = torch.stack([p.detach() for p in alone]).view(3, 2)
    torch.testing.assert_close(weight.detach(), expected)


@pytest.mark.parametrize("seed", range(2))
def test_a_step_that_does_not_apply_changes_nothing(seed: int) -> None:
    """Told by a number of the device, with gradients that are not finite."""
    torch.manual_seed(seed)
    supernet = randomise(Supernet(SPACE)).train()
    optimizer = build_shared_optimizer(supernet, RECIPE)
    ema = SharedEma(supernet, decay=0.9, warmup=True)
    named = samples(5, seed=seed)
    for architecture in named:
        step(supernet, optimizer, ema, [architecture])
    before = state_of_all(supernet, optimizer, ema)
    for value in (float("nan"), float("inf"), 1e30):
        images = torch.randn(4, 3, 22, 22)
        optimizer.zero_grad(set_to_none=True)
        accumulate_gradients(supernet, named[:1], images, torch.tensor([0, 3, 1, 2]), RECIPE)
        used = UsedWeights(supernet)(named[:1])
        for parameter in used:
            if parameter.grad is not None:
                parameter.grad.mul_(value)
        applies = apply_gradients(optimizer, used, clip_grad=1.0)
        ema.update(supernet, optimizer, used, applies)
        assert not applies
    after = state_of_all(supernet, optimizer, ema)
    for name, values in after.items():
        for key, found in values.items():
            assert torch.equal(found, before[name][key]), (name, key)


def test_blocks_of_several_architectures_hold_what_each_uses() -> None:
    masks = [Mask.of(torch.zeros(6, 1).index_fill(0, torch.tensor(rows), 1)) for rows in ([1], [4])]
    assert masks[0].box == (slice(1, 2), slice(None))
    assert masks[0].joined(masks[1]).box == (slice(1, 5), slice(None))
    assert masks[0].joined(masks[1]).inside.flatten().tolist() == [1, 0, 0, 1]
    square = torch.zeros(3, 4)
    square[1, 2:] = 1
    assert Mask.of(square).box == (slice(1, 2), slice(2, 4))


def test_an_average_counts_the_steps_that_used_its_element() -> None:
    torch.manual_seed(0)
    supernet = Supernet(SPACE)
    optimizer = build_shared_optimizer(supernet, RECIPE)
    ema = SharedEma(supernet, decay=0.8, warmup=True)
    name, parameter = "head.bias", supernet.head.bias
    expected = parameter.detach().clone()
    for number in range(1, 6):
        parameter.grad = torch.randn_like(parameter)
        optimizer.update({parameter: None})
        ema.update(supernet, optimizer, {parameter: None})
        decay = min(0.8, 1 - number ** (-2 / 3))
        expected = decay * expected + (1 - decay) * parameter.detach()
        ema.update(supernet, optimizer, {})  # a step of others
    torch.testing.assert_close(ema.supernet.get_parameter(name), expected)


def test_an_optimizer_state_survives_being_saved() -> None:
    supernet = randomise(Supernet(SPACE)).train()
    optimizer = build_shared_optimizer(supernet, RECIPE)
    ema = SharedEma(supernet, decay=0.9, warmup=False)
    for architecture in samples(3):
        step(supernet, optimizer, ema, [architecture])
    again = build_shared_optimizer(supernet, RECIPE)
    again.load_state_dict(optimizer.state_dict())
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            assert torch.equal(again.state[parameter][key], value)


@pytest.mark.parametrize("is_part", [False, True])
def test_all_that_is_kept_of_a_weight_is_where_the_weight_is(
    is_part: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device without numbers, as on a GPU: nothing is left on the CPU."""
    use(monkeypatch, "auto")
    weight = torch.nn.Parameter(torch.ones(4, 3, device="meta"))
    optimizer = SharedAdamW([weight], lr=0.1, weight_decay=0.1)
    assert optimizer.uses(weight).device.type == "meta"
    for _ in range(2):
        weight.grad = torch.ones(4, 3, device="meta")
        # Its box is known beforehand: nobody looks at numbers there.
        whole = (slice(None), slice(None))
        mask = Mask(torch.ones(4, 1, device="meta"), whole) if is_part else None
        with torch.no_grad():
            part = optimizer._part(weight, weight.grad, {weight: mask}, None)
            update_parts([part], Rule(lr=0.1, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.1))
    kept = optimizer.state[weight]
    assert {name: value.device.type for name, value in kept.items()} == dict.fromkeys(
        ("step", "exp_avg", "exp_avg_sq"), "meta"
    )
    assert kept["step"].shape == ((4, 1) if is_part else ())


@pytest.mark.parametrize("change", ["weights", "state", "both"])
def test_what_is_remembered_of_a_block_is_where_the_weight_is_now(change: str) -> None:
    """A weight or a state that was put elsewhere is the one that later steps change."""
    torch.manual_seed(0)
    start = torch.randn(6, 5)
    rows, columns = torch.zeros(6, 1), torch.zeros(1, 5)
    rows[1:3], columns[:, 2:] = 1, 1
    masks = [Mask.of(rows), Mask.of(columns)]
    gradients = [torch.randn(6, 5) for _ in range(8)]

    def taught(moves: bool) -> list[Tensor]:
        weight = torch.nn.Parameter(start.clone())
        optimizer = SharedAdamW([weight], lr=0.1, weight_decay=0.1)
        for number, gradient in enumerate(gradients):
            if moves and number in (3, 6):
                if change != "state":
                    weight.data = weight.data.clone()
                if change != "weights":
                    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            mask = masks[number % 2]
            # Of another memory layout now and then.
            given = gradient * mask.values
            weight.grad = given.t().contiguous().t() if number % 3 == 2 else given
            optimizer.update({weight: mask})
        return [weight.detach(), *optimizer.state[weight].values()]

    for moved, stayed in zip(taught(True), taught(False), strict=True):
        assert torch.equal(moved, stayed)


def test_what_was_never_used_was_used_no_times() -> None:
    weight = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = SharedAdamW([weight], lr=0.1)
    assert optimizer.uses(weight).item() == 0
    weight.grad = torch.ones(4, 3)
    optimizer.update({weight: Mask.of(torch.tensor([[1.0], [0.0], [1.0], [0.0]]))})
    assert optimizer.uses(weight).flatten().tolist() == [1, 0, 1, 0]
    assert weight.grad is not None
    optimizer.update({weight: None})
    assert optimizer.uses(weight).flatten().tolist() == [2, 1, 2, 1]
    optimizer.update({})
    assert weight.grad is None
    assert optimizer.uses(weight).flatten().tolist() == [2, 1, 2, 1]


def test_new_weights_count_for_what_the_decay_leaves_and_for_more_at_first() -> None:
    """1 - decay, and with a warm-up at least n^(-2/3) of the n-th use."""
    supernet, uses = Supernet(SPACE), torch.tensor([0.0, 1.0, 8.0, 27.0, 1_000.0, 1e6])
    plain = SharedEma(supernet, decay=0.9, warmup=False)._share(uses)
    warm = SharedEma(supernet, decay=0.9, warmup=True)._share(uses)
    assert plain.tolist() == pytest.approx([0.1] * 6)
    assert warm.tolist() == pytest.approx([1.0, 1.0, 1 / 4, 1 / 9, 0.1, 0.1])


def test_what_is_used_as_a_whole_and_in_part_is_used_as_a_whole() -> None:
    whole, part = torch.nn.Parameter(torch.ones(4, 2)), torch.nn.Parameter(torch.ones(4, 2))
    usage = _trace([whole, part], [whole, whole[:1], part[1:3]])
    assert usage[whole] is None
    mask = usage[part]
    assert mask is not None
    assert mask.values.flatten().tolist() == [0, 1, 1, 0]
    used = UsedWeights(Supernet(load_space("digits")))
    some, other = (
        used._shared_mask(whole, Mask.of(torch.tensor(rows)))
        for rows in ([[1.0], [0.0]], [[0.0], [1.0]])
    )
    for first, second, expected in (
        (some, None, None),
        (None, some, None),
        (None, None, None),
        (some, some, [1, 0]),
        (some, other, [1, 1]),
    ):
        found: dict[Tensor, Mask | None] = {whole: first}
        used._join(found, {whole: second, part: some})
        value = found[whole]
        assert (None if value is None else value.values.flatten().tolist()) == expected
        assert found[part] is some
    # A step remembers blocks by their masks: there are as few as can be.
    both = used._joined(whole, some, other)
    assert used._joined(whole, other, some) is both
    assert used._joined(whole, both, some) is both


def test_masks_are_told_apart_by_their_values() -> None:
    """Both reach from the first to the last element; one has a hole."""
    used = UsedWeights(Supernet(load_space("digits")))
    parameter = torch.zeros(4)
    whole, hole = (Mask.of(torch.tensor(row)) for row in ([1.0, 1, 1, 1], [1.0, 0, 0, 1]))
    assert whole.box == hole.box
    found = [used._shared_mask(parameter, mask) for mask in (whole, hole, whole, hole)]
    assert [mask.values.tolist() for mask in found[:2]] == [[1, 1, 1, 1], [1, 0, 0, 1]]
    assert (found[2] is found[0], found[3] is found[1]) == (True, True)
