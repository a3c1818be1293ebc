"""Laws of token labels: the published loss, maps cropped with their images, MixToken."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor, nn

from searchspace.architecture import Architecture, Stage
from searchspace.mixers import GlobalAttention, OutlookAttention
from supernet.data import ImageData, prepare_data
from supernet.network.supernet import build_subnet
from supernet.recipes.recipe import TokenLabels, load_recipe
from supernet.training.batches import train_shards
from supernet.training.token_labels import (
    CroppedMaps,
    LabelMaps,
    MappedCrop,
    MixedBox,
    forward_mixed,
    random_box,
    token_label_loss,
    token_targets,
)
from supernet.training.training import TrainingOptions, train
from tests.tiny_data import changed

GOLDEN = Path(__file__).parents[4] / "shared" / "golden"
FIXTURES = [f"token_label_{kind}_bb{box}_a" for kind in ("ce", "gt_ce") for box in ("0000", "0123")]
PLAIN = TokenLabels(dense_weight=0.5, cls_weight=1.0, ground_truth=False, mix_token=1.0)


@pytest.mark.parametrize("name", FIXTURES)
def test_the_loss_is_the_published_one(name: str) -> None:
    path = GOLDEN / f"{name}.npz"
    if not path.exists():
        pytest.skip("The golden fixtures are not at ../shared/golden.")
    fixture = np.load(path)
    known = json.loads(str(fixture["meta"]))
    recipe = PLAIN.model_copy(update={"ground_truth": "GT" in known["cls"], **known["args"]})
    logits, tokens, targets = (
        torch.from_numpy(fixture[key]) for key in ("x_cls", "x_aux", "target")
    )

    loss = token_label_loss(logits, tokens, targets, MixedBox(*fixture["bb"].tolist()), recipe)

    assert loss.item() == pytest.approx(float(fixture["y"]), rel=1e-12)


def test_a_target_is_the_softmax_of_the_logits_that_lie_under_its_token() -> None:
    # Two stored classes at each of 4 x 4 places; the crop is the right half's upper quarter.
    logits = torch.arange(32.0).view(1, 1, 2, 4, 4) / 8
    classes = torch.tensor([2.0, 0.0])[None, None, :, None, None].expand(1, 1, 2, 4, 4)
    maps = CroppedMaps(torch.cat([logits, classes], 1), torch.tensor([[0.5, 0.0, 1.0, 0.5]]))

    targets = token_targets(maps, torch.tensor([1]), num_classes=3, side=2, smoothing=0.3)

    full = torch.zeros(3, 4, 4)
    full[2], full[0] = logits[0, 0, 0], logits[0, 0, 1]
    # Each token lies over one place, whose centre roi_align samples around.
    expected = full[:, 0:2, 2:4].flatten(1).softmax(0) * (0.7 + 0.1) + 0.1
    torch.testing.assert_close(targets[0, :, 2:], expected)
    torch.testing.assert_close(
        targets[0, :, 1], full[:, 0:2, 2:4].mean((1, 2)).softmax(0) * 0.8 + 0.1
    )
    assert targets[0, :, 0].tolist() == pytest.approx([0.1, 0.8, 0.1])


def test_a_crop_tells_where_it_cut_and_whether_it_mirrored() -> None:
    size = 40
    ramp = np.tile(np.arange(size, dtype=np.uint8) * 6, (size, 1))
    picture = Image.fromarray(np.stack([ramp, ramp.T, 0 * ramp], -1))
    transform = RandomResizedCropAndInterpolation(8, scale=(0.3, 0.6), interpolation="bilinear")
    crop = MappedCrop(transform, flip=0.5)
    places = torch.arange(16.0).view(1, 1, 4, 4).expand(2, 1, 4, 4)
    torch.manual_seed(0)

    pixels, maps = crop([picture] * 20, [places] * 20)

    mirrored = 0
    for image, topk, box in zip(pixels, maps.topk, maps.boxes, strict=True):
        left, top, right, bottom = (box * size).tolist()
        across, down = image[4, :, 0].astype(float) / 6, image[:, 4, 1].astype(float) / 6
        is_mirrored = across[0] > across[-1]
        mirrored += is_mirrored
        torch.testing.assert_close(topk, places.flip(-1) if is_mirrored else places)
        if is_mirrored:
            across, left, right = across[::-1], size - right, size - left
        ends = np.array([across[0], across[-1] + 1, down[0], down[-1] + 1])
        assert np.abs(ends - [left, right, top, bottom]).max() < 3
    assert 0 < mirrored < 20


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_mixing_is_its_own_inverse_and_keeps_the_share(alpha: float) -> None:
    rng = np.random.default_rng(0)
    maps = torch.arange(2.0 * 3 * 14 * 14).view(6, 14, 14)
    boxes = [random_box(14, alpha, rng) for _ in range(200)]

    for box in boxes:
        assert 0 <= box.top <= box.bottom <= 14
        assert torch.equal(box.swap(box.swap(maps)), maps)
    # Beta(1, 1) is uniform; boxes are cut at the border, which makes them smaller.
    mean = np.mean([box.area for box in boxes]) / 14**2
    assert mean == 0 if alpha == 0 else 0.2 < mean < 0.5


class Tokens(nn.Module):
    """A stand-in for a network that classifies tokens: 4 x 4 patches, pooled to 2 x 2."""

    only = None

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.patch_embed = Patches()
        self.head = nn.Linear(6, num_classes)
        self.seen: list[Tensor] = []

    def forward_tokens(self, images: Tensor, architecture: None) -> tuple[Tensor, Tensor]:
        maps = self.patch_embed(images)
        self.seen.append(maps)
        tokens = maps.unflatten(2, (2, 2)).unflatten(1, (2, 2)).mean((2, 4)).flatten(1, 2)
        return self.head(tokens.mean(1)), self.head(tokens)

    def forward(self, images: Tensor) -> Tensor:
        logits, tokens = self.forward_tokens(images, None)
        return logits + 0.5 * tokens.amax(1)


class Patches(nn.Module):
    """Embeds images as maps (B, H, W, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, 6, 4, stride=4)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).permute(0, 2, 3, 1)


def test_mix_token_mixes_patches_and_puts_token_logits_back() -> None:
    torch.manual_seed(0)
    network, images = Tokens().train(), torch.randn(4, 3, 16, 16)
    box = MixedBox(0, 1, 1, 2)

    logits, tokens = forward_mixed(network, images, box, side=2)

    plain_logits, plain = network.forward_tokens(images, None)
    mixed, whole = network.seen
    expected = whole.clone()
    expected[:, 0:2, 2:4] = whole.flip(0)[:, 0:2, 2:4]
    assert torch.equal(mixed, expected)
    torch.testing.assert_close(tokens, plain)
    assert not torch.allclose(logits, plain_logits)


@pytest.fixture
def data(tmp_path: Path) -> ImageData:
    """Return images of three classes that are streamed, with a label map each."""
    rng = np.random.default_rng(0)
    for pool, count in (("train", 10), ("val", 2), ("test", 2)):
        for label, name in enumerate(("ant", "bee", "cow")):
            for index in range(count):
                path = tmp_path / "images" / pool / name / f"{index}.v1.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 128, (20, 24, 3)) + np.array([60 * label, 0, 0])
                Image.fromarray(pixels.astype(np.uint8)).save(path)
                if pool != "test":
                    write_map(tmp_path / "maps" / name / f"{index}.pt", label)
    folder = tmp_path / "data"
    return prepare_data(str(tmp_path / "images"), img_size=16, folder=folder, memory_limit_bytes=1)


def write_map(path: Path, label: int) -> None:
    """Write what a sure teacher says: the class everywhere, and the next one a little."""
    logits = torch.tensor([6.0, 1.0])[:, None, None].expand(2, 5, 5)
    classes = torch.tensor([label, (label + 1) % 3])[:, None, None].expand(2, 5, 5)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(torch.stack([logits, classes]).half(), path)


def test_a_network_learns_from_label_maps(data: ImageData, tmp_path: Path) -> None:
    recipe = changed("volo_310e", batch_size=6, shard_size=None, epochs=12, warmup_epochs=1)
    recipe = changed(recipe, cooldown_epochs=0, lr=0.03, amp="none", auto_augment=None)
    split = data.split("train")
    maps = LabelMaps(tmp_path / "maps", split.images.names())
    options = TrainingOptions(train_split=split, eval_split=data.split("search"), seed=0, maps=maps)
    torch.manual_seed(0)

    result = train(Tokens(), data, recipe, options)

    assert result.raw.top1 == 100.0
    with pytest.raises(ValueError, match="needs the label maps"):
        train(Tokens(), data, recipe, replace(options, maps=None))
    with pytest.raises(ValueError, match=r"VOLO family.*without token_labels"):
        train(nn.Linear(3, 3), data, recipe, options)


def test_our_volo_learns_from_label_maps(data: ImageData, tmp_path: Path) -> None:
    recipe = changed("volo_310e", batch_size=6, shard_size=None, epochs=12, warmup_epochs=1)
    recipe = changed(recipe, cooldown_epochs=0, lr=0.005, amp="none", auto_augment=None)
    attention = GlobalAttention(num_heads=2)
    architecture = Architecture(
        family="volo",
        img_size=16,
        patch_size=4,
        num_classes=3,
        stem_dim=8,
        stages=(
            Stage(dim=16, mixers=(OutlookAttention(num_heads=2),)),
            Stage(dim=16, mixers=(attention,)),
        ),
    )
    split = data.split("train")
    maps = LabelMaps(tmp_path / "maps", split.images.names())
    options = TrainingOptions(train_split=split, eval_split=data.split("search"), seed=0, maps=maps)
    torch.manual_seed(0)
    network = build_subnet(architecture)
    tokens = network.aux_head.weight.detach().clone()

    result = train(network, data, recipe, options)

    assert not torch.equal(network.aux_head.weight, tokens)
    losses = [report.loss for report in result.history]
    assert sum(losses[-4:]) / 4 < 0.85 * losses[0], losses


def test_maps_go_with_their_images(data: ImageData, tmp_path: Path) -> None:
    recipe = changed("volo_310e", batch_size=6, shard_size=None)
    split = data.split("train")
    maps = LabelMaps(tmp_path / "maps", split.images.names())

    for (shard,) in train_shards(split, data, recipe, epoch=0, seed=0, maps=maps):
        assert shard.maps is not None
        assert shard.maps.topk[:, 1, 0, 0, 0].tolist() == shard.labels.tolist()


def test_a_missing_or_other_file_is_named(tmp_path: Path) -> None:
    maps = LabelMaps(tmp_path, ["train/ant/0.JPEG", "train/ant/1.JPEG"])
    (tmp_path / "ant").mkdir()
    torch.save(torch.zeros(5), tmp_path / "ant" / "1.pt")

    with pytest.raises(ValueError, match=r"there is no .*ant/0\.pt"):
        maps.load(0)
    with pytest.raises(ValueError, match=r"ant/1\.pt is \(5,\)"):
        maps.load(1)


def test_only_volos_recipes_have_token_labels() -> None:
    assert load_recipe("volo_310e").token_labels == PLAIN
    assert load_recipe("swin_300e").token_labels is None
