"""Presets and architectures behave as timm users expect of a timm model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import nn

from searchspace.architecture import Architecture, Stage
from searchspace.cost import count
from searchspace.mixers import DepthwiseConv, GlobalAttention, WindowAttention
from searchspace.presets import PRESETS, preset
from supernet.exchange.timm_models import TimmNetwork
from supernet.network.supernet import build_subnet

WINDOW = WindowAttention(window_size=4, num_heads=2)
SWIN = Architecture(
    img_size=32,
    patch_size=4,
    num_classes=5,
    stages=(
        Stage(dim=8, mixers=(WINDOW, DepthwiseConv(kernel_size=3))),
        Stage(dim=16, mixers=(WINDOW,)),
    ),
)
TWINS = SWIN.replace(family="twins")
ATTENTION = GlobalAttention(num_heads=2)
VOLO = Architecture(
    family="volo",
    img_size=64,
    patch_size=8,
    num_classes=5,
    stem_dim=4,
    stages=tuple(Stage(dim=dim, mixers=(ATTENTION,)) for dim in (8, 16, 16)),
)
FAMILIES = pytest.mark.parametrize("architecture", [SWIN, TWINS, VOLO], ids=lambda a: a.family)


def images(architecture: Architecture, number: int = 2) -> torch.Tensor:
    size = architecture.img_size
    return torch.randn(number, architecture.in_chans, size, size)


def create(architecture: Architecture, **settings: object) -> nn.Module:
    model: nn.Module = timm.create_model("mixer_search", architecture=architecture, **settings)
    return model


@pytest.mark.parametrize("name", PRESETS)
def test_timm_knows_every_preset_and_builds_it_with_its_parameters(name: str) -> None:
    assert timm.is_model(name)
    with torch.device("meta"):
        model = timm.create_model("mixer_search", architecture=name)
    assert sum(p.numel() for p in model.parameters()) == count(preset(name)).params


def test_a_preset_of_our_own_name_is_our_network() -> None:
    with torch.device("meta"):
        model = timm.create_model("elsa_swin_t", num_classes=7, in_chans=1, img_size=256)
    assert isinstance(model, TimmNetwork)
    assert model.architecture == preset("elsa_swin_t").replace(
        num_classes=7, in_chans=1, img_size=256
    )


@FAMILIES
def test_weights_of_a_subnet_load_into_the_timm_model(architecture: Architecture) -> None:
    torch.manual_seed(0)
    subnet = build_subnet(architecture).eval()
    model = create(architecture).eval()
    model.load_state_dict(subnet.state_dict())
    x = images(architecture)
    torch.testing.assert_close(model(x), subnet(x), rtol=0, atol=0)


@FAMILIES
def test_features_are_the_maps_behind_the_stages(architecture: Architecture) -> None:
    torch.manual_seed(0)
    model = create(architecture).eval()
    features = create(architecture, features_only=True).eval()
    features.model.load_state_dict(model.state_dict(), strict=False)
    maps = features(images(architecture))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (stage.dim, size, size)
        for stage, size in zip(architecture.stages, architecture.resolutions, strict=True)
    ]
    assert features.feature_info.channels() == [stage.dim for stage in architecture.stages]
    assert features.feature_info.reduction() == [
        architecture.img_size // size for size in architecture.resolutions
    ]
    x = images(architecture)
    for found, expected in zip(features(x), model.stage_maps(x, architecture), strict=True):
        torch.testing.assert_close(found, expected.permute(0, 3, 1, 2))


@FAMILIES
def test_chosen_features_need_no_later_stages(architecture: Architecture) -> None:
    model = create(architecture, features_only=True, out_indices=(0,))
    assert not any(name.startswith("model.stages.1") for name, _ in model.named_parameters())
    assert len(model(images(architecture))) == 1


@FAMILIES
def test_the_classifier_can_be_replaced_and_removed(architecture: Architecture) -> None:
    model = create(architecture)
    x = images(architecture)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert model.get_classifier().out_features == model.num_classes == 3
    model.reset_classifier(0)
    assert model(x).shape == (2, architecture.stages[-1].dim)
    features = create(architecture, num_classes=0).eval()
    torch.testing.assert_close(
        features(x), features.forward_head(features.forward_features(x), pre_logits=True)
    )


@FAMILIES
def test_checkpointed_gradients_are_the_same(architecture: Architecture) -> None:
    torch.manual_seed(0)
    model = create(architecture).train()
    x = images(architecture)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad(set_to_none=True)
        model(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(model.parameters()))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_drop_path_rises_to_its_rate_over_the_blocks() -> None:
    model = create(SWIN, drop_path_rate=0.2)
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    torch.testing.assert_close(torch.tensor(rates), torch.tensor([0.0, 0.1, 0.2]))


def test_an_architecture_file_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "architecture.json"
    path.write_text(json.dumps({"key": SWIN.key, "architecture": SWIN.to_dict()}))
    assert create(str(path)).architecture == SWIN  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "missing.json"}, "no architecture file missing.json"),
        ({"architecture": "swin"}, "Unknown preset 'swin'"),
        ({"architecture": SWIN, "pretrained": True}, "No pretrained weights"),
        ({"architecture": SWIN, "img_size": 30}, "patch_size must divide img_size"),
    ],
)
def test_what_cannot_be_built_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm.create_model("mixer_search", **settings)
