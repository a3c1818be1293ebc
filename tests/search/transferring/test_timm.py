"""Networks of timm as backbones: trained, judged and read again like ours."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from search.transferring.evaluate import evaluate_transfer
from search.transferring.network import TransferOptions, transfer
from search.transferring.queue import load_weights
from search.transferring.target import check_target, count_target, transfer_target
from supernet.data.dense import open_dense_data
from supernet.dense.timm_backbone import TimmBackbone, TimmTarget
from tests.tiny_dense import recipe, write_data

pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize(
    ("name", "strides"),
    [("resnet10t", [4, 8, 16, 32]), ("swin_tiny_patch4_window7_224", [4, 8, 16, 32])],
)
def test_maps_halve_at_any_size(name: str, strides: list[int]) -> None:
    with torch.device("meta"):
        backbone = TimmBackbone(TimmTarget(name)).eval()
        maps = backbone(torch.empty(1, 3, 100, 150))
    assert backbone.strides(None) == strides
    # As many positions as begin in the image, though it is padded to 128 x 160.
    assert [tuple(one.shape[1:]) for one in maps] == [
        (dim, math.ceil(100 / stride), math.ceil(150 / stride))
        for dim, stride in zip(backbone.dims, strides, strict=True)
    ]


def test_a_segmenter_predicts_every_pixel_where_it_is() -> None:
    """What an image is padded by, to whole positions, does not squeeze its classes."""
    torch.manual_seed(0)
    backbone = TimmBackbone(TimmTarget("test_resnet")).eval()
    images = torch.randn(1, 3, 70, 90)
    whole = backbone(torch.nn.functional.pad(images, (0, 6, 0, 26)))
    for own, padded in zip(backbone(images), whole, strict=True):
        rows, columns = own.shape[-2:]
        assert torch.equal(own, padded[..., :rows, :columns])
        assert rows == math.ceil(70 * padded.shape[-2] / 96)
        assert columns == math.ceil(90 * padded.shape[-1] / 96)


@pytest.mark.parametrize(
    ("name", "words"),
    [("vit_tiny_patch16_224", "each half as fine"), ("resnet_of_nobody", "timm knows no model")],
)
def test_what_is_no_backbone_is_refused(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_target(transfer_target(f"timm:{name}"))


@pytest.mark.parametrize(
    ("task", "name"), [("semantic", "cells_semantic"), ("detection", "cells_detection")]
)
def test_it_is_trained_judged_and_read_again(tmp_path: Path, task: str, name: str) -> None:
    data = open_dense_data(
        str(write_data(tmp_path / "cells", train=4, val=2)), task, unpack_to=tmp_path
    )
    chosen = recipe(name, steps=2)
    target = transfer_target("timm:test_resnet")
    result = transfer(target, data, chosen, TransferOptions(out=tmp_path / "out"))
    assert result is not None
    assert result.key == "timm:test_resnet"
    judged = evaluate_transfer(
        tmp_path / "out", data=str(tmp_path / "cells"), scales=(1.0,), flip=False, device="cpu"
    )
    assert judged.values() == result.measured.to_json()


def test_its_parameters_are_those_of_the_built_network() -> None:
    from supernet.dense.network import build_dense
    from supernet.dense.options import dense_options

    chosen, target = recipe("cells_semantic"), TimmTarget("test_resnet")
    network = build_dense(target, dense_options(chosen, 3))
    assert count_target(target, chosen, 3).params == sum(p.numel() for p in network.parameters())


def test_a_file_of_timms_weights_starts_it(tmp_path: Path) -> None:
    torch.manual_seed(3)
    classifier = timm.create_model("test_resnet")
    save_file(dict(classifier.state_dict()), tmp_path / "weights.safetensors")
    found = load_weights(tmp_path / "weights.safetensors", TimmTarget("test_resnet"))
    theirs = classifier.state_dict()
    name = "conv1.0.weight" if "conv1.0.weight" in theirs else "conv1.weight"
    assert found[f"backbone.network.{name}"].equal(theirs[name])
