"""Baselines: what a person would draw, at several costs."""

from __future__ import annotations

import pytest

from configs import config_names
from searchspace.cost import count
from searchspace.single_mixer import is_single_mixer, single_mixer_baselines
from searchspace.spec_file import load_space


@pytest.mark.parametrize("name", config_names("spaces"))
def test_baselines_are_points_of_their_space_with_one_mixer_each(name: str) -> None:
    space = load_space(name)
    found = single_mixer_baselines(space)
    assert all(is_single_mixer(one) for one in found)
    assert all(space.violation(one) is None for one in found)
    for one in found:
        choices = space.choices_of(one)
        assert space.build(lambda place, _: choices[place]) == one  # noqa: B023
    assert len({one.key for one in found}) == len(found)


@pytest.mark.parametrize("name", ["digits", "micro", "micro_128", "swin_t"])
def test_any_beginning_spans_mixers_first_and_costs_next(name: str) -> None:
    space = load_space(name)
    published = [one.key for _, one in space.single_mixer_architectures()]
    found = single_mixer_baselines(space)
    assert [one.key for one in found[: len(published)]] == published
    # Of each mixer the dearest costs at least four times the cheapest.
    by_kind: dict[str, list[int]] = {}
    for one in found:
        by_kind.setdefault(one.stages[0].mixers[0].kind, []).append(count(one).macs)
    assert len(by_kind) == len(published)
    assert all(max(macs) >= 4 * min(macs) for macs in by_kind.values())


def test_depth_wise_baselines_have_each_kernel() -> None:
    found = single_mixer_baselines(load_space("digits"))
    kernels = {
        tuple(mixer.kernel_size for stage in one.stages for mixer in stage.mixers[:1])
        for one in found
        if one.stages[0].mixers[0].kind == "depthwise_conv"
    }
    # The last stage offers 3 and 5.
    assert kernels == {(3, 3), (5, 5), (7, 5)}


def test_limits_of_the_space_are_kept() -> None:
    space = load_space("micro")
    limited = space.replace(limits={"macs": 3e6})
    found = single_mixer_baselines(limited)
    assert found
    assert all(count(one).macs <= 3e6 for one in found)
    assert len(found) < len(single_mixer_baselines(space))
