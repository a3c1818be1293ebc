"""Published checkpoints give the same logits in our networks as in the networks they come from."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.volo import VOLO
from torch import Tensor, nn

from searchspace.architecture import Architecture, Stage
from searchspace.mixers import DepthwiseConv, GlobalAttention, OutlookAttention, WindowAttention
from searchspace.presets import preset
from supernet.exchange.published import convert, read_checkpoint
from supernet.exchange.timm_layout import timm_model, timm_state
from supernet.network.supernet import build_subnet

SWIN = Architecture(
    img_size=56,
    patch_size=4,
    num_classes=5,
    stages=tuple(
        Stage(dim=dim, mixers=(WindowAttention(window_size=7, num_heads=heads),) * 2)
        for dim, heads in ((12, 2), (24, 4))
    ),
)
VOLO_TINY = Architecture(
    family="volo",
    img_size=64,
    patch_size=8,
    num_classes=5,
    stem_dim=8,
    stages=(
        Stage(dim=12, mixers=(OutlookAttention(num_heads=2),) * 2, mlp_ratio=3),
        *(Stage(dim=24, mixers=(GlobalAttention(num_heads=3),), mlp_ratio=3) for _ in range(3)),
    ),
)


def randomised(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    for name, buffer in network.named_buffers():
        if "running_var" in name:
            buffer.uniform_(0.5, 2)
        elif "running_mean" in name:
            buffer.normal_(std=0.3)
    return network.eval()


def timms_swin() -> nn.Module:
    return SwinTransformer(
        img_size=56, num_classes=5, embed_dim=12, depths=(2, 2), num_heads=(2, 4), window_size=7
    )


def timms_volo() -> nn.Module:
    return VOLO(
        layers=[2, 1, 1, 1],
        img_size=64,
        num_classes=5,
        embed_dims=[12, 24, 24, 24],
        num_heads=[2, 3, 3, 3],
        mlp_ratio=3.0,
        downsamples=[True, False, False, False],
        outlook_attention=[True, False, False, False],
        post_layers=["ca", "ca"],
        stem_hidden_dim=8,
    )


def microsofts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename timm's Swin to the layout that its authors published."""
    return {
        name.replace("head.fc", "head").replace("layers.1.downsample", "layers.0.downsample"): value
        for name, value in state.items()
    }


@pytest.mark.parametrize(
    ("make", "architecture"), [(timms_swin, SWIN), (timms_volo, VOLO_TINY)], ids=["swin", "volo"]
)
def test_timms_weights_give_timms_logits(make: type[nn.Module], architecture: Architecture) -> None:
    theirs = randomised(make()).double()
    ours = build_subnet(architecture).double().eval()
    ours.load_state_dict(convert(theirs.state_dict(), architecture))
    size = architecture.img_size
    images = torch.randn(3, 3, size, size, dtype=torch.float64)
    torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-10)


@pytest.mark.parametrize("architecture", [SWIN, preset("volo_d1")], ids=["swin", "volo"])
def test_our_weights_in_timms_layout_are_the_inverse_of_reading_timms(
    architecture: Architecture,
) -> None:
    state = randomised(build_subnet(architecture)).state_dict()

    theirs = timm_state(state, architecture)

    timm_model(architecture).build(architecture.num_classes).load_state_dict(theirs)
    again = convert(theirs, architecture)
    for name, value in state.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    "stage",
    [
        Stage(dim=24, mixers=(WindowAttention(window_size=7, num_heads=4, terms="bias"),)),
        Stage(dim=24, mixers=(DepthwiseConv(kernel_size=3),)),
        Stage(dim=24, mixers=(WindowAttention(window_size=7, num_heads=4),), se_reduction=4),
        Stage(dim=36, mixers=(WindowAttention(window_size=7, num_heads=4),)),
    ],
)
def test_what_timms_swin_cannot_be_is_refused(stage: Stage) -> None:
    with pytest.raises(ValueError, match="timm has a class of its own for Swin"):
        timm_model(SWIN.replace(stages=(SWIN.stages[0], stage)))


def test_microsofts_layout_is_read_too() -> None:
    state = randomised(timms_swin()).state_dict()
    expected = convert(state, SWIN)
    found = convert(microsofts(state), SWIN)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("wrapper", ["model", "state_dict", None])
def test_checkpoints_may_be_wrapped(wrapper: str | None, tmp_path: Path) -> None:
    state = {"module.norm.weight": torch.ones(3)}
    path = tmp_path / "checkpoint.pth"
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    assert list(read_checkpoint(path)) == ["norm.weight"]


def test_the_arguments_of_timms_train_py_are_no_hindrance(tmp_path: Path) -> None:
    path = tmp_path / "last.pth.tar"
    arguments = argparse.Namespace(model="swin_tiny_patch4_window7_224", lr=0.1, betas=(0.9, 0.99))
    torch.save({"state_dict": {"norm.weight": torch.ones(3)}, "args": arguments}, path)

    assert list(read_checkpoint(path)) == ["norm.weight"]


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint"):
        read_checkpoint(tmp_path / "missing.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        read_checkpoint(tmp_path / "list.pth")


def test_a_checkpoint_of_another_network_is_refused() -> None:
    state = timms_swin().state_dict()
    wider = SWIN.replace(stages=(SWIN.stages[0], Stage(dim=36, mixers=SWIN.stages[1].mixers)))
    with pytest.raises(ValueError, match=r"has shape .*36.*the checkpoint has"):
        convert(state, wider)
    deeper = SWIN.replace(stages=(*SWIN.stages, SWIN.stages[1]))
    with pytest.raises(ValueError, match="The checkpoint has no 'layers"):
        convert(state, deeper)
