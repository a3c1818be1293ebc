"""Learned kernel transforms: centres at first, exact extraction, and only what is used learns."""

from __future__ import annotations

import random

import pytest
import torch

from searchspace.space import MixerChoices, SearchSpace, StageChoices
from searchspace.spec_file import load_space
from supernet.mixers.kernel_transforms import KernelTransforms
from supernet.mixers.sharing import centre_taps
from supernet.mixers.weight_sharing import WeightSharing
from supernet.network.supernet import Supernet, build_subnet, extract, extraction_error
from supernet.shared_weights.usage import UsedWeights
from tests.supernet.network.test_extraction import randomise

TRANSFORMED = WeightSharing(kernels="transformed")
OPTIONS = {
    "depthwise_conv": {
        "kernel_size": (3, 4, 7),
        "channels_per_filter": (1, 2),
        "shared_positions": (True, False),
    }
}


def space() -> SearchSpace:
    choices = (MixerChoices(kinds=OPTIONS),)
    stage = StageChoices(dims=(6,), depths=(2,), mlp_ratios=(1,), choices=choices)
    return SearchSpace(
        name="kernels", img_size=8, patch_size=2, num_classes=3, stem_dim=0, stages=(stage,)
    )


@pytest.mark.parametrize("size", [7, 4, 3])
def test_they_begin_as_centres_and_then_multiply_one_after_another(size: int) -> None:
    torch.manual_seed(0)
    transforms = KernelTransforms([3, 7, 4]).double()
    table = torch.randn(49, 5, dtype=torch.float64)
    assert torch.equal(transforms(table, size), centre_taps(table, size))
    for matrix in transforms.corrections.values():
        torch.nn.init.normal_(matrix)
    expected = table
    for smaller in (other for other in (4, 3) if other >= size):
        matrix = torch.eye(smaller**2, dtype=torch.float64) + transforms.corrections[str(smaller)]
        expected = matrix @ centre_taps(expected, smaller)
    torch.testing.assert_close(transforms(table, size), expected)


def test_extraction_is_exact_and_leaves_an_ordinary_network() -> None:
    torch.manual_seed(0)
    for searched in (space(), load_space("micro_all")):
        supernet = randomise(Supernet(searched, sharing=TRANSFORMED))
        assert any("corrections" in name for name in supernet.state_dict())
        images = torch.randn(2, 3, searched.img_size, searched.img_size)
        rng = random.Random(1)
        for _ in range(20):
            architecture = searched.sample(rng)
            own = extract(supernet, architecture).state_dict()
            assert own.keys() == build_subnet(architecture).state_dict().keys()
            for name, value in supernet.select(architecture).items():
                assert torch.equal(own[name], value)
            # Products of six channels are rounded by where in memory they begin.
            assert extraction_error(supernet, architecture, images) <= 1e-6


def test_a_step_uses_the_transforms_that_its_kernels_went_through() -> None:
    searched = space()
    supernet = Supernet(searched, sharing=TRANSFORMED)
    names = {parameter: name for name, parameter in supernet.named_parameters()}
    used_by = UsedWeights(supernet)
    rng = random.Random(0)
    sizes = set()
    for _ in range(30):
        architecture = searched.sample(rng)
        (stage,) = architecture.stages
        used = {names[parameter] for parameter in used_by([architecture])}
        for block, mixer in enumerate(stage.mixers):
            prefix = f"stages.0.{block}.mixers.depthwise_conv.transforms.corrections."
            found = {name.removeprefix(prefix) for name in used if name.startswith(prefix)}
            assert found == {str(size) for size in (3, 4) if size >= mixer.kernel_size}
            sizes.add(mixer.kernel_size)
    assert sizes == {3, 4, 7}


def test_an_unknown_value_is_refused() -> None:
    with pytest.raises(ValueError, match="centred or transformed, got 'round'"):
        WeightSharing(kernels="round")
