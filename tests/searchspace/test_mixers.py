"""Laws of the mixers as values: canonical forms, round trips and refusals."""

from __future__ import annotations

import json
from itertools import permutations

import pytest
from hypothesis import given

from searchspace.mixer_text import describe_mixer
from searchspace.mixers import (
    MIXER_KINDS,
    TERMS,
    DepthwiseConv,
    Elsa,
    Mixer,
    NeighborhoodAttention,
    Setting,
    WindowAttention,
    mixer_from_dict,
    mixer_settings,
    mixer_to_dict,
)
from tests.strategies import mixers


@given(mixers(12))
def test_mixer_survives_a_json_round_trip(mixer: Mixer) -> None:
    assert mixer_from_dict(json.loads(json.dumps(mixer_to_dict(mixer)))) == mixer


def test_order_of_terms_does_not_matter() -> None:
    spellings = {
        WindowAttention(window_size=7, num_heads=3, terms="+".join(order))
        for order in permutations(TERMS)
    }

    assert spellings == {WindowAttention(window_size=7, num_heads=3, terms="qk+qr+rk+static+bias")}


def test_spelling_of_numbers_does_not_matter() -> None:
    assert mixer_to_dict(Elsa(kernel_size=3, num_heads=1, lam=-0.0, gamma=1)) == mixer_to_dict(
        Elsa(kernel_size=3, num_heads=1, lam=0, gamma=1.0)
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "conv"}, "Unknown mixer 'conv'. Known mixers: window_attention"),
        ({"kind": "depthwise_conv", "window_size": 7}, "no setting 'window_size'.*kernel_size"),
        ({"kind": "depthwise_conv"}, "needs the settings kernel_size"),
        (
            {"kind": "outlook_attention", "num_heads": 1, "kernel_size": 4},
            "must be odd.*got kernel_size=4",
        ),
        ({"kind": "depthwise_conv", "kernel_size": True}, "integer >= 1, got True"),
        ({"kind": "depthwise_conv", "kernel_size": 3.0}, "integer >= 1, got 3.0"),
        ({"kind": "window_attention", "window_size": 0, "num_heads": 1}, "window_size.*got 0"),
        ({"kind": "elsa", "kernel_size": 3, "num_heads": 1, "lam": -1}, "lam.*>= 0, got -1"),
        ({"kind": "elsa", "kernel_size": 3, "num_heads": 1, "lam": float("nan")}, "lam.*nan"),
        ({"kind": "elsa", "kernel_size": 3, "num_heads": 1, "gamma": float("inf")}, "gamma.*inf"),
    ],
)
def test_wrong_mixers_are_refused(data: dict[str, Setting], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixer_from_dict(data)


@pytest.mark.parametrize("terms", ["", "qk+", "kq", "qk,bias"])
def test_wrong_terms_are_refused(terms: str) -> None:
    with pytest.raises(ValueError, match="sum of qk, qr, rk, static, bias"):
        NeighborhoodAttention(kernel_size=3, num_heads=1, terms=terms)


def test_wrong_norms_are_refused() -> None:
    settings: dict[str, Setting] = {"kernel_size": 3, "num_heads": 1, "norm": "batch"}

    with pytest.raises(ValueError, match="softmax, filter_norm, identity, got 'batch'"):
        mixer_from_dict({"kind": "neighborhood_attention", **settings})


@pytest.mark.parametrize("kind", MIXER_KINDS)
def test_every_kind_is_registered_under_its_own_name(kind: str) -> None:
    assert MIXER_KINDS[kind].kind == kind
    assert mixer_settings(kind) or kind == "no_mixer"  # which has none to set


def test_descriptions_leave_defaults_out() -> None:
    assert describe_mixer(DepthwiseConv(kernel_size=7)) == "dw7"
    assert describe_mixer(WindowAttention(window_size=7, num_heads=3)) == "win7 h3"
    assert (
        describe_mixer(NeighborhoodAttention(kernel_size=5, num_heads=12, terms="rk+qr+bias"))
        == "nbhd5 h12 qr+rk+b"
    )
