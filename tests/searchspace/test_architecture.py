"""Laws of `Architecture`: round trips, one key for equal networks, refusals."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from hypothesis import given

from searchspace.architecture import Architecture, Stage, describe
from searchspace.mixers import DepthwiseConv, Elsa, InhomogeneousDepthwiseConv, WindowAttention
from tests.strategies import architectures


def small(window_size: int = 4, **changes: Any) -> Architecture:
    """Return a network whose maps have 8 x 8 and 4 x 4 tokens."""
    stages = tuple(
        Stage(dim=dim, mixers=(WindowAttention(window_size=window_size, num_heads=2),))
        for dim in (8, 16)
    )
    return Architecture(img_size=16, patch_size=2, stages=stages, num_classes=10).replace(**changes)


@given(architectures())
def test_architecture_survives_a_json_round_trip(architecture: Architecture) -> None:
    read = Architecture.from_dict(json.loads(json.dumps(architecture.to_dict())))

    assert read == architecture
    assert hash(read) == hash(architecture)
    assert read.key == architecture.key


@given(architectures(), architectures())
def test_keys_are_equal_exactly_for_equal_architectures(a: Architecture, b: Architecture) -> None:
    assert (a.key == b.key) == (a == b)


def test_architecture_survives_pickling() -> None:
    assert pickle.loads(pickle.dumps(small())) == small()


def test_a_window_larger_than_the_map_is_the_map() -> None:
    assert small(window_size=8) == small(window_size=99)
    assert small(window_size=8).key == small(window_size=99).key
    assert small(window_size=8) != small(window_size=7)


def test_maps_are_halved_rounded_up() -> None:
    stage = Stage(dim=4, mixers=(DepthwiseConv(kernel_size=3),))

    assert Architecture(img_size=18, patch_size=2, stages=(stage,) * 5).resolutions == (
        9,
        5,
        3,
        2,
        1,
    )


def test_descriptions_join_equal_blocks() -> None:
    dw, elsa = DepthwiseConv(kernel_size=3), Elsa(kernel_size=5, num_heads=2)
    stages = (Stage(dim=8, mixers=(dw, dw)), Stage(dim=8, mixers=(elsa, dw, dw)))

    assert (
        describe(Architecture(img_size=8, patch_size=1, stages=stages))
        == "2x dw3 | elsa5 h2, 2x dw3"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 3}, "patch_size must divide img_size, got patch_size=3 and img_size=16"),
        ({"num_classes": 0}, "num_classes must be an integer >= 1, got 0"),
        ({"img_size": 16.0}, "img_size must be an integer >= 1, got 16.0"),
        ({"family": "resnet"}, "Unknown family 'resnet'. Known: swin"),
        ({"stages": ()}, "at least one stage"),
    ],
)
def test_wrong_sizes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 9}, "num_heads must divide the stage's dim, got num_heads=2 and dim=9"),
        ({"dim": 8.0}, "integer dim >= 1"),
        ({"mixers": ()}, "at least one mixer"),
        ({"mlp_ratio": 0.1}, "hidden width of the MLP"),
        ({"mlp_ratio": float("nan")}, "hidden width of the MLP"),
        ({"mlp_ratio": float("inf")}, "hidden width of the MLP"),
        ({"dim": 2, "mixers": (Elsa(kernel_size=3, num_heads=1),)}, "elsa needs dim >= 3"),
        (
            {"dim": 2, "mixers": (InhomogeneousDepthwiseConv(kernel_size=3, num_groups=1),)},
            "needs dim >= 4, got dim=2",
        ),
    ],
)
def test_wrong_stages_are_refused(changes: dict[str, Any], message: str) -> None:
    settings = {"dim": 8, "mixers": (WindowAttention(window_size=2, num_heads=2),), **changes}

    with pytest.raises(ValueError, match=message):
        Stage(**settings)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.pop("img_size"),
        lambda data: data.update(colour="red"),
        lambda data: data.update(stages=3),
        lambda data: data["stages"][0].pop("dim"),
        lambda data: data["stages"][0].update(dim="8"),
        lambda data: data["stages"][0]["mixers"][0].update(kind="conv"),
    ],
)
def test_damaged_descriptions_are_refused(damage: Any) -> None:
    data = small().to_dict()
    damage(data)

    with pytest.raises(ValueError, match=r"."):
        Architecture.from_dict(data)


def test_the_compact_text_tells_networks_apart_that_differ_in_their_mlp() -> None:
    mixer = DepthwiseConv(kernel_size=3)
    texts = {
        describe(
            Architecture(
                img_size=8,
                patch_size=1,
                stages=(Stage(dim=8, mixers=(mixer,), mlp_ratio=ratio),),
            )
        )
        for ratio in (0.5, 2, 4)
    }
    assert texts == {"dw3 m0.5", "dw3 m2", "dw3"}
