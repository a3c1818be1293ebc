"""Shared projections: one weight for all mixers of a block, and the same standalone networks."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from searchspace.architecture import Architecture
from searchspace.mixers import CONV_KINDS, MIXER_KINDS
from searchspace.space import MixerChoices, SearchSpace, StageChoices
from searchspace.spec_file import load_space
from supernet.mixers.projections import LAYERS
from supernet.mixers.weight_sharing import WeightSharing
from supernet.network.supernet import Supernet, build_subnet, extraction_error
from supernet.shared_weights.checkpoint import load_supernet, load_training, save_supernet
from tests.supernet.network.test_extraction import randomise

SHARED = WeightSharing(projections="shared")
DIM = 8
KINDS: dict[str, dict[str, tuple]] = {
    "window_attention": {"window_size": (2,), "num_heads": (2,), "terms": ("qk+bias", "rk")},
    # No term needs queries or keys: there are only values.
    "neighborhood_attention": {"kernel_size": (3,), "num_heads": (2,), "terms": ("bias",)},
    "local_mlp": {"window_size": (2,), "num_heads": (2,)},
    "depthwise_conv": {"kernel_size": (3,)},
    "dynamic_depthwise_conv": {"kernel_size": (3,)},
    "inhomogeneous_depthwise_conv": {"kernel_size": (3,), "num_groups": (2,)},
    "involution": {"kernel_size": (3,), "group_channels": (4,), "reduction": (4,)},
    "decoupled_dynamic_filter": {"kernel_size": (3,), "num_heads": (2,), "se_ratio": (0.25,)},
    "outlook_attention": {"kernel_size": (3,), "num_heads": (2,), "stride": (1,)},
    "elsa": {"kernel_size": (3,), "num_heads": (2,), "v_dim": (4, 0)},
    "global_attention": {"num_heads": (2,), "sr_ratio": (1, 2)},
}
# Those that project: all but the one that mixes nothing.
PROJECTING = set(MIXER_KINDS) - {"no_mixer"}


def space_of(kinds: dict[str, dict[str, tuple]], family: str = "swin") -> SearchSpace:
    stage = StageChoices(
        dims=(DIM,), depths=(1,), mlp_ratios=(1,), choices=(MixerChoices(kinds=kinds),)
    )
    return SearchSpace(
        name="kinds",
        family=family,
        img_size=8,
        patch_size=2,
        num_classes=3,
        stem_dim=4 if family == "volo" else 0,
        stages=(stage,),
    )


def networks_of(space: SearchSpace) -> list[Architecture]:
    """Sample until every mixer kind is there several times."""
    rng = random.Random(0)
    return [space.sample(rng) for _ in range(12 * len(MIXER_KINDS))]


def projections_of(supernet: Supernet, architecture: Architecture) -> dict[str, Tensor]:
    """Read the two projections of the first block as its own network has them."""
    (mixer,) = architecture.stages[0].mixers
    state = supernet.select(architecture)
    enter, leave = (f"stages.0.0.mixers.{mixer.kind}.{name}" for name in LAYERS[mixer.kind])
    values = getattr(mixer, "v_dim", 0) or DIM
    found = {}
    for part in ("weight", "bias"):
        for side, name in (("value", enter), ("output", leave)):
            if f"{name}.{part}" in state:
                tensor = state[f"{name}.{part}"]
                found[f"{side}.{part}"] = tensor[-values:] if side == "value" else tensor
    return found


def test_all_kinds_have_the_same_two_projections() -> None:
    assert set(KINDS) == PROJECTING
    space = space_of(KINDS)
    supernet = randomise(Supernet(space, sharing=SHARED))
    networks = networks_of(space)
    expected: dict[str, Tensor] = {}
    for architecture in networks:
        if architecture.stages[0].mixers[0].kind == "local_mlp":
            expected = projections_of(supernet, architecture)
    for architecture in networks:
        (mixer,) = architecture.stages[0].mixers
        values = getattr(mixer, "v_dim", 0) or DIM
        found = projections_of(supernet, architecture)
        assert torch.equal(found["value.weight"], expected["value.weight"][:values])
        assert torch.equal(found["output.weight"], expected["output.weight"][:, :values])
        assert ("value.bias" in found) == ("output.bias" in found) == (mixer.kind not in CONV_KINDS)
        if "value.bias" in found:
            assert torch.equal(found["value.bias"], expected["value.bias"][:values])
            assert torch.equal(found["output.bias"], expected["output.bias"])
    kinds = {architecture.stages[0].mixers[0].kind for architecture in networks}
    assert kinds == PROJECTING


def test_what_is_shared_is_there_once() -> None:
    """Each kind but one loses two weights; each attention kind but one two biases as well."""
    space = space_of({**KINDS, "elsa": {"kernel_size": (3,), "num_heads": (2,)}})
    own, shared = (
        sum(p.numel() for p in Supernet(space, sharing=sharing).parameters())
        for sharing in (None, SHARED)
    )
    weights = 2 * DIM**2 * (len(PROJECTING) - 1)
    biases = 2 * DIM * (len(PROJECTING - CONV_KINDS) - 1)
    assert own - shared == weights + biases


@pytest.mark.parametrize("family", ["swin", "volo"])  # volo's values have no bias
def test_extraction_is_exact(family: str) -> None:
    """To the bit, except where unshared projections differ by float rounding as well.

    These are outlook attention and all networks of the family ``volo``.
    """
    spaces = [load_space("micro_all")] if family == "swin" else []
    for space in (space_of(KINDS, family), *spaces):
        torch.manual_seed(0)
        supernet = randomise(Supernet(space, sharing=SHARED))
        images = torch.randn(2, 3, space.img_size, space.img_size)
        rng = random.Random(1)
        for _ in range(30):
            architecture = space.sample(rng)
            kinds = {mixer.kind for stage in architecture.stages for mixer in stage.mixers}
            is_rounded = family == "volo" or "outlook_attention" in kinds
            tolerance = 1e-5 if is_rounded else 0
            assert extraction_error(supernet, architecture, images) <= tolerance


def test_elsa_with_more_values_than_channels_keeps_its_projections() -> None:
    space = space_of({**KINDS, "elsa": {"kernel_size": (3,), "num_heads": (2,), "v_dim": (16, 4)}})
    supernet = randomise(Supernet(space, sharing=SHARED))
    names = {name for name, _ in supernet.named_parameters() if ".elsa.in_proj" in name}
    assert names == {f"stages.0.0.mixers.elsa.in_proj.{part}" for part in ("weight", "bias")}


def test_a_block_of_one_kind_has_the_names_of_its_own_network() -> None:
    space = space_of({"global_attention": {"num_heads": (1, 2), "sr_ratio": (2,)}})
    names = Supernet(space, sharing=SHARED).state_dict().keys()
    assert names == build_subnet(space.first()).state_dict().keys()


def test_copies_and_conversions_stay_shared() -> None:
    supernet = Supernet(space_of(KINDS), sharing=SHARED)
    number = len(list(supernet.parameters()))
    for other in (copy.deepcopy(supernet), copy.deepcopy(supernet).double()):
        assert len(list(other.parameters())) == number
        assert not set(other.parameters()) & set(supernet.parameters())


def test_a_checkpoint_holds_shared_weights_once_and_says_how_they_are_shared(
    tmp_path: Path,
) -> None:
    space = space_of(KINDS)
    supernet = randomise(Supernet(space, sharing=SHARED))
    save_supernet(tmp_path, step=3, supernet=supernet, averaged=None, training={})
    stored = load_file(tmp_path / "weights-3.safetensors")
    unique = [*supernet.parameters(), *supernet.buffers()]
    assert sum(v.numel() for v in stored.values()) == sum(v.numel() for v in unique)
    loaded = load_supernet(tmp_path, space)
    assert loaded.sharing == SHARED
    expected = supernet.state_dict()
    assert all(torch.equal(v, expected[name]) for name, v in loaded.state_dict().items())
    cpu = torch.device("cpu")
    assert load_training(tmp_path, Supernet(space, sharing=SHARED), None, device=cpu) == {}
    with pytest.raises(ValueError, match=r"'shared'.*cannot go on with.*'unshared'"):
        load_training(tmp_path, Supernet(space), None, device=cpu)


def test_an_unknown_value_is_refused() -> None:
    with pytest.raises(ValueError, match="unshared or shared, got 'some'"):
        WeightSharing(projections="some")
