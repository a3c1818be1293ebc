"""What timm's tests of models (its tests/test_models.py) ask of each model holds for ours.

The limits on sizes are timm's, the checks are written anew. Presets and found networks of every
family are tried; all presets in the slow run. TorchScript is not among the checks: our
forward passes take the architecture's values, which it cannot compile.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import resolve_data_config
from timm.layers import get_channel_dim, get_spatial_dim
from timm.models import FeatureInfo, PretrainedCfg, save_for_hf
from timm.models._features_fx import get_notrace_functions, get_notrace_modules
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from searchspace.architecture import Architecture, Stage
from searchspace.mixers import (
    DepthwiseConv,
    Elsa,
    GlobalAttention,
    LocalMlp,
    Mixer,
    OutlookAttention,
    WindowAttention,
)
from searchspace.presets import PRESETS, preset
from supernet.exchange.timm_models import TimmNetwork
from supernet.network.supernet import build_subnet
from tests.attacks.test_modules_are_called import MIXERS, network_of

MIXED = (
    WindowAttention(window_size=4, num_heads=2),
    DepthwiseConv(kernel_size=3),
    Elsa(kernel_size=3, num_heads=2),
)
FOUND = {
    "swin": Architecture(
        img_size=48,
        patch_size=4,
        num_classes=5,
        stages=tuple(Stage(dim=dim, mixers=MIXED, mlp_ratio=2) for dim in (8, 16, 8)),
    ),
    "twins": Architecture(
        family="twins",
        img_size=48,
        patch_size=4,
        num_classes=5,
        stages=tuple(
            Stage(dim=dim, mixers=(MIXED[0], GlobalAttention(num_heads=2, sr_ratio=ratio)))
            for dim, ratio in ((8, 4), (16, 2), (16, 1))
        ),
    ),
    "volo": Architecture(
        family="volo",
        img_size=64,
        patch_size=8,
        num_classes=5,
        stem_dim=4,
        stages=tuple(
            Stage(dim=dim, mixers=(mixer,))
            for dim, mixer in (
                (8, OutlookAttention(num_heads=2)),
                (16, GlobalAttention(num_heads=2)),
                (16, GlobalAttention(num_heads=2)),
            )
        ),
    ),
    "fixed": Architecture(
        img_size=32,
        patch_size=4,
        num_classes=5,
        stages=tuple(
            Stage(dim=dim, mixers=(LocalMlp(window_size=4, num_heads=2, shared_positions=False),))
            for dim in (8, 16, 16)
        ),
    ),
}
SOME = ("swin_t", "elsa_volo_d1", "twins_svt_s", "dwconv_t_c32_nosp", "ddf_swin_t")
OURS = [name for name in PRESETS if timm.is_model(name) and not name.startswith("volo_")]
MODELS = pytest.mark.parametrize(
    "model",
    [
        *FOUND,
        *SOME,
        *(pytest.param(name, marks=pytest.mark.slow) for name in OURS if name not in SOME),
    ],
)
pytestmark = pytest.mark.timeout(600)


def create(model: str, **settings: Any) -> Any:
    if model in FOUND:
        return timm.create_model("mixer_search", architecture=FOUND[model], **settings)
    return timm.create_model(model, **settings)


def images(config: dict[str, Any], number: int, target: int) -> Tensor:
    """Choose the size as timm's tests do: none larger than asked, where the network is free."""
    size: Sequence[int] = config["input_size"]
    if not config.get("fixed_input_size") and max(size) > target:
        size = config.get("min_input_size") or [min(side, target) for side in size]
    return torch.randn(number, *size)


@MODELS
def test_one_image_is_classified_with_and_without_checkpointing(model: str) -> None:
    network = create(model).eval()
    x = images(network.default_cfg, 1, 384)
    with torch.no_grad():
        logits = network(x)
        assert logits.shape == (1, network.num_classes)
        assert logits.isfinite().all()
        network.set_grad_checkpointing()
        torch.testing.assert_close(network(x), logits)


@MODELS
def test_a_symbolic_trace_computes_what_the_network_does(model: str) -> None:
    """As timm's tests trace by torch.fx, forward and backward."""
    network = create(model).eval()
    leaves = {
        "leaf_modules": get_notrace_modules(),
        "autowrap_functions": get_notrace_functions(),
    }
    nodes = [names[-1] for names in get_graph_node_names(network, tracer_kwargs=leaves)]
    traced = create_feature_extractor(
        network, train_return_nodes=nodes[:1], eval_return_nodes=nodes[1:], tracer_kwargs=leaves
    ).eval()
    x = images(network.pretrained_cfg, 2, 64)
    found, expected = next(iter(traced(x).values())), network(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    found.mean().backward()
    assert all(p.grad is not None for p in traced.parameters())


@MODELS
def test_every_parameter_learns_with_other_classes(model: str) -> None:
    network = create(model, num_classes=42).train()
    logits = network(images(network.default_cfg, 2, 128))
    assert logits.shape == (2, 42)
    assert logits.isfinite().all()
    logits.mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


@MODELS
def test_shapes_are_those_of_the_default_configuration(model: str) -> None:
    network = create(model).eval()
    config, state = network.default_cfg, network.state_dict()
    width, rows = network.num_features, config["pool_size"]
    axis, spatial = get_channel_dim(network.output_fmt), get_spatial_dim(network.output_fmt)
    x = torch.randn(1, *config["input_size"])
    with torch.no_grad():
        features = network.forward_features(x)
        assert (features.shape[spatial[0]], features.shape[spatial[1]]) == rows
        assert features.shape[axis] == features.shape[network.feature_dim] == width > 0
        pooled = network.forward_head(features, pre_logits=True)
        assert pooled.shape == (1, network.head_hidden_size)
        network.reset_classifier(0)
        assert network.num_classes == 0
        torch.testing.assert_close(network(x), pooled)
        network.reset_classifier(0, "")
        for unpooled in (network, create(model, num_classes=0, global_pool="").eval()):
            assert unpooled(x).shape == features.shape
        assert create(model, num_classes=0).eval()(x).shape == pooled.shape
    classifiers, first = config["classifier"], config["first_conv"]
    for name in (classifiers,) if isinstance(classifiers, str) else classifiers:
        assert state[f"{name}.weight"].shape == (config["num_classes"], width)
    assert state[f"{first}.weight"].shape[1] == config["input_size"][0]


@MODELS
@pytest.mark.parametrize("kind", [None, "getter", "hook"])
def test_features_have_the_channels_and_sizes_that_are_announced(
    model: str, kind: str | None
) -> None:
    network = create(model, features_only=True, **({"feature_cls": kind} if kind else {})).eval()
    channels, reductions = network.feature_info.channels(), network.feature_info.reduction()
    assert len(channels) >= 3
    x = images(network.default_cfg, 1, 96)
    axis, spatial = get_channel_dim(network.output_fmt), get_spatial_dim(network.output_fmt)
    with torch.no_grad():
        maps = network(x)
    assert len(maps) == len(channels)
    for found, number, reduction in zip(maps, channels, reductions, strict=True):
        assert found.shape[axis] == number
        for side in spatial:
            assert found.shape[side] <= math.ceil(x.shape[-1] / reduction) + 1
        assert found.isfinite().all()


@MODELS
def test_intermediates_end_in_the_features(model: str) -> None:
    network = create(model).eval()
    info = FeatureInfo(network.feature_info, len(network.feature_info))
    assert len(info.channels()) >= 3
    x = images(network.default_cfg, 1, 96)
    with torch.no_grad():
        last, maps = network.forward_intermediates(x, output_fmt="NCHW")
        torch.testing.assert_close(last, network.forward_features(x))
        network.set_grad_checkpointing()
        torch.testing.assert_close(network.forward_intermediates(x)[0], last)
    assert [found.shape[1] for found in maps] == info.channels()


@pytest.mark.parametrize("name", OURS)
def test_timm_knows_the_configuration_of_every_preset(name: str) -> None:
    architecture = preset(name)
    size = (architecture.in_chans, architecture.img_size, architecture.img_size)
    assert timm.get_pretrained_cfg_value(name, "input_size") == size
    assert timm.get_pretrained_cfg_value(name, "pool_size") == (architecture.resolutions[-1],) * 2
    with torch.device("meta"):
        network = timm.create_model(name)
    assert network.default_cfg["architecture"] == name
    assert network.default_cfg["input_size"] == size
    names = set(network.state_dict())
    assert f"{network.default_cfg['first_conv']}.weight" in names
    assert resolve_data_config(model=network)["input_size"] == size


def test_the_lists_of_timm_have_every_preset() -> None:
    assert set(OURS) <= set(timm.list_models(module="registration"))
    assert set(OURS) <= set(timm.list_models(name_matches_cfg=True))
    assert set(OURS) <= set(timm.list_models(include_tags=True))
    assert not set(OURS) & set(timm.list_models(pretrained=True))
    assert "mixer_search" in timm.list_models()


def test_a_network_without_an_architecture_is_refused_with_what_to_write() -> None:
    with pytest.raises(ValueError, match=r"mixer_search needs an architecture.*architecture\.json"):
        timm.create_model("mixer_search")


def test_a_tag_that_does_not_exist_is_refused() -> None:
    with pytest.raises(RuntimeError, match="elsa_swin_t"):
        timm.create_model("elsa_swin_t.in1k")


@pytest.mark.parametrize("model", FOUND)
def test_parts_of_a_configuration_change_those_parts_alone(model: str) -> None:
    own = create(model).default_cfg
    for settings in (
        {"pretrained_cfg_overlay": {"crop_pct": 0.5, "mean": (0.1, 0.2, 0.3)}},
        {"pretrained_cfg": {"crop_pct": 0.5, "mean": (0.1, 0.2, 0.3)}},
    ):
        config = create(model, **settings).default_cfg
        assert (config["crop_pct"], config["mean"]) == (0.5, (0.1, 0.2, 0.3))
        assert {k: v for k, v in config.items() if own.get(k) != v}.keys() == {"crop_pct", "mean"}
    whole = PretrainedCfg(input_size=(3, 96, 96), num_classes=5)
    assert create(model, pretrained_cfg=whole).default_cfg["input_size"] == (3, 96, 96)
    # As timm's train.py does where no configuration is registered.
    unset = PretrainedCfg().to_dict()
    assert create(model, pretrained_cfg=unset).num_classes == FOUND[model].num_classes


@pytest.mark.parametrize("model", FOUND)
def test_weights_load_from_a_file_with_other_classes_and_channels(
    model: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = create(model).eval()
    file = tmp_path / "weights.safetensors"
    save_file(network.state_dict(), file)
    for settings in ({}, {"pretrained_cfg_overlay": {"file": str(file)}}):
        given = settings or {"pretrained_cfg": {"file": str(file)}}
        other = create(model, pretrained=True, **given).eval()
        x = images(network.default_cfg, 2, 64)
        torch.testing.assert_close(other(x), network(x), rtol=0, atol=0)
    overlay = {"file": str(file)}
    gray = create(
        model, pretrained=True, in_chans=1, num_classes=3, pretrained_cfg_overlay=overlay
    ).eval()
    assert gray(x[:, :1]).shape == (2, 3)
    torch.testing.assert_close(gray.norm.weight, network.norm.weight)
    pooled = create(model, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay).eval()
    expected = network.forward_head(network.forward_features(x), pre_logits=True)
    torch.testing.assert_close(pooled(x), expected)
    features = create(model, pretrained=True, features_only=True, pretrained_cfg_overlay=overlay)
    torch.testing.assert_close(features.eval()(x)[0], network.forward_intermediates(x)[1][0])


@pytest.mark.parametrize("model", [*FOUND, "swin_n_t"])
def test_what_timm_saves_for_its_hub_it_loads_again(model: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = create(model, num_classes=3, drop_path_rate=0.1).eval()
    save_for_hf(network, tmp_path, safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["num_classes"] == 3
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert isinstance(loaded, TimmNetwork)
    x = images(network.default_cfg, 1, 64)
    torch.testing.assert_close(loaded(x), network(x), rtol=0, atol=0)


@pytest.mark.parametrize("model", ["swin", "twins", "volo"])
def test_a_network_of_another_size_is_the_network_built_for_that_size(model: str) -> None:
    torch.manual_seed(0)
    network = create(model, drop_path_rate=0.3).eval()
    before = network.state_dict()
    network.set_input_size((96, 96))
    assert network.architecture == FOUND[model].replace(img_size=96)
    assert timm.models.get_model_input_config(network)["input_size"] == (3, 96, 96)
    built = create(model, img_size=96, drop_path_rate=0.3).eval()
    assert {n: v.shape for n, v in network.state_dict().items()} == {
        n: v.shape for n, v in built.state_dict().items()
    }
    for name, value in network.state_dict().items():
        if value.shape == before[name].shape:
            torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    built.load_state_dict(network.state_dict())
    x = torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(network(x), built(x), rtol=0, atol=0)


def test_networks_with_weights_of_positions_say_that_their_size_is_fixed() -> None:
    network = create("fixed")
    assert network.default_cfg["fixed_input_size"]
    with pytest.raises(ValueError, match="map of 16 x 16"):
        network(torch.randn(1, 3, 64, 64))
    with pytest.raises(ValueError, match="dynamic_img_size"):
        create("fixed", dynamic_img_size=True)
    larger = create("fixed", img_size=64)
    assert larger(torch.randn(1, 3, 64, 64)).shape == (1, 5)
    assert create("swin", dynamic_img_size=True)(torch.randn(1, 3, 40, 56)).shape == (1, 5)


@pytest.mark.parametrize(("model", "least"), [("twins", 16), ("volo", 16)])
def test_the_smallest_image_that_is_announced_is_the_smallest(model: str, least: int) -> None:
    """A reduced map needs a token: 16 pixels are 4 x 4 tokens, reduced by 4 (or halved once)."""
    network = create(model).eval()
    assert network.default_cfg["min_input_size"] == (3, least, least)
    assert network(torch.randn(1, 3, least, least)).isfinite().all()
    with pytest.raises((ValueError, RuntimeError)):
        network(torch.randn(1, 3, least // 2, least // 2))


@pytest.mark.parametrize("model", ["swin", "volo"])
def test_other_poolings_are_means_maxima_or_the_class_token(model: str) -> None:
    x = images(FOUND[model].to_dict() and create(model).default_cfg, 2, 64)
    network = create(model, num_classes=0).eval()
    if model == "swin":
        features = network.forward_features(x)
        expected = {"avg": features.mean((1, 2)), "max": features.amax((1, 2))}
    else:
        tokens = network.features(x, network.architecture)
        expected = {"token": tokens[:, 0], "avg": tokens[:, 1:].mean(1)}
    for pool, wanted in expected.items():
        network.reset_classifier(0, pool)
        torch.testing.assert_close(network(x), wanted)
    with pytest.raises(ValueError, match="got 'catavgmax'"):
        network.reset_classifier(0, "catavgmax")
    with pytest.raises(ValueError, match="reads pooled features"):
        create(model, global_pool="")
    network.reset_classifier(0, "")
    with pytest.raises(ValueError, match="reads pooled features"):
        network.reset_classifier(3)
    network.reset_classifier(3, "avg")
    assert network(x).shape == (2, 3)
    assert isinstance(network.get_classifier(), nn.Linear)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
@pytest.mark.parametrize("formulation", ["naive", "torch", "auto"])
@pytest.mark.parametrize("mixer", MIXERS, ids=[f"{m.short}-{i}" for i, m in enumerate(MIXERS)])
def test_every_mixer_can_be_traced(
    mixer: Mixer, formulation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With torch.jit.trace, as the older ONNX exporter does: sizes are tensors there."""
    monkeypatch.setenv("MIXER_KERNELS", formulation)
    network = build_subnet(network_of("swin", mixer)).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        traced = torch.jit.trace(network, x, check_trace=False)
        torch.testing.assert_close(traced(x), network(x))
