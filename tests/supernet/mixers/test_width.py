"""Narrow networks have the first channels of wide ones, in weights, gradients and statistics.

That what they compute is what their own networks compute is tested with all other choices, in
`tests.supernet.network.test_extraction` and `tests.supernet.network.test_supernet`.
"""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import Tensor

from searchspace.architecture import Architecture
from searchspace.space import MixerChoices, SearchSpace, StageChoices
from searchspace.spec_file import load_space
from supernet.mixers.weight_sharing import WeightSharing
from supernet.network.supernet import Supernet, extract
from tests.supernet.network.test_supernet import randomise

KINDS = {
    "window_attention": {"window_size": (4,), "num_heads": (2,)},
    "elsa": {"kernel_size": (3,), "num_heads": (2,), "group_width": (2,)},
    "depthwise_conv": {"kernel_size": (3,)},
}
CHOICES = (MixerChoices(kinds=KINDS),)
SPACE = SearchSpace(
    name="two widths",
    img_size=8,
    patch_size=2,
    num_classes=3,
    stages=(
        StageChoices(dims=(12, 6), depths=(1,), mlp_ratios=(2,), choices=CHOICES),
        StageChoices(dims=(18, 12), depths=(1,), mlp_ratios=(2,), choices=CHOICES),
    ),
)


def architecture_of(kind: str, *dims: int) -> Architecture:
    """Return the network of one mixer kind with these widths."""

    def choose(name: str, options: tuple[object, ...]) -> object:
        if name.endswith(".dim"):
            return dims[int(name[len("stage")])]
        return kind if name.endswith(".mixer") else options[0]

    return SPACE.build(choose)


def first_of_blocks(weight: Tensor, axis: int, blocks: list[tuple[int, int]]) -> Tensor:
    """Pick the first channels of blocks along an axis, one index at a time."""
    rows, start = [], 0
    for size, left in blocks:
        rows += range(start, start + left)
        start += size
    return weight.index_select(axis, torch.tensor(rows))


def test_a_narrow_network_has_the_first_channels() -> None:
    supernet = Supernet(SPACE)
    full = supernet.state_dict()

    own = extract(supernet, architecture_of("window_attention", 6, 12)).state_dict()

    block = "stages.0.0.mixers.window_attention.attention"
    for name, expected in {
        "patch_embed.proj.weight": full["patch_embed.proj.weight"][:6],
        "merges.0.norm.weight": first_of_blocks(full["merges.0.norm.weight"], 0, [(12, 6)] * 4),
        "merges.0.reduction.weight": first_of_blocks(
            full["merges.0.reduction.weight"], 1, [(12, 6)] * 4
        )[:12],
        f"{block}.in_proj.weight": first_of_blocks(
            full[f"{block}.in_proj.weight"], 0, [(12, 6)] * 3
        )[:, :6],
        f"{block}.in_proj.bias": first_of_blocks(full[f"{block}.in_proj.bias"], 0, [(12, 6)] * 3),
        f"{block}.proj.weight": full[f"{block}.proj.weight"][:6, :6],
        f"{block}.table_bias": full[f"{block}.table_bias"],
        "stages.0.0.mlp.fc1.weight": full["stages.0.0.mlp.fc1.weight"][:12, :6],
        "norm.weight": full["norm.weight"][:12],
        "head.weight": full["head.weight"][:, :12],
        "head.bias": full["head.bias"],
    }.items():
        assert torch.equal(own[name], expected), name


def test_queries_and_values_of_different_widths_are_cut_each_for_itself() -> None:
    supernet = Supernet(SPACE)
    name = "stages.0.0.mixers.elsa.in_proj.weight"

    own = extract(supernet, architecture_of("elsa", 6, 18)).state_dict()[name]

    expected = first_of_blocks(supernet.state_dict()[name], 0, [(8, 4), (8, 4), (12, 6)])[:, :6]
    assert torch.equal(own, expected)


def test_a_training_step_changes_statistics_and_gradients_of_the_first_channels_alone() -> None:
    supernet = randomise(Supernet(SPACE)).train()
    norm = supernet.get_submodule("stages.0.0.mixers.depthwise_conv.pointwise.norm_in")
    before = norm.running_mean.clone()

    supernet(torch.randn(4, 3, 8, 8), architecture_of("depthwise_conv", 6, 12)).sum().backward()

    assert (norm.running_mean != before)[:6].all()
    assert torch.equal(norm.running_mean[6:], before[6:])
    assert int(norm.num_batches_tracked) == 1
    gradient = supernet.get_parameter("patch_embed.proj.weight").grad
    assert (gradient[:6] != 0).any()
    assert not gradient[6:].any()


def test_a_first_narrow_network_draws_no_random_numbers() -> None:
    supernet = Supernet(SPACE)
    torch.manual_seed(3)
    random.seed(3)
    before = torch.get_rng_state()

    supernet.eval()(torch.zeros(1, 3, 8, 8), architecture_of("elsa", 6, 12))

    assert torch.equal(torch.get_rng_state(), before)
    assert random.random() == random.Random(3).random()


def test_checkpointed_gradients_are_the_same_at_every_width() -> None:
    torch.manual_seed(0)
    kept = randomise(Supernet(SPACE, drop_path_rate=0.5)).train()
    recomputed = copy.deepcopy(kept)
    recomputed.grad_checkpointing = True
    images = torch.randn(4, 3, 8, 8)
    for kind in KINDS:
        for network in (kept, recomputed):
            torch.manual_seed(1)
            network(images, architecture_of(kind, 6, 12)).square().sum().backward()

    expected = kept.state_dict()
    for name, value in recomputed.state_dict().items():
        assert torch.equal(value, expected[name]), name
    for (name, one), other in zip(kept.named_parameters(), recomputed.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, msg=name)


def test_a_copy_of_a_supernet_has_weights_of_its_own_at_every_width() -> None:
    supernet = randomise(Supernet(SPACE)).eval()
    images, narrow = torch.randn(2, 3, 8, 8), architecture_of("window_attention", 6, 12)
    before = supernet(images, narrow)
    copied = copy.deepcopy(supernet)
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.zero_()

    assert torch.equal(copied(images, narrow), before)
    assert not supernet(images, narrow).any()
    assert not any(value.is_meta for value in copied.state_dict().values())


@pytest.mark.parametrize("kernels", ["centred", "transformed"])
@pytest.mark.parametrize("projections", ["unshared", "shared"])
def test_the_shipped_space_is_extracted_exactly(projections: str, kernels: str) -> None:
    torch.manual_seed(0)
    space, rng = load_space("micro_width").replace(num_classes=3), random.Random(0)
    supernet = Supernet(space, sharing=WeightSharing(projections=projections, kernels=kernels))
    randomise(supernet).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for architecture in (space.sample(rng) for _ in range(20)):
            subnet = extract(supernet, architecture)
            torch.testing.assert_close(subnet(images), supernet(images, architecture))


def test_a_width_that_is_not_offered_is_refused() -> None:
    narrow = architecture_of("elsa", 6, 12)
    other = SPACE.replace(
        stages=(SPACE.stages[0], StageChoices(dims=(24,), depths=(1,), choices=CHOICES))
    )

    with pytest.raises(ValueError, match=r"widths \[\[12, 6\], \[24\]\], got \[6, 12\]"):
        Supernet(other)(torch.zeros(1, 3, 8, 8), narrow)


def test_weights_that_do_not_narrow_are_refused() -> None:
    """Values as wide as the widest stage are shared there and cannot be where it is narrow."""
    kinds = {**KINDS, "elsa": {**KINDS["elsa"], "v_dim": (12,)}}
    stage = StageChoices(dims=(12, 6), depths=(1,), choices=(MixerChoices(kinds=kinds),))
    space = SPACE.replace(stages=(stage,))
    supernet = Supernet(space, sharing=WeightSharing(projections="shared"))

    with pytest.raises(ValueError, match=r"in_proj.* is no part of that of the widest"):
        supernet(torch.zeros(1, 3, 8, 8), space.build(lambda name, options: options[-1]))
