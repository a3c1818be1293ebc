"""Colours are changed as mmsegmentation's PhotoMetricDistortion changes them, and no more."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors

from supernet.dense.augment import Sample, augment
from supernet.recipes import Photometric, load_dense_recipe

NOTHING = Photometric(
    brightness_delta=0, contrast=(1, 1), saturation=(1, 1), hue_delta=0, probability=1
)
SIDE = 512


@pytest.fixture(scope="module")
def image() -> Tensor:
    """Colours of an image with the side of the recipe's crop, which is then the whole of it."""
    rng = np.random.default_rng(0)
    small = torch.from_numpy(rng.integers(0, 256, (3, 16, 16), dtype=np.uint8))
    return small.repeat_interleave(SIDE // 16, 1).repeat_interleave(SIDE // 16, 2)


def distorted(image: Tensor, settings: Photometric, seed: int) -> Tensor:
    """Augment an image by the recipe of ADE20K, whose sizes change nothing here."""
    recipe = load_dense_recipe("upernet_160k")
    images = recipe.train_images.model_copy(
        update={
            "photometric": settings,
            "ratio": None,
            "flip": 0.0,
            "crop_max_share": 1.0,
        }
    )
    labels = tv_tensors.Mask(torch.zeros(1, SIDE, SIDE, dtype=torch.uint8))
    sample = Sample(image=tv_tensors.Image(image), masks=labels)
    recipe = recipe.model_copy(update={"train_images": images})
    return augment(sample, recipe, seed).image.as_subclass(Tensor)


@pytest.mark.parametrize("seed", range(6))
def test_settings_that_change_nothing_change_nothing(image: Tensor, seed: int) -> None:
    """No channels are swapped, as torchvision's RandomPhotometricDistort does."""
    assert (distorted(image, NOTHING, seed).int() - image.int()).abs().max() <= 1


def test_brightness_is_added_and_contrast_multiplied(image: Tensor) -> None:
    plain = distorted(image, NOTHING, 1)
    brighter = distorted(image, NOTHING.model_copy(update={"brightness_delta": 32.0}), 1)
    inside = (brighter > 0) & (brighter < 255)
    added = (brighter.int() - plain.int())[inside]
    assert added.max() - added.min() <= 1
    assert 0 < added.abs().max() <= 32
    darker = distorted(image, NOTHING.model_copy(update={"contrast": (0.5, 0.5)}), 1)
    assert (darker.int() - plain.int() // 2).abs().max() <= 1


def test_saturation_is_hsvs(image: Tensor) -> None:
    half = distorted(image, NOTHING.model_copy(update={"saturation": (0.5, 0.5)}), 1)
    full = distorted(image, NOTHING.model_copy(update={"saturation": (99, 99)}), 1)
    for row, column in ((0, 0), (40, 300), (511, 100)):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[:, row, column] / 255).tolist())
        for found, factor in ((half, 0.5), (full, 99)):
            wanted = colorsys.hsv_to_rgb(hue, min(factor * saturation, 1.0), value)
            there = found[:, row, column].tolist()
            assert there == pytest.approx([255 * x for x in wanted], abs=2)


def test_published_settings_are_a_function_of_the_seed(image: Tensor) -> None:
    settings = load_dense_recipe("upernet_160k").train_images.photometric
    assert settings is not None
    first, again, other = (distorted(image, settings, seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
