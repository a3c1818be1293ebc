"""Layer-wise learning rates scale our Swin, VOLO and Twins as timm scales its own, one by one."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay
from torch import nn

from searchspace.architecture import Architecture, Stage
from searchspace.mixers import DepthwiseConv, Elsa, GlobalAttention, WindowAttention
from searchspace.presets import preset
from supernet.exchange.published import convert
from supernet.exchange.timm_models import TimmNetwork

DECAY = 0.75


def groups(network: nn.Module, decay: float = DECAY) -> dict[str, tuple[float, float]]:
    """Return the scale and the weight decay of each parameter, as timm's optimisers get them."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    found = param_groups_layer_decay(
        network,
        weight_decay=0.05,
        layer_decay=decay,
        no_weight_decay_list=network.no_weight_decay(),  # type: ignore[operator]
    )
    return {
        names[parameter]: (group["lr_scale"], group["weight_decay"])
        for group in found
        for parameter in group["params"]
    }


def twins_name(ours: str) -> str:
    """Write our name of a part of Twins as timm's; what is in a block has the block's scale."""
    ours = re.sub(r"^merges\.(\d+)", lambda m: f"patch_embeds.{int(m[1]) + 1}", ours)
    ours = re.sub(r"^patch_embed\.", "patch_embeds.0.", ours)
    ours = re.sub(r"^encodings\.(\d+)\.conv", r"pos_block.\1.proj.0", ours)
    block = r"^stages\.(\d+)\.(\d+)\.(?:mixers\.\w+\.|norms\.)"
    if re.match(block, ours):
        return re.sub(block + r".*", r"blocks.\1.\2.attn.proj.weight", ours)
    return re.sub(r"^stages", "blocks", ours)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("swin_t", "swin_tiny_patch4_window7_224"),
        ("swin_s", "swin_small_patch4_window7_224"),
        ("volo_d1", "volo_d1_224"),
        ("volo_d3", "volo_d3_224"),
    ],
)
def test_scales_and_decay_are_those_of_timms_network(ours: str, theirs: str) -> None:
    with torch.device("meta"):
        network = TimmNetwork(preset(ours))
    other = timm.create_model(theirs)
    expected = groups(other)
    state = {
        name: torch.full(value.shape, float(number))
        for number, (name, value) in enumerate(other.state_dict().items())
    }
    names, moved = list(state), convert(state, preset(ours))
    found = groups(network)
    assert set(found) == {name for name, _ in network.named_parameters()}
    for name, (scale, decay) in found.items():
        (number,) = moved[name].unique().tolist()
        wanted = expected[names[int(number)]]
        assert scale == pytest.approx(wanted[0], rel=1e-12), name
        assert decay == wanted[1], name


def test_scales_of_twins_are_those_of_timms_network() -> None:
    with torch.device("meta"):
        network, other = TimmNetwork(preset("twins_svt_s")), timm.create_model("twins_svt_small")
    expected, found = groups(other), groups(network)
    for name, (scale, _) in found.items():
        assert scale == pytest.approx(expected[twins_name(name)][0], rel=1e-12), name
    assert {name for name, (_, decay) in found.items() if "encodings" in name and decay} == set()


def test_the_scale_that_timm_gives_the_last_merging_of_swin() -> None:
    """The value of timm 1.0: two blocks, the norm with the second, and the head behind it."""
    with torch.device("meta"):
        network = TimmNetwork(preset("swin_t"))
    scales = groups(network)
    assert scales["merges.2.reduction.weight"][0] == pytest.approx(0.5625)
    assert scales["stages.3.0.mlp.fc1.weight"][0] == pytest.approx(0.5625)
    assert scales["stages.3.1.mlp.fc1.weight"][0] == scales["norm.weight"][0] == DECAY
    assert scales["head.weight"][0] == 1.0
    assert scales["patch_embed.proj.weight"][0] == pytest.approx(DECAY**13)


@pytest.mark.parametrize("family", ["swin", "twins", "volo"])
@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_scales_rise_through_any_network(family: str, number: int) -> None:
    """Every parameter has a scale of its depth; one step for each block of any mixer."""
    mixers = (GlobalAttention(num_heads=2), DepthwiseConv(kernel_size=3))
    dims = [8, *(16,) * 4][:number] if family == "volo" else [8] * number
    architecture = Architecture(
        family=family,  # type: ignore[arg-type]
        img_size=128,
        patch_size=4,
        stem_dim=4 if family == "volo" else 0,
        stages=tuple(Stage(dim=dim, mixers=mixers) for dim in dims),
    )
    network = TimmNetwork(architecture)
    scales = {name: scale for name, (scale, _) in groups(network).items()}
    blocks = [
        [scale for name, scale in scales.items() if name.startswith(f"stages.{stage}.{block}.")]
        for stage in range(number)
        for block in (0, 1)
    ]
    assert all(len(set(block)) == 1 for block in blocks)
    depths = [block[0] for block in blocks]
    assert depths == sorted(set(depths))
    assert scales["patch_embed.proj.weight"] < depths[0]
    assert scales["head.weight"] == 1.0 > depths[-1]
    for name, scale in scales.items():
        if name.startswith(("merges.", "encodings.")) and "pos_embed" not in name:
            stage = int(name.split(".")[1])
            if name.startswith("encodings"):
                assert scale == depths[2 * stage], name
            else:
                assert depths[2 * stage + 1] < scale <= depths[2 * stage + 2], name


@pytest.mark.parametrize("name", ["swin_t", "volo_d1", "twins_svt_s"])
def test_coarse_groups_are_stages(name: str) -> None:
    with torch.device("meta"):
        network = TimmNetwork(preset(name))
    layers = group_parameters(network, network.group_matcher(coarse=True), reverse=True)
    for index in range(len(network.stages)):
        found = {layer for key, layer in layers.items() if key.startswith(f"stages.{index}.")}
        assert len(found) == 1


def test_found_networks_with_other_mixers_are_grouped_too() -> None:
    mixers = (Elsa(kernel_size=3, num_heads=2), WindowAttention(window_size=2, num_heads=2))
    network = TimmNetwork(
        Architecture(img_size=16, patch_size=4, stages=(Stage(dim=8, mixers=mixers),))
    )
    scales = {name: scale for name, (scale, _) in groups(network).items()}
    assert scales["stages.0.0.mixers.elsa.add"] == pytest.approx(DECAY**2)
    assert scales["stages.0.1.mixers.window_attention.attention.table_bias"] == DECAY
