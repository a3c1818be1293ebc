"""Networks of other families are counted as their papers count them."""

from __future__ import annotations

import pytest

from search.cli.timm_networks import measure

# Millions of parameters and billions of MACs as published (ResNet-50, DeiT-S, ConvNeXt-T), to the
# digits that are printed; MACs with norms in the last one's paper.
PUBLISHED = [("resnet50", 25.6, 4.1), ("deit_small_patch16_224", 22.1, 4.6)]


@pytest.mark.parametrize(("name", "params", "macs"), PUBLISHED)
def test_networks_of_timm_have_their_published_costs(name: str, params: float, macs: float) -> None:
    network = measure(name)
    assert round(network.params / 1e6, 1) == params
    assert round(network.macs / 1e9, 1) == macs


def test_macs_of_a_convolutional_network_grow_with_its_area() -> None:
    assert measure("resnet18", 448).macs == pytest.approx(4 * measure("resnet18").macs, rel=1e-3)


def test_unknown_names_are_refused_with_close_ones() -> None:
    with pytest.raises(ValueError, match=r"timm knows no model 'resnet_fifty'.*resnet"):
        measure("resnet_fifty")
