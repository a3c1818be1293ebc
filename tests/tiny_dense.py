"""Images of coloured rectangles with boxes, masks and classes, and tiny networks and recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from searchspace.architecture import Architecture, Stage
from searchspace.mixers import DepthwiseConv, Mixer, WindowAttention
from supernet.dense.distillation import DenseTeacher
from supernet.dense.network import DenseNetwork
from supernet.recipes.dense_recipe import DenseRecipe, load_dense_recipe

COLOURS = ((200, 40, 40), (40, 40, 200))
CONV = DepthwiseConv(kernel_size=3)
WINDOWS = WindowAttention(window_size=7, num_heads=2)


def architecture(*mixers: Mixer) -> Architecture:
    """Four stages of one block each, dims 8 to 32."""
    chosen = mixers or (CONV, WINDOWS, CONV, WINDOWS)
    dims = (8, 16, 24, 32)
    stages = tuple(
        Stage(dim=dim, mixers=(mixer,), mlp_ratio=1.0)
        for dim, mixer in zip(dims, chosen, strict=True)
    )
    return Architecture(img_size=224, patch_size=4, stages=stages, num_classes=2)


def write_data(folder: Path, *, train: int = 6, val: int = 3) -> Path:
    """Write images of 64 x 48 or 48 x 64 pixels in COCO's layout, with masks of pixels beside."""
    rng = np.random.default_rng(0)
    (folder / "annotations").mkdir(parents=True)
    (folder / "classes.txt").write_text("nothing\nred\nblue\n")
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        data: dict[str, Any] = {"images": [], "annotations": []}
        data["categories"] = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
        for number in range(count):
            size = (48, 64) if number % 2 else (64, 48)
            pixels = rng.integers(90, 120, (*size, 3)).astype(np.uint8)
            classes = np.zeros(size, np.uint8)
            name = f"{number:03d}"
            entry = {"id": number, "file_name": f"{name}.png"}
            data["images"].append(entry | {"height": size[0], "width": size[1]})
            for label in (0, 1):
                x, y = int(rng.integers(2, 20)) + 16 * label, int(rng.integers(2, 20))
                width, height = int(rng.integers(8, 14)), int(rng.integers(8, 14))
                pixels[y : y + height, x : x + width] = COLOURS[label]
                classes[y : y + height, x : x + width] = label + 1
                data["annotations"].append(
                    {
                        "id": len(data["annotations"]),
                        "image_id": number,
                        "category_id": label + 1,
                        "bbox": [x, y, width, height],
                        "area": width * height,
                        "iscrowd": 0,
                        "segmentation": [
                            [x, y, x + width, y, x + width, y + height, x, y + height]
                        ],
                    }
                )
            Image.fromarray(pixels).save(folder / "images" / split / f"{name}.png")
            Image.fromarray(classes).save(folder / "masks" / split / f"{name}.png")
        path = folder / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(data))
    return folder


def recipe(name: str, **changes: Any) -> DenseRecipe:
    """Shrink a shipped recipe to seconds."""
    values = load_dense_recipe(name).model_dump()
    small: dict[str, Any] = {"epochs": None, "steps": 4, "checkpoint_steps": 2, "amp": "none"}
    small |= {"batch_size": 4, "shard_size": 2, "drop_path": 0.1, "sizes": {}}
    schedule = {**values["schedule"], "milestones": [], "warmup_steps": 1}
    images = {**values["train_images"], "short_sides": [48, 56], "longest_side": 80}
    images |= {"crop_branch": None}
    if values["task"] == "semantic":
        small["segmentation_shape"] = {"channels": 8, "pool_scales": [1, 2], "aux_channels": 8}
        images |= {"crop": 32, "ratio": [0.75, 1.25]}
    else:
        shape = {"channels": 8, "fc_dim": 16, "mask_convs": 1}
        small["detection_shape"] = {**values["detection_shape"], **shape}
        small["proposals"] = {**values["proposals"], "scale": 2, "samples": 32}
        small["proposals"] |= {"kept": 20, "kept_training": 20}
        small["regions"] = {**values["regions"], "samples": 16, "score_threshold": 0.0}
        small["regions"] |= {"finest_scale": 14, "kept": 20}
    small |= {"train_images": images, "schedule": schedule, "name": f"tiny_{name}"}
    small["test_images"] = {"short_side": 48, "longest_side": 80}
    return DenseRecipe.model_validate({**values, **small, **changes})


def dense_teacher(
    network: DenseNetwork, chosen: DenseRecipe, *, name: str = "a teacher", fingerprint: str = "one"
) -> DenseTeacher:
    """Make a teacher of a network on `architecture`, or one whose own network plays no part."""
    return DenseTeacher(
        network=network.eval(),
        name=name,
        fingerprint=fingerprint,
        target=architecture(),
        recipe=chosen,
        num_classes=network.options.num_classes,
    )
