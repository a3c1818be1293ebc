"""The presets against the parameters and MACs measured on the published networks.

The measured MACs count norms too (and the printed digits are rounded), so ours lie up to 2.5 %
below; parameters agree to the last printed digit.
"""

from __future__ import annotations

import pytest

from searchspace.architecture import Architecture
from searchspace.cost import count
from searchspace.mixers import Elsa, NeighborhoodAttention, WindowAttention
from searchspace.presets import PRESETS, preset, preset_about

# Name, measured millions of parameters, measured billions of MACs.
MEASURED = [
    ("swin_t", 28.288, 4.51),
    ("swin_s", 49.606, 8.77),
    ("swin_b", 87.768, 15.47),
    ("swin_l", 196.532, 34.53),
    ("swin_t_384", 28.338, 13.99),
    ("swin_t_384_w7", 28.288, 14.30),
    ("swin_l_384", 196.736, 103.92),
    ("dwconv_t", 24.173, 3.743),
    ("dwconv_b", 74.347, 12.84),
    ("dwconv_t_384", 24.173, 11.00),
    ("id_dwconv_t", 26.244, 4.391),
    ("id_dwconv_b", 80.254, 14.372),
    ("elsa_swin_t", 29.141, 4.789),
    ("elsa_swin_t_no_ghost", 29.000, 4.72),
    ("elsa_swin_s", 52.875, 9.584),
    ("elsa_swin_b", 92.682, 16.701),
    ("elsa_swin_l", 205.015, 36.61),
    ("elsa_swin_l_384", 205.049, 107.5),
    ("swin_t_h1", 29.011, 4.49),
    ("swin_t_h2", 28.638, 4.49),
    ("swin_t_h3", 28.514, 4.49),
    ("swin_t_h4", 28.452, 4.49),
    ("swin_t_h6", 28.389, 4.49),
    ("swin_t_h8", 28.358, 4.49),
    ("swin_t_h16", 28.312, 4.49),
    ("swin_t_h32", 28.288, 4.49),
    ("swin_t_h48", 28.281, 4.49),
    ("swin_t_h96", 28.273, 4.49),
]
# Nobody published or measured these: there is no code, and the papers print no sizes (or round
# them to a million). Their structure is tested instead.
UNMEASURED = {f"net{number}_t" for number in range(1, 8)} | {"net6n_t", "net7n_t", "swin_n_t"}


@pytest.mark.parametrize(("name", "params", "macs"), MEASURED)
def test_presets_have_the_published_networks_parameters_and_macs(
    name: str, params: float, macs: float
) -> None:
    cost = count(preset(name))

    assert round(cost.params / 1e6, 3) == params
    assert -0.025 <= cost.macs / 1e9 / macs - 1 <= 0.005


def test_every_preset_is_measured_or_known_not_to_be() -> None:
    assert {name for name, _, _ in MEASURED} | UNMEASURED == set(PRESETS)


def test_sliding_presets_end_in_windows() -> None:
    for name in ("swin_n_t", "net6n_t", "net7n_t"):
        *sliding, last = preset(name).stages
        assert {type(mixer) for stage in sliding for mixer in stage.mixers} == {
            NeighborhoodAttention
        }
        assert {type(mixer) for mixer in last.mixers} == {WindowAttention}


def test_windows_and_neighbourhoods_of_the_nets_have_the_same_terms() -> None:
    for number, terms in ((6, "qr+rk+bias"), (7, "qk+qr+rk+bias")):
        for name in (f"net{number}_t", f"net{number}n_t"):
            mixers = [mixer for stage in preset(name).stages for mixer in stage.mixers]
            assert {getattr(mixer, "terms", None) for mixer in mixers} == {terms}


def test_heads_study_contains_swin() -> None:
    assert preset("swin_t_h32") == preset("swin_t")


def test_ghost_head_is_the_only_difference_of_the_ablation() -> None:
    with_ghost, without = preset("elsa_swin_t"), preset("elsa_swin_t_no_ghost")
    difference = count(with_ghost).params - count(without).params

    # One matrix of C x 7 x 7 for each of the ten ELSA blocks.
    assert difference == 49 * (2 * 96 + 2 * 192 + 6 * 384)
    assert {
        mixer.gamma for stage in without.stages for mixer in stage.mixers if isinstance(mixer, Elsa)
    } == {0.0}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_described_and_survive_a_round_trip(name: str) -> None:
    assert preset_about(name)
    assert Architecture.from_dict(preset(name).to_dict()) == preset(name)


def test_unknown_presets_are_refused_with_close_names() -> None:
    with pytest.raises(ValueError, match=r"'elsa_swin'.*elsa_swin_t.*`search presets`"):
        preset("elsa_swin")
