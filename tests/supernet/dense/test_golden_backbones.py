"""The published detection backbones: all four normed maps of three image sizes, in float64.

The last size is no multiple of the patch, in the second the last map is smaller than the window.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from searchspace.architecture import Architecture, Stage
from searchspace.map_rules import MapRules
from searchspace.mixers import DepthwiseConv, Elsa, Mixer, WindowAttention
from searchspace.space import SearchSpace
from supernet.dense.backbone import Backbone
from supernet.exchange.published import convert
from tests.golden import State, load, network_state, read, state_of, take
from tests.supernet.mixers.test_golden_convs import residual_block, static_filter

RULES = MapRules(keeps_windows=True, pads_convolutions=True)


def network(*mixers: Mixer) -> Architecture:
    stages = (
        Stage(dim=24 * 2**index, mixers=(mixer,) * 2, mlp_ratio=2.0)
        for index, mixer in enumerate(mixers)
    )
    return Architecture(img_size=224, patch_size=4, stages=tuple(stages))


WINDOWS = [WindowAttention(window_size=7, num_heads=2**index) for index in range(4)]
ELSAS = [Elsa(kernel_size=7, num_heads=2**index, group_width=4) for index in range(3)]
NETWORKS = {
    "swin": network(*WINDOWS),
    "elsa": network(*ELSAS, WINDOWS[3]),
    "dwnet": network(*[DepthwiseConv(kernel_size=7)] * 4),
}


def dwnet_block(state: State) -> State:
    return residual_block(state, "depthwise_conv", static_filter)


def backbone_state(name: str, state: State) -> State:
    """Write the published names as ours; a classifier's last layers are none of a backbone's."""
    if name == "dwnet":
        found = network_state(state, lambda _: dwnet_block)
    else:
        norm, head = torch.nn.LayerNorm(192), torch.nn.Linear(192, 1000)
        last = {f"norm.{key}": value for key, value in norm.state_dict().items()}
        last |= {f"head.{key}": value for key, value in head.state_dict().items()}
        found = convert(state | last, NETWORKS[name])
    ours = {f"network.{k}": v for k, v in found.items() if not k.startswith(("norm.", "head."))}
    kind = "batch" if name == "dwnet" else "layer"
    for index in range(4):
        ours |= take(state, f"norm{index}", f"norms.{index}.{kind}")
    return ours


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", range(3))
def test_a_backbone_gives_the_published_maps(name: str, size: int) -> None:
    fixture = read(f"net_det_{name}_a")
    backbone = Backbone(SearchSpace.of(NETWORKS[name]), rules=RULES).double().eval()
    load(backbone, backbone_state(name, state_of(fixture, "p", "b")))
    with torch.no_grad():
        maps: list[Tensor] = backbone(fixture[f"x{size}"].double())
    for stage, found in enumerate(maps):
        torch.testing.assert_close(found, fixture[f"y{size}_{stage}"], rtol=0, atol=1e-10)
