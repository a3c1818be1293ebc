"""Laws of `SearchSpace`: one walk for all uses, and sizes and extremes equal to brute force."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchspace.architecture import Architecture
from searchspace.cost import count
from searchspace.space import MixerChoices, SearchSpace, StageChoices
from tests.strategies import architectures

# Windows of 4 and 9 are the same on the second map; a rule and the terms' order remove more.
CHOICES = MixerChoices(
    kinds={
        "window_attention": {
            "window_size": (2, 4, 9),
            "num_heads": (1, 2),
            "terms": ("qk+bias", "bias"),
            "norm": ("softmax",),
        },
        "depthwise_conv": {"kernel_size": (3, 5)},
        "elsa": {"kernel_size": (3,), "num_heads": (2,), "lam": (0, 1), "gamma": (0, 1)},
    },
    forbid=(
        {"mixer": ("window_attention",), "num_heads": (2,), "terms": ("bias",)},
        {"lam": (1,), "gamma": (0,)},
    ),
)


def space_of(
    num_choices: int = 1,
    limits: dict[str, float] | None = None,
    depths: tuple[int, ...] = (2,),
    dims: tuple[int, ...] = (8,),
) -> SearchSpace:
    """Return a space with maps of 8 x 8 and 4 x 4 tokens, and two blocks in the second stage."""
    return SearchSpace(
        name="small",
        img_size=16,
        patch_size=2,
        stages=(
            StageChoices(dims=dims, depths=(1,), mlp_ratios=(1, 2), choices=(CHOICES,)),
            StageChoices(
                dims=(12,), depths=depths, mlp_ratios=(1,), choices=(CHOICES,) * num_choices
            ),
        ),
        num_classes=3,
        limits=limits or {},
    )


SPACES = [
    space_of(),
    space_of(depths=(2, 5, 1)),
    space_of(num_choices=2, depths=(2, 1)),
    space_of(dims=(8, 16, 4)),
]


def walks(space: SearchSpace) -> Iterator[Architecture]:
    """Build with every possible sequence of answers; forbidden networks are left out."""
    pending: list[list[int]] = [[]]
    while pending:
        answers = pending.pop()
        counts: list[int] = []

        def choose(
            _name: str,
            options: Sequence[Any],
            answers: list[int] = answers,
            counts: list[int] = counts,
        ) -> Any:
            counts.append(len(options))
            return options[answers[len(counts) - 1] if len(counts) <= len(answers) else 0]

        architecture = space.build(choose)
        if space.violation(architecture) is None:
            yield architecture
        for position in range(len(answers), len(counts)):
            zeros = [0] * (position - len(answers))
            pending.extend([*answers, *zeros, other] for other in range(1, counts[position]))


@pytest.mark.parametrize("space", SPACES)
def test_size_is_the_number_of_distinct_networks(space: SearchSpace) -> None:
    assert space.size() == len(set(walks(space)))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("cost", ["params", "macs"])
def test_extremes_are_those_of_all_networks(space: SearchSpace, cost: str) -> None:
    costs = [getattr(count(architecture), cost) for architecture in walks(space)]

    for largest, expected in ((False, min(costs)), (True, max(costs))):
        extreme = space.extreme(cost, largest=largest)
        assert getattr(count(extreme), cost) == expected
        assert space.violation(extreme) is None


@given(st.sampled_from(SPACES), st.integers(0, 2**32))
def test_a_walk_is_decoded_by_looking_its_answers_up(space: SearchSpace, seed: int) -> None:
    rng, answers = random.Random(seed), dict[str, Any]()

    def choose(name: str, options: Sequence[Any]) -> Any:
        assert name not in answers
        answers[name] = rng.choice(options)
        return answers[name]

    architecture = space.build(choose)

    assert space.build(lambda name, _options: answers[name]) == architecture
    found = space.choices_of(architecture)
    assert found.keys() == answers.keys()
    assert space.build(lambda name, _options: found[name]) == architecture


def test_settings_that_are_stored_as_others_are_found_again() -> None:
    # A convolution of logits that are not there, and the width that ELSA has by default.
    choices = MixerChoices(
        kinds={
            "window_attention": {
                "window_size": (4, 9),
                "num_heads": (1, 2),
                "terms": ("qk+bias", "bias"),
                "conv": ("post",),
            },
            "elsa": {"kernel_size": (3,), "num_heads": (2,), "qk_dim": (4, 8), "v_dim": (12, 16)},
        }
    )
    stage = StageChoices(dims=(12, 24), depths=(1, 2), choices=(choices,))
    space = SearchSpace(name="stored", img_size=8, patch_size=1, stages=(stage,))

    for architecture in set(walks(space)):
        found = space.choices_of(architecture)
        assert space.build(lambda name, _options, found=found: found[name]) == architecture  # type: ignore[misc]


def test_blocks_beyond_the_depth_are_not_asked_for() -> None:
    space, asked = space_of(num_choices=2, depths=(2, 1)), set[str]()

    def choose(name: str, options: Sequence[Any]) -> Any:
        asked.add(name)
        return 1 if name == "stage1.depth" else options[0]

    assert space.build(choose).stages[1].depth == 1
    assert "stage1.block0.mixer" in asked
    assert not any(name.startswith("stage1.block1") for name in asked)


def test_an_architecture_of_another_width_is_not_in_the_space() -> None:
    space = space_of(dims=(8, 4))
    wider = space_of(dims=(16,)).first()

    assert space.violation(wider) == "stage 0: dim 16 is not offered by the space"
    with pytest.raises(ValueError, match=r"offers dim \[8, 4\], the architecture has 16"):
        space.choices_of(wider)


def test_an_architecture_of_another_depth_is_not_in_the_space() -> None:
    space, deeper = (space_of(num_choices=2, depths=d) for d in ((1, 2), (2,)))
    shallow = space.first()

    assert deeper.violation(shallow) == "stage 1: depth 1 is not offered by the space"
    with pytest.raises(ValueError, match="is not in the space"):
        deeper.choices_of(shallow)


def test_equal_seeds_draw_equal_networks() -> None:
    first, second = random.Random(3), random.Random(3)
    space = space_of(num_choices=2)

    drawn = [space.sample(first) for _ in range(10)]

    assert drawn == [space.sample(second) for _ in range(10)]
    assert len(set(drawn)) > 1


def test_a_name_always_has_the_same_options() -> None:
    seen: dict[str, Sequence[Any]] = {}
    rng = random.Random(0)

    def choose(name: str, options: Sequence[Any]) -> Any:
        assert seen.setdefault(name, options) == options
        return rng.choice(options)

    for _ in range(50):
        space_of(num_choices=2).build(choose)

    assert "stage1.block1.depthwise_conv.kernel_size" in seen
    assert "stage0.mixer" in seen


def test_samples_keep_rules_and_limits() -> None:
    unlimited = space_of(num_choices=2)
    macs = sorted(count(architecture).macs for architecture in walks(unlimited))
    space = space_of(num_choices=2, limits={"macs": macs[len(macs) // 4]})
    rng = random.Random(0)
    allowed = set(walks(space))

    for _ in range(50):
        drawn = space.sample(rng)
        assert drawn in allowed
        assert count(drawn).macs <= space.limits["macs"]


def test_limits_that_nothing_keeps_are_reported() -> None:
    with pytest.raises(ValueError, match=r"'small' allows too few.*macs is .* the limit is 1\b"):
        space_of(limits={"macs": 1}).sample(random.Random(0))


def test_rules_see_the_window_that_the_map_leaves() -> None:
    rule = {"window_size": (4,)}
    choices = MixerChoices(
        kinds={"window_attention": {"window_size": (9,), "num_heads": (1,)}}, forbid=(rule,)
    )
    space = SearchSpace(
        name="one",
        img_size=4,
        patch_size=1,
        stages=(StageChoices(dims=(4,), depths=(1,), choices=(choices,)),),
    )

    assert space.violation(space.build(lambda _name, options: options[0])) is not None
    assert space.size() == 0


@given(architectures())
def test_the_space_of_an_architecture_has_one_point(architecture: Architecture) -> None:
    space = SearchSpace.of(architecture)

    assert space.size() == 1
    assert space.sample(random.Random(0)) == architecture
    assert space.extreme("macs", largest=True) == architecture


def test_single_mixer_networks_have_the_first_settings_of_the_space() -> None:
    space = space_of()
    first = {}
    for architecture in walks(space):
        kinds = {mixer.kind for stage in architecture.stages for mixer in stage.mixers}
        if len(kinds) == 1:
            first.setdefault(kinds.pop(), architecture)

    assert dict(space.single_mixer_architectures()) == first


def test_a_kind_that_the_rules_forbid_has_no_single_mixer_network() -> None:
    choices = MixerChoices(kinds=CHOICES.kinds, forbid=({"mixer": ("elsa",)},))
    stage = StageChoices(dims=(8,), depths=(1,), choices=(choices,))
    space = SearchSpace(name="no elsa", img_size=4, patch_size=1, stages=(stage,))

    assert {kind for kind, _ in space.single_mixer_architectures()} == {
        "window_attention",
        "depthwise_conv",
    }


def test_choices_are_for_the_stage_or_for_each_block() -> None:
    with pytest.raises(ValueError, match="got 2 sets for 3 blocks"):
        StageChoices(dims=(8,), depths=(3,), choices=(CHOICES, CHOICES))


def test_all_mixers_of_a_block_are_reached() -> None:
    space = space_of()
    reached = {architecture.stages[0].mixers[0] for architecture in walks(space)}

    assert set(space.mixers_of(0, 0)) == reached
    # Of two options of lam times two of gamma, a rule forbids one.
    assert sum(mixer.kind == "elsa" for mixer in reached) == 3
