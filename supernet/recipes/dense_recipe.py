"""`DenseRecipe`: how a detector or segmenter is built, trained and judged, from a complete file.

No field has a default: what is not in the file is not done. The shipped files stand in
``configs/recipes/dense``, each value with its source; ``mask_rcnn_3x:small`` names one of the
``sizes`` of a recipe.
"""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from searchspace.dense import DetectionHead, Head, SegmentationHead, check_head
from searchspace.map_rules import MapRules
from supernet.recipes.reading import read_recipe, write_recipe
from supernet.recipes.recipe import Count, NotNegative, Positive, Probability, Share

FOLDER = "recipes/dense"
Pair = tuple[Count, Count]
Range = tuple[Positive, Positive]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DetectionShape(_Part):
    """Sizes of a detector's heads, see `searchspace.dense.DetectionHead`."""

    channels: Count
    fc_dim: Count
    box_convs: int = Field(ge=0)
    mask_convs: Count


class SegmentationShape(_Part):
    """Sizes of UPerNet, see `searchspace.dense.SegmentationHead`."""

    channels: Count
    pool_scales: tuple[Count, ...] = Field(min_length=1)
    aux_channels: Count


class Proposals(_Part):
    """Anchors, and the network that turns them into proposals."""

    scale: Positive = Field(description="Side of an anchor over the stride of its level.")
    ratios: tuple[Positive, ...] = Field(min_length=1, description="Height over width.")
    positive: Probability = Field(description="IoU with an object that makes an anchor its.")
    negative: Probability = Field(description="Less with every object makes it background.")
    lowest: Probability = Field(description="An object's best anchors are its from here on.")
    samples: Count = Field(description="Anchors of an image that are learned from.")
    positive_share: Probability = Field(description="Of these, at most so many objects'.")
    border: int | None = Field(description="Pixels that anchors may stick out; null: any.")
    smooth_beta: NotNegative = Field(description="Of the smooth L1 loss; 0 for L1.")
    nms: Probability = Field(description="IoU from which a worse proposal is dropped.")
    per_level_training: Count = Field(description="Best of each level, before it.")
    per_level: Count = Field(description="The same in inference.")
    kept_training: Count = Field(description="Best of an image, behind it.")
    kept: Count = Field(description="The same in inference.")


class RegionStage(_Part):
    """What boxes one stage learns from."""

    positive: Probability = Field(description="IoU that makes a box an object's.")
    negative: Probability = Field(description="Less is background.")
    lowest: Probability | None = Field(description="An object's best boxes are its from here on.")
    stds: tuple[Positive, Positive, Positive, Positive] = Field(description="Of box offsets.")
    weight: Positive = Field(description="Of the stage's losses.")


class Regions(_Part):
    """The heads for boxes, classes and masks."""

    stages: tuple[RegionStage, ...] = Field(min_length=1)
    samples: Count = Field(description="Boxes of an image that are learned from.")
    positive_share: Probability = Field(description="Of these, at most so many objects'.")
    box_loss: Literal["l1", "giou"] = Field(description="On offsets, or on decoded boxes.")
    box_weight: Positive = Field(description="Of the box loss.")
    finest_scale: Positive = Field(description="Root of the area from which level 1 is read.")
    score_threshold: Probability = Field(description="Least probability of a detection.")
    nms: Probability = Field(description="IoU from which a worse detection is dropped.")
    kept: Count = Field(description="Detections of an image at most.")


class Segmentation(_Part):
    """Losses of a segmenter."""

    dropout: Share = Field(description="Of channels in front of the classifiers.")
    aux_weight: NotNegative = Field(description="Of the auxiliary head's loss.")


class CropBranch(_Part):
    """The second way to size an image in half of the cases: scaled, cropped, scaled again."""

    short_sides: tuple[Count, ...] = Field(min_length=1)
    size: Pair = Field(description="Least and largest side of the crop, drawn for each side.")


class Photometric(_Part):
    """mmsegmentation's PhotoMetricDistortion."""

    brightness_delta: float = Field(ge=0, le=255, description="At most so much is added to bytes.")
    contrast: Range = Field(description="Factor of the bytes.")
    saturation: Range = Field(description="Factor of HSV's saturation.")
    hue_delta: float = Field(ge=0, le=90, description="HSV's hue turns by at most so much of 180.")
    probability: Probability = Field(description="Of each of them.")


class TrainImages(_Part):
    """What is done to an image in training."""

    short_sides: tuple[Count, ...] = Field(
        min_length=1, description="One is drawn; the image is scaled to it, aspect ratio kept."
    )
    longest_side: Count = Field(description="Where the image would be longer, it is scaled to it.")
    ratio: Range | None = Field(description="Both sides times a factor from this range; null: 1.")
    crop_branch: CropBranch | None
    crop: Count | None = Field(description="Side of a random square; null: the whole image.")
    crop_max_share: Probability = Field(
        description="A crop with more of one class is drawn again, ten times; 1: never."
    )
    flip: Probability = Field(description="Of mirroring.")
    vertical_flip: Probability = Field(description="Of turning upside down.")
    photometric: Photometric | None


class TestImages(_Part):
    """What is done to an image that is judged; null for both leaves it as it is."""

    short_side: Count | None
    longest_side: Count | None


# A training of fewer steps than so many warm-ups has a shorter one.
SHORTEST_IN_WARMUPS = 5


class Schedule(_Part):
    """The learning rate, step by step."""

    kind: Literal["milestones", "poly"]
    milestones: tuple[Positive, ...] = Field(
        description="In the unit of the length (epochs or steps); times factor behind each."
    )
    factor: Share = Field(description="For milestones.")
    power: Positive = Field(description="For poly: (1 - step / steps) ** power.")
    min_lr: NotNegative = Field(description="For poly, where it ends.")
    warmup_steps: int = Field(
        ge=0, description="Linear, up to what the schedule says then; a fifth of all steps at most."
    )
    warmup_factor: Probability = Field(description="Where the warm-up starts, times that.")


class DenseRecipe(_Part):
    """A named, complete configuration of a detector or segmenter and its training."""

    name: str
    about: str
    source: str
    task: Literal["instance", "detection", "semantic"]
    head: Literal["faster_rcnn", "mask_rcnn", "cascade_mask_rcnn", "upernet"]
    detection_shape: DetectionShape | None
    segmentation_shape: SegmentationShape | None
    proposals: Proposals | None
    regions: Regions | None
    segmentation: Segmentation | None
    pad_convolutions: bool = Field(
        description="Zero-pad maps to multiples of the kernel in front of convolution blocks."
    )

    mean: tuple[Positive, Positive, Positive] = Field(description="Of the pixels, 0 to 255.")
    std: tuple[Positive, Positive, Positive]
    train_images: TrainImages
    test_images: TestImages
    pad_to: Count = Field(description="Sides of images are padded to a multiple of this.")

    epochs: Positive | None = Field(description="Length; null where steps says it.")
    steps: Count | None = Field(description="Length; null where epochs says it.")
    batch_size: Count = Field(description="Images in a step, over all devices.")
    shard_size: Count = Field(
        description="Images that pass through the network together: what batch norms see."
    )
    sync_batch_norm: bool = Field(
        description="Let batch norms see the shards of all devices (several GPUs only)."
    )
    checkpoint_steps: Count = Field(description="A checkpoint after so many.")

    optimizer: Literal["adamw"]
    lr: Positive
    betas: tuple[Share, Share]
    eps: Positive
    weight_decay: NotNegative
    no_weight_decay: tuple[str, ...] = Field(description="Patterns of parameters' names.")
    clip_grad: Positive | None = Field(description="Largest norm of all gradients; null: any.")
    schedule: Schedule
    drop_path: Share
    amp: Literal["none", "bf16", "fp16"]
    seed: int = Field(ge=0)
    sizes: dict[str, dict[str, Any]] = Field(description="What NAME:SIZE has instead.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_head(self.task, self.head)
        is_semantic = self.task == "semantic"
        needed = ("segmentation_shape", "segmentation")
        others = ("detection_shape", "proposals", "regions")
        for name in (*needed, *others):
            if (getattr(self, name) is not None) != ((name in needed) == is_semantic):
                raise ValueError(
                    f"{name} belongs to {'semantic' if name in needed else 'detection'} heads: "
                    f"with the head {self.head} it must be "
                    f"{'null' if getattr(self, name) is not None else 'written'}. Correct it."
                )
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                "A recipe has one length: epochs or steps, and null for the other, got "
                f"{self.epochs} and {self.steps}. Write one."
            )
        if self.batch_size % self.shard_size:
            raise ValueError(
                "A batch is made of whole shards, so shard_size must divide batch_size, got "
                f"{self.shard_size} and {self.batch_size}. Change one of them."
            )
        if self.regions is not None and len(self.regions.stages) != self.head_shape_stages:
            raise ValueError(
                f"The head {self.head} has {self.head_shape_stages} stages, got "
                f"{len(self.regions.stages)} in regions.stages. Write as many."
            )
        return self

    @property
    def head_shape_stages(self) -> int:
        """The number of box heads."""
        return 3 if self.head == "cascade_mask_rcnn" else 1

    @property
    def num_shards(self) -> int:
        """The number of shards of a batch."""
        return self.batch_size // self.shard_size

    @property
    def rules(self) -> MapRules:
        """What the backbone does at the border of a map."""
        return MapRules(keeps_windows=True, pads_convolutions=self.pad_convolutions)

    def head_shape(self) -> Head:
        """Return the head as a value that costs and networks are made of."""
        if self.segmentation_shape is not None:
            return SegmentationHead(**self.segmentation_shape.model_dump())
        assert self.detection_shape is not None
        assert self.proposals is not None
        return DetectionHead(
            stages=self.head_shape_stages,
            has_masks=self.task == "instance",
            num_anchors=len(self.proposals.ratios),
            **self.detection_shape.model_dump(),
        )

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return the number of steps."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(round(self.epochs * steps_per_epoch), 1)

    def length(self) -> str:
        """Name the length: ``12e`` or ``160000s``."""
        return f"{self.epochs:g}e" if self.epochs is not None else f"{self.steps}s"

    def check_task(self, task: str) -> None:
        """Refuse it for another task.

        Raises:
            ValueError: If it is of another one.
        """
        if self.task != task:
            raise ValueError(
                f"The recipe {self.name} is one for --task {self.task}, got --task {task}. "
                "Choose another recipe; search recipes lists them."
            )

    def is_decayed(self, name: str) -> bool:
        """Tell whether a parameter has weight decay."""
        return not any(fnmatchcase(name, pattern) for pattern in self.no_weight_decay)

    def lr_at(self, step: int, steps: int) -> float:
        """Return the learning rate of a step, of which there are so many (mmcv 1.3's hooks).

        Short trials of a search are no warm-up only: it takes a fifth of the steps at most.
        """
        schedule = self.schedule
        if schedule.kind == "poly":
            share = (1 - step / steps) ** schedule.power
            lr = (self.lr - schedule.min_lr) * share + schedule.min_lr
        else:
            length = self.epochs or self.steps or 1
            passed = sum(step * length >= at * steps for at in schedule.milestones)
            lr = self.lr * schedule.factor**passed
        warmup_steps = min(schedule.warmup_steps, steps / SHORTEST_IN_WARMUPS)
        if step < warmup_steps:
            lr *= 1 - (1 - step / warmup_steps) * (1 - schedule.warmup_factor)
        return lr


def load_dense_recipe(name_or_path: str) -> DenseRecipe:
    """Read a recipe by its name or path, e.g. ``mask_rcnn_3x:base``; see `read_recipe`."""
    return read_recipe(DenseRecipe, FOLDER, name_or_path)


def dump_dense_recipe(recipe: DenseRecipe) -> str:
    """Write a recipe as the text of a file that `load_dense_recipe` reads."""
    return write_recipe(recipe)


def with_length(
    recipe: DenseRecipe, *, epochs: float | None = None, steps: int | None = None
) -> DenseRecipe:
    """Stretch or shorten a recipe; milestones move along, the warm-up stays as it is.

    Raises:
        ValueError: If both lengths are given, or one that is not positive.
    """
    if epochs is None and steps is None:
        return recipe
    given = [length for length in (epochs, steps) if length is not None]
    if len(given) != 1 or not 0 < given[0] < math.inf:
        raise ValueError(
            "A training has one length, finite and above 0: --epochs or --steps, got "
            f"{' and '.join(map(str, given))}. Write one of them."
        )
    ratio = (epochs or steps or 1) / (recipe.epochs or recipe.steps or 1)
    milestones = tuple(at * ratio for at in recipe.schedule.milestones)
    schedule = {**recipe.schedule.model_dump(), "milestones": milestones}
    values = {**recipe.model_dump(), "epochs": epochs, "steps": steps, "schedule": schedule}
    return DenseRecipe.model_validate(values)


def dense_in_shards(recipe: DenseRecipe, parts: int) -> DenseRecipe:
    """Split every shard of a batch into so many parts, where its images allow it."""
    size = recipe.shard_size
    size = size // parts if size % parts == 0 else 1 if parts > 1 else size
    return recipe.model_copy(update={"shard_size": size})
