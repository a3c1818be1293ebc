"""Shipped recipes against the papers' code, computed again here from its command lines and yamls.

The rates are those of the schedules in the sources: Swin's per-iteration cosine (config.py,
lr_scheduler.py) and timm 0.4's per-epoch one with cool-down, at ImageNet's 1,281,167 images.
"""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image
from timm.data.auto_augment import RandAugment
from timm.data.transforms_factory import transforms_imagenet_train

from searchspace.architecture import Architecture, Stage
from searchspace.mixers import (
    DepthwiseConv,
    Elsa,
    GlobalAttention,
    InhomogeneousDepthwiseConv,
    NeighborhoodAttention,
    WindowAttention,
)
from supernet.network.supernet import build_subnet
from supernet.recipes.recipe import Recipe, load_recipe
from supernet.training.augmentation import mend_posterize
from supernet.training.batches import steps_per_epoch
from supernet.training.optimization import build_optimizer, build_scheduler

IMAGENET_1K, IMAGENET_22K = 1_281_167, 14_197_122


def rates(recipe: Recipe, num_images: int, epochs: list[float]) -> list[float]:
    """Return the rates that a training has at some epochs, and parts of them."""
    steps = steps_per_epoch(num_images, recipe)
    optimizer = build_optimizer(torch.nn.Linear(2, 2), recipe)
    scheduler = build_scheduler(optimizer, recipe, steps)
    found = []
    for epoch in epochs:
        scheduler.step_update(round(epoch * steps))
        scheduler.step(int(epoch))
        found.append(optimizer.param_groups[0]["lr"])
    return found


def cosine(peak: float, least: float, done: float) -> float:
    return least + (peak - least) * (1 + math.cos(math.pi * done)) / 2


@pytest.mark.parametrize(
    ("name", "num_images", "batch", "base", "total", "warmup"),
    [
        # BASE_LR, WARMUP_LR and MIN_LR of the yamls; main.py multiplies all by batch / 512.
        ("swin_300e:tiny", IMAGENET_1K, 1024, (5e-4, 5e-7, 5e-6), 300, 20),
        ("dwnet_300e:base", IMAGENET_1K, 1024, (5e-4, 5e-7, 5e-6), 300, 20),
        ("in22k_90e:base", IMAGENET_22K, 4096, (1.25e-4, 1.25e-7, 1.25e-6), 90, 5),
        ("in22k_to_1k:tiny", IMAGENET_1K, 1024, (2e-5, 2e-8, 2e-7), 30, 5),
        ("finetune_384:swin_base", IMAGENET_1K, 1024, (2e-5, 2e-8, 2e-7), 30, 5),
    ],
)
def test_swin_scales_all_three_rates_and_changes_them_every_step(
    name: str,
    num_images: int,
    batch: int,
    base: tuple[float, float, float],
    total: int,
    warmup: int,
) -> None:
    recipe = load_recipe(name)
    peak, start, least = (value * batch / 512 for value in base)
    steps = num_images // batch
    half = round((warmup + total) / 2 * steps) / (total * steps)

    found = rates(
        recipe, num_images, [0, warmup / 2, warmup, (warmup + total) / 2, total - 1 / steps]
    )

    assert recipe.batch_size == batch
    assert recipe.total_epochs == total
    assert found == pytest.approx(
        [
            start,
            start + (peak - start) * round(warmup / 2 * steps) / (warmup * steps),
            cosine(peak, least, warmup / total),
            cosine(peak, least, half),
            cosine(peak, least, 1 - 1 / (total * steps)),
        ],
        rel=1e-9,
    )


@pytest.mark.parametrize(
    ("name", "rates_", "epochs", "warmup", "cooldown"),
    [
        # --lr, --warmup-lr, --min-lr: literal in timm's train.py.
        ("elsa_swin_310e:tiny", (1e-3, 1e-6, 1e-5), 300, 20, 10),
        ("elsa_swin_310e:base", (1e-3, 1e-6, 1e-5), 300, 20, 10),
        ("volo_310e:d1", (1.6e-3, 1e-6, 1e-5), 300, 20, 10),
        ("volo_310e:d2", (1e-3, 1e-6, 1e-5), 300, 20, 10),
        ("volo_310e:d3", (1e-3, 1e-6, 1e-5), 300, 20, 10),
        ("volo_310e:d5", (8e-4, 1e-6, 1e-5), 300, 20, 10),
        ("finetune_384:volo_d1", (8e-6, 1e-6, 4e-6), 30, 5, 10),
        # DeiT's loop: --lr times batch / 512, the others literal, no cool-down.
        ("twins_300e:small", (5e-4 * 2, 1e-6, 1e-5), 300, 5, 0),
    ],
)
def test_timms_loops_change_the_rate_every_epoch(
    name: str, rates_: tuple[float, float, float], epochs: int, warmup: int, cooldown: int
) -> None:
    recipe = load_recipe(name)
    peak, start, least = rates_
    expected = [
        start,
        start,
        start + (peak - start) * (warmup - 1) / warmup,
        cosine(peak, least, warmup / epochs),
        cosine(peak, least, (epochs - 1) / epochs),
    ]
    asked = [0, 0.9, warmup - 0.5, warmup, epochs - 0.5]

    assert recipe.total_epochs == epochs + cooldown
    assert rates(recipe, IMAGENET_1K, asked) == pytest.approx(expected, rel=1e-9)
    if cooldown:
        assert rates(recipe, IMAGENET_1K, [epochs, epochs + cooldown - 1]) == [least, least]


def test_the_size_dw_has_the_rate_of_hans_text() -> None:
    recipe = load_recipe("finetune_384:dw")

    assert max(rates(recipe, IMAGENET_1K, [5, 6, 10])) <= 1e-5
    assert recipe.peak_lr(recipe.batch_size) == 1e-5
    assert (recipe.weight_decay, recipe.drop_path, recipe.epochs) == (1e-8, 0.1, 30)


# Drop path, EMA decay, images of a GPU: README and yamls (MIXERS.md, section 2).
SIZES = {
    "swin_300e:tiny": (0.2, None, 128),
    "swin_300e:small": (0.3, None, 128),
    "swin_300e:base": (0.5, None, 128),
    "dwnet_300e:tiny": (0.2, None, 128),
    "dwnet_300e:base": (0.5, None, 64),
    "dwnet_300e:inhomogeneous_tiny": (0.2, None, 64),
    "dwnet_300e:inhomogeneous_base": (0.5, None, 64),
    "elsa_swin_310e:tiny": (0.1, None, 128),
    "elsa_swin_310e:small": (0.3, None, 128),
    "elsa_swin_310e:base": (0.5, 0.99992, 128),
    "volo_310e:d1": (0.1, None, 128),
    "volo_310e:d2": (0.2, None, 128),
    "volo_310e:d3": (0.5, None, 128),
    "volo_310e:d5": (0.5, 0.99992, 128),
    "twins_300e:small": (0.1, None, 128),
    "twins_300e:base": (0.3, None, 128),
    "in22k_90e:base": (0.2, None, 64),
    "in22k_90e:small": (0.2, None, 64),
    "in22k_90e:tiny": (0.1, None, 64),
    "in22k_to_1k:base": (0.2, None, 64),
    "in22k_to_1k:small": (0.2, None, 64),
    "in22k_to_1k:tiny": (0.1, None, 64),
    "in22k_to_1k:base_384": (0.2, None, 64),
    "finetune_384:swin_base": (0.5, None, 64),
    "finetune_384:dw": (0.1, None, 64),
    "finetune_384:volo_d1": (0.1, None, 64),
    "finetune_384:volo_d2": (0.2, None, 48),
    "finetune_384:volo_d3": (0.5, None, 30),
}


def test_every_size_has_its_published_drop_path_and_average() -> None:
    published = [f"{name.partition(':')[0]}" for name in SIZES]
    known = [f"{name}:{size}" for name in set(published) for size in load_recipe(name).sizes]

    found = {name: load_recipe(name) for name in sorted(known)}

    assert {
        name: (recipe.drop_path, recipe.ema_decay, recipe.shard_size)
        for name, recipe in found.items()
    } == SIZES
    assert found["dwnet_300e:inhomogeneous_tiny"].amp == "none"
    assert found["dwnet_300e:tiny"].amp == "fp16"


# auto_augment, jitter, erasing (share, mode, place), mixup, cutmix, interpolation, crop, clip.
RAND = "rand-m9-mstd0.5-inc1"
AUGMENTATIONS = {
    "swin_300e": (RAND, 0.25, "pixel", "before_mixup", 0.8, 1.0, "bicubic", 0.875, 5.0),
    "dwnet_300e": (RAND, 0.25, "pixel", "before_mixup", 0.8, 1.0, "bicubic", 0.875, 5.0),
    "in22k_90e": (RAND, 0.25, "pixel", "before_mixup", 0.8, 1.0, "bicubic", 0.875, 5.0),
    "in22k_to_1k": (RAND, 0.25, "pixel", "before_mixup", 0.8, 1.0, "bicubic", 0.875, 5.0),
    "finetune_384": (RAND, 0.25, "pixel", "before_mixup", 0.8, 1.0, "bicubic", 1.0, 5.0),
    "elsa_swin_310e": (RAND, 0.25, "pixel", "after_mixup", 0.8, 1.0, "random", 0.9, 5.0),
    "volo_310e": (RAND, 0.25, "pixel", "after_mixup", 0.0, 0.0, "random", 0.96, None),
    "volo_310e:d5": (RAND, 0.25, "pixel", "after_mixup", 0.0, 0.0, "random", 1.15, None),
    "twins_300e": (RAND, 0.25, "pixel", "before_mixup", 0.8, 1.0, "bicubic", 0.875, 5.0),
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_is_the_published_one(name: str) -> None:
    recipe = load_recipe(name)

    assert (
        recipe.auto_augment,
        recipe.random_erasing,
        recipe.random_erasing_mode,
        recipe.random_erasing_place,
        recipe.mixup,
        recipe.cutmix,
        recipe.train_interpolation,
        recipe.crop_pct,
        recipe.clip_grad,
    ) == AUGMENTATIONS[name]
    assert (recipe.mixup_prob, recipe.mixup_switch_prob, recipe.random_erasing_count) == (1, 0.5, 1)
    assert (recipe.label_smoothing, recipe.hflip, recipe.color_jitter) == (0.1, 0.5, 0.4)
    assert recipe.random_resized_crop == (0.08, 1.0)
    assert (recipe.repeated_augmentation, recipe.eval_interpolation) == (1, "bicubic")
    assert (recipe.optimizer, recipe.betas, recipe.eps) == ("adamw", (0.9, 0.999), 1e-8)


def test_the_string_of_the_augmentation_means_two_operations_of_magnitude_nine() -> None:
    _, recolor, _ = transforms_imagenet_train(224, auto_augment=RAND, separate=True)

    (augment,) = recolor.transforms

    assert isinstance(augment, RandAugment)
    assert augment.num_layers == 2
    for operation in augment.ops:
        assert (operation.magnitude, operation.magnitude_std, operation.prob) == (9, 0.5, 0.5)


def test_the_strings_largest_posterization_is_black_and_no_error() -> None:
    # Magnitude 9 with deviation 0.5 reaches 10, where no bits are left.
    _, recolor, _ = transforms_imagenet_train(8, auto_augment="rand-m10-inc1", separate=True)
    mend_posterize(recolor.transforms)
    (augment,) = recolor.transforms
    (operation,) = (op for op in augment.ops if "Posterize" in op.name)
    operation.prob = 1.0

    image = operation(Image.new("RGB", (8, 8), (200, 100, 50)))

    assert image.getcolors() == [(64, (0, 0, 0))]


MIXERS = (
    DepthwiseConv(kernel_size=3),
    NeighborhoodAttention(kernel_size=3, num_heads=2, terms="qk+qr+rk+bias"),
    WindowAttention(window_size=2, num_heads=2),
    InhomogeneousDepthwiseConv(kernel_size=3, num_groups=2),
    Elsa(kernel_size=3, num_heads=2, lam=1.0, gamma=1.0),
)
# By the last two parts of a parameter's name: what the published optimisers decay. Linear and
# convolution weights, the ghost head (2-D and more) and tables of vectors; never norms and biases.
DECAYED = {
    *("proj.weight", "in_proj.weight", "conv_in.weight", "conv_out.weight", "reduce.weight"),
    *("depthwise_conv.weight", "generator.weight"),
    *("fc1.weight", "fc2.weight", "head.weight", "reduction.weight"),
    *("elsa.conv_weight", "elsa.logit_weight", "elsa.mul", "elsa.add"),
    *("attention.table_qr", "attention.table_rk"),
}
TABLE = "attention.table_bias"


@pytest.mark.parametrize(
    ("name", "decayed"),
    [
        ("swin_300e", DECAYED),
        ("dwnet_300e", DECAYED),
        # ELSA's `rb`, 2-D, is in no list that timm 0.4.9 asks for.
        ("elsa_swin_310e", DECAYED | {TABLE}),
        ("micro", DECAYED),
    ],
)
def test_weight_decay_is_on_the_published_parameters(name: str, decayed: set[str]) -> None:
    stages = (Stage(dim=8, mixers=MIXERS), Stage(dim=16, mixers=MIXERS[:1]))
    network = build_subnet(Architecture(img_size=8, patch_size=2, stages=stages))
    recipe = load_recipe(name)
    names = {id(parameter): name for name, parameter in network.named_parameters()}

    decays = {
        names.pop(id(parameter)): group["weight_decay"]
        for group in build_optimizer(network, recipe).param_groups
        for parameter in group["params"]
    }

    assert not names
    seen = set()
    for parameter, decay in decays.items():
        short = ".".join(parameter.split(".")[-2:])
        seen |= {short} if short in decayed else set()
        assert decay == (recipe.weight_decay if short in decayed else 0.0), parameter
    assert seen == decayed


ATTENTION = GlobalAttention(num_heads=2)
FAMILIES = {
    "volo": Architecture(
        family="volo",
        img_size=32,
        patch_size=8,
        stem_dim=4,
        stages=(Stage(dim=8, mixers=(ATTENTION,)),) * 2,
    ),
    "twins": Architecture(
        family="twins", img_size=16, patch_size=4, stages=(Stage(dim=8, mixers=(ATTENTION,)),)
    ),
}


@pytest.mark.parametrize(
    ("name", "family", "free"),
    [
        ("volo_310e", "volo", {"merges.0.pos_embed"}),
        ("twins_300e", "twins", {"encodings.0.conv.weight"}),
        # Published lists name neither for ELSA-Swin.
        ("elsa_swin_310e", "volo", set()),
        ("elsa_swin_310e", "twins", set()),
    ],
)
def test_named_exceptions_are_not_decayed(name: str, family: str, free: set[str]) -> None:
    network = build_subnet(FAMILIES[family])
    groups = build_optimizer(network, load_recipe(name)).param_groups
    undecayed = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}

    # Vectors, the class token among them, and biases are never decayed.
    found = {n for n, p in network.named_parameters() if p.dim() > 1 and id(p) in undecayed}
    assert found == free


def test_token_labels_have_volos_weights() -> None:
    volo, tuned = load_recipe("volo_310e").token_labels, load_recipe("finetune_384:volo_d1")

    assert volo is not None
    assert (volo.dense_weight, volo.cls_weight, volo.mix_token) == (0.5, 1.0, 1.0)
    assert not volo.ground_truth
    assert tuned.token_labels == volo.model_copy(update={"ground_truth": True})
    assert tuned.batch_size == 8 * 64


def test_a_size_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no size 'huge'; its sizes: tiny, small, base"):
        load_recipe("swin_300e:huge")
    with pytest.raises(ValueError, match="its sizes: none"):
        load_recipe("micro:tiny")
