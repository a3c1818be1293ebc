"""Laws of batches: what is drawn, what augmentation may and may not do, what is repeatable."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor

from supernet.data import ImageData, Split, StreamedImages, prepare_data
from supernet.recipes.recipe import Recipe
from supernet.training.batches import (
    PixelBatches,
    eval_batches,
    steps_per_epoch,
    train_batches,
    train_shards,
)
from tests.tiny_data import PLAIN, changed, noise, tiny_data

QUICK = changed("quick", **PLAIN, batch_size=4)
FULL = changed("micro", batch_size=4, random_erasing=0.5, mixup_prob=1.0)


@pytest.fixture
def data(tmp_path: Path) -> ImageData:
    return tiny_data(tmp_path, *noise(19, 9))


def pixels(images: Tensor, data: ImageData) -> npt.NDArray[np.uint8]:
    """Undo the normalisation: (B, 3, H, W) floats to (B, H, W, 3) pixels."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
    return ((images * std + mean) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def epoch_of(
    data: ImageData, recipe: Recipe, epoch: int = 0, seed: int = 0
) -> list[tuple[Tensor, Tensor]]:
    return list(train_batches(data.split("train"), data, recipe, epoch=epoch, seed=seed))


def rows_of(images: npt.NDArray[np.uint8], split: Split) -> list[int]:
    """Find each image in the split."""
    known = {image.tobytes(): row for row, image in enumerate(np.asarray(split.images))}
    return [known[image.tobytes()] for image in images]


def test_an_epoch_shows_unaugmented_images_once_each_with_their_labels(data: ImageData) -> None:
    split = data.split("train")
    batches = epoch_of(data, changed(QUICK, batch_size=3))

    rows = [row for images, _ in batches for row in rows_of(pixels(images, data), split)]
    labels = torch.cat([targets for _, targets in batches])

    assert len(split) == 11
    assert len(rows) == len(set(rows)) == 9
    assert labels.tolist() == split.labels[rows].tolist()


@pytest.mark.parametrize(("batch_size", "sizes"), [(4, [4, 4]), (11, [11]), (64, [11])])
def test_an_incomplete_batch_is_left_out_unless_it_is_the_only_one(
    data: ImageData, batch_size: int, sizes: list[int]
) -> None:
    recipe = changed(QUICK, batch_size=batch_size)

    batches = epoch_of(data, recipe)

    assert [len(targets) for _, targets in batches] == sizes
    assert steps_per_epoch(11, recipe) == len(sizes)


@pytest.mark.parametrize("recipe", [QUICK, FULL])
def test_batches_are_a_function_of_seed_and_epoch(data: ImageData, recipe: Recipe) -> None:
    first = epoch_of(data, recipe)
    random.random(), np.random.rand(), torch.rand(3)  # noqa: NPY002
    again = epoch_of(data, recipe)

    for one, two in zip(first, again, strict=True):
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])
    for other in (epoch_of(data, recipe, epoch=1), epoch_of(data, recipe, seed=1)):
        assert not torch.equal(first[0][0], other[0][0])


def test_the_global_generators_are_left_alone(data: ImageData) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002

    epoch_of(data, FULL)

    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize("mode", ["zero", "reflect"])
def test_a_padded_crop_is_a_window_of_the_padded_image(data: ImageData, mode: str) -> None:
    recipe = changed(QUICK, random_crop_padding=3, random_crop_padding_mode=mode, batch_size=11)
    split = data.split("train")
    ((images, _),) = epoch_of(data, recipe)
    # The order is the same without augmentation.
    ((plain, _),) = epoch_of(data, changed(QUICK, batch_size=11))
    found = []
    for image, row in zip(pixels(images, data), rows_of(pixels(plain, data), split), strict=True):
        widths = ((3, 3), (3, 3), (0, 0))
        padded = (
            np.pad(split.images[row], widths)
            if mode == "zero"
            else np.pad(split.images[row], widths, mode="reflect")
        )
        places = [(y, x) for y in range(7) for x in range(7)]
        windows = {padded[y : y + 9, x : x + 9].tobytes(): (y, x) for y, x in places}
        found.append(windows[image.tobytes()])

    assert len(set(found)) > 3


def test_images_that_are_stored_larger_are_cropped_from_what_there_is(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, *noise(19, 9), img_size=7)
    recipe = changed(QUICK, random_crop_padding=3, batch_size=11)
    ((images, _),) = epoch_of(data, recipe)
    windows = {
        image[y : y + 7, x : x + 7].tobytes(): (y, x)
        for image in np.asarray(data.split("train").images)
        for y in range(3)
        for x in range(3)
    }

    found = {windows[image.tobytes()] for image in pixels(images, data)}

    assert len(found) > 3


@pytest.mark.parametrize("crop", [None, (1.0, 1.0)])
@pytest.mark.parametrize("allows_flip", [False, True])
def test_images_are_mirrored_only_where_the_data_allows_it(
    tmp_path: Path, allows_flip: bool, crop: tuple[float, float] | None
) -> None:
    images, labels = noise(19, 9)
    images[:, :, :4] = 255
    images[:, :, 5:] = 0
    data = tiny_data(tmp_path, images, labels, allows_flip=allows_flip)
    recipe = changed(QUICK, hflip=1.0, random_resized_crop=crop)

    for batch, _ in epoch_of(data, recipe):
        left, right = (pixels(batch, data)[:, :, column] for column in (0, -1))
        bright, dark = (right, left) if allows_flip else (left, right)
        # A crop's aspect ratio may cut the border off, but not swap the sides.
        assert bright.min() == 255
        assert dark.max() == 0


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_a_mixed_image_is_the_mixture_that_its_target_says(
    tmp_path: Path, mixup: float, cutmix: float
) -> None:
    labels = np.arange(40, dtype=np.int64) % 4
    images = np.broadcast_to(labels[:, None, None, None] * 60, (40, 8, 8, 3)).astype(np.uint8)
    data = tiny_data(tmp_path, images, labels)
    recipe = changed(QUICK, mixup=mixup, cutmix=cutmix, mixup_prob=1.0, mixup_switch_prob=0.5)
    num_mixed = 0

    for batch, targets in epoch_of(data, recipe):
        mean, std = torch.tensor(data.mean)[0], torch.tensor(data.std)[0]
        brightness = (batch[:, 0].mean((1, 2)) * std + mean) * 255
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
        torch.testing.assert_close(
            brightness, targets @ torch.tensor([0.0, 60, 120, 180]), atol=1e-2, rtol=1e-4
        )
        num_mixed += int((targets.max(1).values < 0.999).sum())

    assert num_mixed > 0


def test_an_only_batch_of_odd_length_gives_one_image_up_to_be_mixed(data: ImageData) -> None:
    ((images, targets),) = epoch_of(data, changed(FULL, batch_size=64))

    assert images.shape == (10, 3, 9, 9)
    assert targets.shape == (10, 2)


def test_the_shares_of_a_step_add_up_to_one_where_shards_are_odd(data: ImageData) -> None:
    # Of eleven images the shards of 4 get 4, 4 and 3, and one of those has no other to mix with.
    recipe = FULL.model_copy(update={"batch_size": 12, "shard_size": 4})

    (shards,) = train_shards(data.split("train"), data, recipe, epoch=0, seed=0)

    assert [len(shard) for shard in shards] == [4, 4, 2]
    assert [shard.share for shard in shards] == [0.4, 0.4, 0.2]


def test_no_shard_has_less_than_a_pair_where_an_only_batch_is_odd(data: ImageData) -> None:
    # Six shards of two are asked for, and of eleven images the sixth would have one: none to mix.
    recipe = FULL.model_copy(update={"batch_size": 12, "shard_size": 2})

    (shards,) = train_shards(data.split("train"), data, recipe, epoch=0, seed=0)

    assert [len(shard) for shard in shards] == [2] * 5


@pytest.mark.parametrize("place", ["before_mixup", "after_mixup"])
def test_erasing_puts_the_mean_colour_into_every_image(data: ImageData, place: str) -> None:
    recipe = changed(QUICK, random_erasing=1.0, random_erasing_place=place)

    for images, _ in epoch_of(data, recipe):
        assert (images == 0).all(1).flatten(1).any(1).all()


def test_erased_before_mixing_means_erased_from_one_of_the_two(data: ImageData) -> None:
    recipe = changed(QUICK, random_erasing=1.0, mixup=1.0, mixup_prob=1.0)

    erased = {
        place: sum(
            int((images == 0).all(1).sum())
            for images, _ in epoch_of(data, changed(recipe, random_erasing_place=place))
        )
        for place in ("before_mixup", "after_mixup")
    }

    assert erased["before_mixup"] < erased["after_mixup"]


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_augment": "rand-m9-mstd0.5-inc1"},
        {"color_jitter": 0.4},
        {"random_resized_crop": (0.3, 1.0), "train_interpolation": "random"},
    ],
)
def test_pil_augmentation_keeps_shape_and_changes_pixels(
    data: ImageData, changes: dict[str, object]
) -> None:
    plain, augmented = epoch_of(data, QUICK), epoch_of(data, changed(QUICK, **changes))

    assert [i.shape for i, _ in augmented] == [i.shape for i, _ in plain]
    assert [t.tolist() for _, t in augmented] == [t.tolist() for _, t in plain]
    assert not torch.equal(augmented[0][0], plain[0][0])


@pytest.mark.parametrize("num_images", [0, 1])
def test_training_needs_two_images(data: ImageData, num_images: int) -> None:
    whole = data.split("train")
    split = Split(whole.images[:num_images], whole.labels[:num_images])

    with pytest.raises(ValueError, match=f"at least 2 images, got {num_images}"):
        next(train_batches(split, data, QUICK, epoch=0, seed=0))


def test_evaluation_sees_all_images_in_order_at_their_centre(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, *noise(19, 9), img_size=5)
    split = data.split("train")

    batches = list(eval_batches(split, data, batch_size=4))

    assert [len(labels) for _, labels in batches] == [4, 4, 3]
    seen = np.concatenate([pixels(images, data) for images, _ in batches])
    np.testing.assert_array_equal(seen, split.images[:, 2:7, 2:7])
    assert torch.cat([labels for _, labels in batches]).tolist() == split.labels.tolist()


def test_pixels_are_normalised_by_the_statistics_of_the_data(data: ImageData) -> None:
    split = data.split("search")

    ((images, _),) = eval_batches(split, data, batch_size=64)

    expected = (split.images / 255 - np.array(data.mean)) / np.array(data.std)
    np.testing.assert_allclose(images.permute(0, 2, 3, 1), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "filter_"),
    [("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_streamed_images_are_scaled_for_evaluation_as_the_recipe_says(
    tmp_path: Path, name: str, filter_: Image.Resampling, workers: int
) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for label in ("ant", "bee"):
            (tmp_path / "images" / split / label).mkdir(parents=True)
            for number in range(count):
                picture = Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8))
                picture.save(tmp_path / "images" / split / label / f"{number}.png")
    data = prepare_data(
        str(tmp_path / "images"), img_size=16, folder=tmp_path / "data", memory_limit_bytes=0
    )
    split_ = data.split("search")
    assert isinstance(split_.images, StreamedImages)

    batches = eval_batches(split_, data, 64, 0.8, interpolation=name, workers=workers)

    ((images, _),) = batches
    # 16 / 0.8 pixels, of which the central 16.
    pictures = split_.images.read(np.arange(len(split_)))
    expected = [np.asarray(p.resize((20, 20), filter_))[2:18, 2:18] for p in pictures]
    np.testing.assert_array_equal(pixels(images, data), np.stack(expected))


def test_crop_pct_scales_the_centre_to_the_size_that_networks_see(tmp_path: Path) -> None:
    # A bright square of 6 x 6 pixels in the middle of 10 x 10.
    images, labels = noise(10, 10)
    images[:] = 0
    images[:, 2:8, 2:8] = 200
    data = tiny_data(tmp_path, images, labels, img_size=8)
    split = data.split("search")

    ((exact, _),) = eval_batches(split, data, 64, crop_pct=0.8)
    ((plain, _),) = eval_batches(split, data, 64)
    ((enlarged, _),) = eval_batches(split, data, 64, crop_pct=0.6)

    assert torch.equal(exact, plain)
    assert enlarged.shape == (4, 3, 8, 8)
    np.testing.assert_array_equal(pixels(enlarged, data), np.full((4, 8, 8, 3), 200))


@pytest.mark.parametrize("is_streamed", [False, True])
def test_batches_that_are_kept_as_bytes_are_those_of_an_evaluation(
    tmp_path: Path, is_streamed: bool
) -> None:
    data = prepare_data("digits", img_size=9, folder=tmp_path)
    data = data.streamed() if is_streamed else data
    split = data.split("search")
    found = PixelBatches.of(split, data, 64, "cpu")
    assert {pixels.dtype for pixels, _ in found.batches} == {torch.uint8}
    for _ in range(2):  # and they pass as often as they are asked for
        expected = list(eval_batches(split, data, 64))
        assert len(found) == len(expected)
        for (images, labels), (right, right_labels) in zip(found, expected, strict=True):
            assert torch.equal(images, right)
            assert torch.equal(labels, right_labels)


@pytest.mark.parametrize(("stored", "seen"), [(9, 12), (9, 11), (8, 12), (9, 9), (9, 6), (9, 8)])
def test_a_share_above_one_is_seen_in_a_black_frame_and_one_below_is_the_centre(
    tmp_path: Path, stored: int, seen: int
) -> None:
    """What does not divide by two is at the bottom and right."""
    images, labels = noise(10, stored)
    data = tiny_data(tmp_path, images + 1, labels, img_size=seen)
    split = data.split("search")

    ((found, _),) = eval_batches(split, data, 64, crop_pct=seen / stored)

    framed = np.zeros((len(split), max(seen, stored), max(seen, stored), 3), np.uint8)
    before = max(seen - stored, 0) // 2
    framed[:, before : before + stored, before : before + stored] = np.asarray(split.images)
    start = max(stored - seen, 0) // 2
    expected = framed[:, start : start + seen, start : start + seen]
    np.testing.assert_array_equal(pixels(found, data), expected)
