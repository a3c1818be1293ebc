"""`Recipe`: everything that decides how a network is trained, read from a complete YAML file.

No field but distillation has a default: what is not in the file is not done. The shipped files
stand in ``configs/recipes``, each value with its source. What a model size changes stands in
``sizes``, and ``swin_300e:base`` names the recipe of one of them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from timm.data.auto_augment import (
    augment_and_mix_transform,
    auto_augment_transform,
    rand_augment_transform,
)
from timm.optim import get_optimizer_info, list_optimizers

from supernet.recipes.reading import read_recipe, write_recipe

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


class TokenLabels(BaseModel):
    """Token labelling (Jiang et al. 2021): a loss at every token, on a teacher's label maps."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dense_weight: NotNegative = Field(description="Of the mean loss of all tokens.")
    cls_weight: Positive = Field(description="Of the loss of the class logits.")
    ground_truth: bool = Field(
        description="Class target: half truth and half teacher where they agree, a tenth truth "
        "where they do not; false: the teacher's."
    )
    mix_token: NotNegative = Field(
        description="Beta(a, a) of MixToken's share, after the patch embedding; 0 turns it off."
    )


class Distillation(BaseModel):
    """How a network learns from a teacher; see `supernet.training.distillation`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: Probability = Field(
        description="Of the loss on the teacher's logits; the rest is that of the labels' loss."
    )
    temperature: Positive = Field(description="By which both logits are divided.")
    tokens: NotNegative = Field(
        default=0.0,
        description="Of the cosine distance of the maps behind the stages; for a teacher with maps "
        "of the same sizes and widths, as that of a graft.",
    )
    features: NotNegative = Field(
        default=0.0,
        description="Of the difference in which images have similar features in front of the "
        "classifier, of whatever width (Tung and Mori 2019).",
    )
    labels_from: Share = Field(
        default=0.0,
        description="Share of the epochs in which labels do not count; tokens count in these "
        "alone, where there are any.",
    )


class Recipe(BaseModel):
    """A named, complete training configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="What commands call it; the name of a shipped file.")
    about: str = Field(description="One line for lists of recipes.")
    source: str = Field(description="Where the values come from.")

    epochs: Count = Field(description="Length of the cosine, warm-up included.")
    warmup_epochs: NotNegative = Field(description="Linear warm-up; may be a fraction.")
    cooldown_epochs: int = Field(ge=0, description="Epochs at min_lr after the cosine.")
    schedule: Literal["step", "epoch"] = Field(description="When the learning rate changes.")
    batch_size: Count = Field(description="Images in a step, over all devices.")
    shard_size: Count | None = Field(
        description="Images that pass through the network together, so what batch norms and Mixup "
        "see; a step's gradients are the mean over its shards, on however many devices. Null: "
        "the whole batch."
    )
    repeated_augmentation: Count = Field(
        description="Times that an image is in an epoch, each time augmented anew, of so many "
        "fewer images; 1 for none (Hoffer et al. 2020)."
    )

    optimizer: str = Field(description="timm's name of an optimiser with two betas, e.g. adamw.")
    lr: Positive = Field(description="Peak learning rate, before lr_scaling.")
    lr_scaling: Literal["literal", "linear", "peak"] = Field(
        description="linear: lr, warmup_lr and min_lr times batch_size / lr_base_batch; peak: lr "
        "alone; literal: none."
    )
    lr_base_batch: Count | None = Field(description="For linear and peak; null for literal.")
    warmup_lr: NotNegative = Field(description="Where the warm-up starts.")
    min_lr: NotNegative = Field(description="Where the cosine ends.")
    weight_decay: NotNegative = Field(description="None on biases and other 1-D parameters.")
    no_weight_decay: tuple[str, ...] = Field(
        description="Patterns of further parameters without weight decay, e.g. '*table_bias'."
    )
    betas: tuple[Share, Share] = Field(description="Decay of the averages of both moments.")
    eps: Positive = Field(description="Added to the root of the second moment.")
    clip_grad: Positive | None = Field(description="Largest norm of all gradients; null: any.")
    label_smoothing: Share = Field(description="Of the target, spread over all classes.")
    token_labels: TokenLabels | None = Field(description="Token labelling; null for none.")
    distillation: Distillation | None = Field(
        default=None, description="With --teacher; null, or left out: no teacher is taken."
    )
    bad_loss: Literal["stop", "skip", "rollback"] = Field(
        description="When a loss is not finite: stop; leave the step out, at most 20 in a row; or "
        "go back to the last checkpoint and on with another order, at most 3 times."
    )

    mixup: NotNegative = Field(description="Alpha of Mixup; 0 turns it off.")
    cutmix: NotNegative = Field(description="Alpha of CutMix; 0 turns it off.")
    mixup_prob: Probability = Field(description="Share of batches with Mixup or CutMix.")
    mixup_switch_prob: Probability = Field(description="Of these, CutMix where both are on.")

    auto_augment: str | None = Field(description="timm's string, e.g. rand-m9-mstd0.5-inc1.")
    color_jitter: Annotated[float, Field(ge=0, le=1)] | None = Field(
        description="Brightness, contrast, saturation. timm skips it where auto_augment is on."
    )
    random_erasing: Probability = Field(description="Share of images with an erased rectangle.")
    random_erasing_count: Count = Field(description="Most rectangles in an image.")
    random_erasing_mode: Literal["const", "rand", "pixel"] = Field(
        description="Filled with the mean, one random colour, or a random colour in each pixel."
    )
    random_erasing_place: Literal["before_mixup", "after_mixup"] = Field(
        description="After it, a rectangle is erased from both of the images that were mixed."
    )
    hflip: Probability = Field(description="Mirroring; never done where the data forbids it.")
    random_crop_padding: int = Field(
        ge=0,
        description="Pixels around an image before a crop of its size; 0 for none. Images that "
        "are stored larger than the network sees them are cropped from what there is.",
    )
    random_crop_padding_mode: Literal["zero", "reflect"] = Field(
        description="Black, or the image mirrored at its border."
    )
    random_resized_crop: tuple[Positive, Positive] | None = Field(
        description="Least and largest share of the area of a resized crop, of aspect ratio 3/4 to "
        "4/3; null for no resizing."
    )
    train_interpolation: Literal["random", "bilinear", "bicubic"] = Field(
        description="Of resized crops and of auto_augment's rotations and shears."
    )
    crop_pct: Annotated[float, Field(gt=0, le=2)] | None = Field(
        description="Central share of the shorter side that evaluation sees, scaled to the image "
        "size; above 1 with a black frame; null: the central img_size pixels as they are."
    )
    crop_mode: Literal["center", "squash"] = Field(
        description="Evaluation keeps the aspect ratio (center), or scales both sides to the size "
        "(squash); prepared arrays hold central squares, where both are one."
    )
    eval_interpolation: Literal["bilinear", "bicubic"] = Field(
        description="Of evaluation's scaling."
    )

    drop_path: Share = Field(description="Stochastic depth of the last block, linear from 0.")
    ema_decay: Share | None = Field(description="Of the averaged weights; null for none.")
    ema_warmup: bool = Field(description="Average over fewer steps at first (timm's warm-up).")

    amp: Literal["none", "bf16", "fp16"] = Field(description="Mixed precision; fp16 is scaled.")
    channels_last: bool = Field(description="Memory layout of images and convolutions.")
    gradient_checkpointing: bool = Field(
        description="Compute every block twice and keep less in memory; the same numbers."
    )
    compile: bool = Field(description="Run the network through torch.compile.")
    seed: int = Field(ge=0, description="Of weights and training, unless the caller has another.")
    sizes: dict[str, dict[str, Any]] = Field(
        description="What the recipe NAME:SIZE has instead, by size; the values above hold for "
        "the first size, or for all."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_optimizer(self.optimizer)
        _check_auto_augment(self.auto_augment)
        if (self.lr_scaling == "literal") == (self.lr_base_batch is not None):
            raise ValueError(
                "lr_base_batch is the batch that lr holds for, and goes with lr_scaling linear "
                f"or peak, got lr_scaling {self.lr_scaling} and lr_base_batch "
                f"{self.lr_base_batch}. Write a number for these, null for literal."
            )
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                "The warm-up is part of the epochs and cannot be longer, got warmup_epochs "
                f"{self.warmup_epochs:g} and epochs {self.epochs}. Shorten the warm-up."
            )
        if max(self.min_lr, self.warmup_lr) > self.lr:
            raise ValueError(
                f"lr is the peak, got lr {self.lr:g}, warmup_lr {self.warmup_lr:g} and min_lr "
                f"{self.min_lr:g}. Lower these two, or raise lr."
            )
        if self.batch_size % (self.shard_size or 1):
            raise ValueError(
                "A batch is made of whole shards, so shard_size must divide batch_size, "
                f"got {self.shard_size} and {self.batch_size}. Change one of them."
            )
        if self.mixes and (self.shard_size or self.batch_size) % 2:
            raise ValueError(
                "Mixup and CutMix pair the images of a batch, so batch_size and shard_size must "
                f"be even, got {self.batch_size} and {self.shard_size}. Make them even."
            )
        if self.mixes and self.token_labels:
            raise ValueError(
                "Token labels are mixed by MixToken, so mixup and cutmix must be 0 with "
                f"token_labels, got {self.mixup:g} and {self.cutmix:g}. Turn them off."
            )
        if self.compile and (self.gradient_checkpointing or self.token_labels):
            raise ValueError(
                "compile does not go with gradient_checkpointing or token_labels, which hook into "
                "the network's parts. Turn one of them off."
            )
        if self.token_labels and not self.random_resized_crop:
            raise ValueError(
                "Label maps are cropped with the images, so token_labels need random_resized_crop, "
                "got null. Write e.g. [0.08, 1.0]."
            )
        scale = self.random_resized_crop
        if scale and (self.random_crop_padding or not scale[0] <= scale[1] <= 1):
            raise ValueError(
                "random_resized_crop is [least, largest] with least <= largest <= 1, and takes "
                f"the place of random_crop_padding, got {list(scale)} and "
                f"{self.random_crop_padding}. Set one of them to null or 0."
            )
        return self

    @property
    def total_epochs(self) -> int:
        """The number of epochs with the cool-down."""
        return self.epochs + self.cooldown_epochs

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed, so that targets are probabilities."""
        return self.mixup_prob > 0 and max(self.mixup, self.cutmix) > 0

    @property
    def num_shards(self) -> int:
        """The number of shards of a whole batch."""
        return self.batch_size // (self.shard_size or self.batch_size)

    def lr_factor(self, batch_size: int) -> float:
        """Return what warmup_lr and min_lr are multiplied by at a global batch size."""
        return self._batch_ratio(batch_size) if self.lr_scaling == "linear" else 1.0

    def peak_lr(self, batch_size: int) -> float:
        """Return the peak learning rate at a global batch size."""
        return self.lr * self._batch_ratio(batch_size)

    def _batch_ratio(self, batch_size: int) -> float:
        return batch_size / self.lr_base_batch if self.lr_base_batch else 1.0


def load_recipe(name_or_path: str) -> Recipe:
    """Read a recipe by its name or path, e.g. ``swin_300e:base``; see `read_recipe`."""
    return read_recipe(Recipe, "recipes", name_or_path)


def dump_recipe(recipe: Recipe) -> str:
    """Write a recipe as the text of a file that `load_recipe` reads."""
    return write_recipe(recipe)


def with_epochs(recipe: Recipe, epochs: int) -> Recipe:
    """Stretch or shorten a recipe to ``epochs`` in all: warm-up and cool-down in proportion.

    Where less than an epoch is left of the warm-up, the rate changes every step: one that changes
    once an epoch would stay where the warm-up starts for all of the first.
    """
    cooldown = min(round(recipe.cooldown_epochs * epochs / recipe.total_epochs), epochs - 1)
    cosine = epochs - cooldown
    warmup = recipe.warmup_epochs * cosine / recipe.epochs
    return Recipe.model_validate(
        {
            **recipe.model_dump(),
            "epochs": cosine,
            "cooldown_epochs": cooldown,
            "warmup_epochs": warmup,
            "schedule": "step" if 0 < warmup < 1 else recipe.schedule,
        }
    )


def in_shards(recipe: Recipe, parts: int) -> Recipe:
    """Split the batches of a recipe, or the shards that it has, into ``parts``: less memory.

    What does not divide evenly (into pairs, where Mixup or CutMix mix) stays whole.
    """
    size, rest = divmod(recipe.shard_size or recipe.batch_size, parts)
    if parts == 1 or rest or size < 1 or (recipe.mixes and size % 2):
        return recipe
    return Recipe.model_validate({**recipe.model_dump(), "shard_size": size})


def _check_optimizer(name: str) -> None:
    info = get_optimizer_info(name) if name in list_optimizers() else None
    # One of second order wants gradients of gradients, which no training here makes.
    if info is None or not info.has_betas or info.num_betas != 2 or info.second_order:
        raise ValueError(
            f"optimizer: timm has no optimiser {name!r} with two betas and of first order. "
            "Write e.g. adamw, nadamw, lamb or lion."
        )


def _check_auto_augment(text: str | None) -> None:
    if text is None:
        return
    policy = text.partition("-")[0]
    build = {"rand": rand_augment_transform, "augmix": augment_and_mix_transform}.get(
        policy, auto_augment_transform
    )
    try:
        build(text, {})
    except (AssertionError, ValueError, KeyError) as error:
        raise ValueError(
            f"auto_augment: timm cannot read {text!r} ({error}). "
            "Write e.g. 'rand-m9-mstd0.5-inc1', or null."
        ) from error
