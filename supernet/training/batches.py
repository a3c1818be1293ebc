"""Batches of images: those of training, as a recipe asks, and the plain ones of evaluation.

Order and augmentation are functions of seed, epoch, batch and shard number alone, so any number of
processes and loader workers makes the same batches.

Shape suffixes: B images, H and W their sides in pixels, C channels.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_eval
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from supernet.data import CROP_FRACTION, ImageData, JoinedStreams, Split, StreamedImages
from supernet.recipes import Recipe
from supernet.training.augmentation import Augmentation, IntArray, PixelArray, normalize
from supernet.training.finishing import Finish, normalized
from supernet.training.seeding import derived_seed
from supernet.training.token_labels import CroppedMaps, LabelMaps


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """Images that pass through the network together, as bytes.

    Attributes:
        pixels: Shape (B, img_size, img_size, 3), uint8.
        labels: Class indices (B,).
        finish: Makes of them what a network sees, and what it is to say.
        maps: The label maps of the images, cropped as they are, where the recipe has token labels.
        share: Of the images of the step; the weight of the shard's loss.
        labelled: Share of the images of the step that have a class.
        read_seconds: Spent on reading and decoding.
        augment_seconds: Spent on augmentation, up to the pixels.
    """

    pixels: Tensor
    labels: Tensor
    finish: Finish
    maps: CroppedMaps | None
    share: float
    read_seconds: float
    augment_seconds: float
    labelled: float = 1.0

    def __len__(self) -> int:
        return len(self.labels)

    def finished(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Mirror, normalise, erase and mix the images on a device.

        Returns:
            Images (B, 3, img_size, img_size), and class indices (B,), or class probabilities
            (B, num_classes) where the recipe mixes.
        """
        place = torch.device(device)
        pixels, labels = (x.to(place, non_blocking=True) for x in (self.pixels, self.labels))
        return self.finish.to(place)(pixels, labels)

    def pin_memory(self) -> Shard:
        """Put the tensors where a GPU fetches them while it computes; `DataLoader` asks for it."""
        return replace(
            self,
            pixels=self.pixels.pin_memory(),
            labels=self.labels.pin_memory(),
            finish=self.finish.pin_memory(),
        )


def steps_per_epoch(num_images: int, recipe: Recipe) -> int:
    """Return the number of batches that `train_batches` makes of so many images."""
    return max(num_images // recipe.batch_size, 1)


def count_shards(num_images: int, recipe: Recipe, world_size: int) -> int:
    """Return the number of shards of a step; where it is no multiple, some processes take one more.

    Raises:
        ValueError: If there are fewer shards than processes that train together.
    """
    num_shards = shards_of(num_images, recipe)
    if num_shards < world_size:
        batch = min(recipe.batch_size, num_images)
        raise ValueError(
            "Every process takes a shard of a batch, so there must be as many of them, got "
            f"{num_shards} shards and {world_size} processes. Set the recipe's shard_size, e.g. to "
            f"{max(batch // world_size, 1)}."
        )
    return num_shards


def shards_of(num_images: int, recipe: Recipe) -> int:
    """Return the number of shards of a step on so many images.

    Where an only batch does not fill them, all have two images at least, unless the recipe says
    one: Mixup pairs images, and batch norms of pooled maps learn nothing from one.
    """
    batch = min(recipe.batch_size, num_images)
    size = recipe.shard_size or batch
    return max(min(-(-batch // size), batch // min(size, 2)), 1)


def with_shards_for(recipe: Recipe, num_images: int, devices: int) -> Recipe:
    """Return a recipe whose batches have a shard for each device: smaller ones where need be.

    Smaller shards are another training: batch norms and Mixup see fewer images at a time. The
    largest that do are taken, of at least two images.

    Raises:
        ValueError: If there are more devices than pairs of images in a batch.
    """
    batch = min(recipe.batch_size, num_images)
    if shards_of(num_images, recipe) >= devices:
        return recipe
    fitting = [
        size
        for size in range(2, batch // devices + 1)
        if recipe.batch_size % size == 0
        and batch // -(-batch // size) >= 2
        and not (size % 2 and (recipe.mixes or recipe.token_labels))
    ]
    if not fitting:
        raise ValueError(
            f"Every device takes at least two images of a batch of {batch}, got {devices} devices "
            f"and {_shards_text(recipe)}. Ask for fewer devices, or enlarge the recipe's "
            "batch_size."
        )
    return Recipe.model_validate({**recipe.model_dump(), "shard_size": max(fitting)})


def _shards_text(recipe: Recipe) -> str:
    return "1 shard" if recipe.num_shards == 1 else f"{recipe.num_shards} shards"


def train_batches(
    split: Split, data: ImageData, recipe: Recipe, *, epoch: int, seed: int, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Make one epoch's augmented batches in random order, each in one piece.

    An incomplete last batch is left out, unless it is the only one. Mixup needs pairs: of an only
    batch of odd length one image is left out.

    Args:
        split: The images, of side ``data.stored_size``, or streamed.
        data: Says how to normalise, the side that networks see, and whether flips are allowed.
        epoch: Counts from 0.
        workers: Processes that make them; 0 for this one.

    Yields:
        Images of shape (B, 3, img_size, img_size), normalised; targets: class indices of shape
        (B,), or class probabilities of shape (B, num_classes) where the recipe mixes images.
        Label smoothing is left to the loss.

    Raises:
        ValueError: If there are fewer than two images.
    """
    whole = recipe.model_copy(update={"shard_size": None})
    for (shard,) in train_shards(split, data, whole, epoch=epoch, seed=seed, workers=workers):
        yield shard.finished()


def train_shards(
    split: Split,
    data: ImageData,
    recipe: Recipe,
    *,
    epoch: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    maps: LabelMaps | None = None,
) -> Iterator[list[Shard]]:
    """Make one epoch's batches as `train_batches` does, each as the list of its shards.

    Args:
        rank: This process takes the shards ``rank``, ``rank + world_size``, ... of a step.
        world_size: The number of processes.
        maps: Label maps of the images, for a recipe with token labels.

    Raises:
        ValueError: If there are too few images for the processes.
    """
    loader = TrainLoader(
        split, data, recipe, rank=rank, world_size=world_size, workers=workers, maps=maps
    )
    return loader.epoch(epoch, seed)


class TrainLoader:
    """Makes epoch after epoch of `train_shards`; its workers are started once.

    Args:
        rank, world_size, workers, maps: As for `train_shards`.

    Raises:
        ValueError: If there are too few images, or for the processes.
    """

    def __init__(
        self,
        split: Split,
        data: ImageData,
        recipe: Recipe,
        *,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        maps: LabelMaps | None = None,
    ) -> None:
        if len(split) < 2:
            raise ValueError(f"Training needs at least 2 images, got {len(split)}. Add images.")
        num_shards = count_shards(len(split), recipe, world_size)
        self._steps = steps_per_epoch(len(split), recipe)
        self._numbers = range(rank, num_shards, world_size)
        self._wanted: list[_Place] = []
        self._maker = _ShardMaker(
            split=split,
            recipe=recipe,
            num_shards=num_shards,
            maps=maps,
            augment=Augmentation.of(data, recipe),
        )
        # Order is kept; a worker makes whole shards, one after another. The list of what is wanted
        # is read anew at the start of every epoch.
        self._shards: Iterable[Shard] = (
            DataLoader(
                self._maker,
                batch_size=None,
                sampler=self._wanted,
                num_workers=workers,
                persistent_workers=True,
                pin_memory=torch.cuda.is_available(),
            )
            if workers
            else _Mapped(self._maker, self._wanted)
        )

    def epoch(self, epoch: int, seed: int, *, start: int = 0) -> Iterator[list[Shard]]:
        """Make the shards of an epoch; an epoch that is under way ends there.

        Args:
            start: The first step to make; nothing is read for those before it.
        """
        self._wanted[:] = [
            _Place(seed, epoch, step, number)
            for step in range(start, self._steps)
            for number in self._numbers
        ]
        shards = iter(self._shards)
        while step := list(islice(shards, len(self._numbers))):
            yield step


def eval_batches(
    split: Split,
    data: ImageData,
    batch_size: int,
    crop_pct: float | None = None,
    *,
    crop_mode: str = "center",
    interpolation: str = "bicubic",
    workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Make batches of all images in their order, cropped at the centre and normalised.

    Args:
        crop_pct: Share of the side that is seen, scaled to ``img_size``, above 1 with a black
            frame; None takes the central ``img_size`` pixels of stored images as they are, and
            0.875 of streamed ones.
        crop_mode: For streamed images, as in timm; stored ones are central squares.
        interpolation: Of the scaling.

    Yields:
        Images of shape (B, 3, img_size, img_size) and class indices of shape (B,).
    """
    maker = _EvalMaker(split, data, batch_size, crop_pct, crop_mode, interpolation)
    firsts = range(0, len(split), batch_size)
    if workers:
        yield from DataLoader(maker, batch_size=None, sampler=list(firsts), num_workers=workers)
    else:
        yield from map(maker.__getitem__, firsts)


@dataclass(frozen=True, slots=True)
class PixelBatches:
    """The batches of `eval_batches`, kept as bytes on a device and normalised whenever they pass.

    A quarter of the memory of floats, and the same bits.
    """

    data: ImageData
    batches: Sequence[tuple[Tensor, Tensor]]

    @classmethod
    def of(
        cls, split: Split, data: ImageData, batch_size: int, device: str, *, workers: int = 0
    ) -> PixelBatches:
        """Read and crop all images of a split.

        Args:
            workers: Processes that do so; 0 for this one.
        """
        maker = _PixelMaker(_EvalMaker(split, data, batch_size, None, "center", "bicubic"))
        firsts = range(0, len(split), batch_size)
        made: Iterable[tuple[Tensor, Tensor]] = map(maker.__getitem__, firsts)
        if workers:
            made = DataLoader(
                maker,
                batch_size=None,
                sampler=list(firsts),
                num_workers=workers,
                prefetch_factor=1,  # whole batches, in memory that all processes share
            )
        return cls(data, [(images.to(device), labels.to(device)) for images, labels in made])

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for pixels, labels in self.batches:
            yield normalized(pixels, self.data.mean, self.data.std), labels


def seen_share(data: ImageData, crop_pct: float | None) -> float:
    """Return the share of an image's side that `eval_batches` shows, as timm's ``crop_pct``."""
    if crop_pct is not None:
        return crop_pct
    return CROP_FRACTION if data.is_streamed else data.img_size / data.stored_size


def seen_mode(data: ImageData, crop_mode: str) -> str:
    """Return what `eval_batches` does to an image's shape, as timm's ``crop_mode``."""
    return crop_mode if data.is_streamed else "center"


@lru_cache(maxsize=2)
def _epoch_order(num_images: int, repeats: int, seed: int, epoch: int) -> IntArray:
    rng = np.random.default_rng(derived_seed(seed, "order", epoch))
    # The copies of an image go to different shards, as DeiT's sampler gives them to its GPUs.
    return np.repeat(rng.permutation(num_images), repeats)[:num_images]


class _Place(NamedTuple):
    """Which shard is wanted."""

    seed: int
    epoch: int
    step: int
    number: int


@dataclass(frozen=True, slots=True)
class _Mapped:
    """Makes the shards that are wanted in this process."""

    maker: _ShardMaker
    wanted: list[_Place]

    def __iter__(self) -> Iterator[Shard]:
        return map(self.maker.__getitem__, list(self.wanted))


@dataclass(frozen=True, kw_only=True, slots=True)
class _ShardMaker(Dataset[Shard]):
    """Makes any shard of any epoch, in whatever process it runs."""

    split: Split
    recipe: Recipe
    num_shards: int
    maps: LabelMaps | None
    augment: Augmentation

    def __getitem__(self, place: _Place) -> Shard:
        seed, epoch, step, number = place
        repeats = self.recipe.repeated_augmentation
        order = _epoch_order(len(self.split), repeats, seed, epoch)
        batch = order[step * self.recipe.batch_size :][: self.recipe.batch_size]
        shards = [batch[start :: self.num_shards] for start in range(self.num_shards)]
        if self.recipe.mixes or self.maps is not None:
            shards = [rows[: len(rows) // 2 * 2] for rows in shards]
        rows, images_of_step = shards[number], np.concatenate(shards)
        # A batch in one piece has no shard number, so that its images are those of older versions.
        parts = (step,) if self.num_shards == 1 else (step, number)
        started = time.perf_counter()
        stored = self.split.images
        images = stored[rows] if isinstance(stored, np.ndarray) else stored.read(rows)
        labels = torch.from_numpy(self.split.labels[rows])
        cropped = None if self.maps is None else [self.maps.load(row) for row in rows.tolist()]
        read = time.perf_counter()
        own_seed = derived_seed(seed, "batch", epoch, *parts)
        pixels, finish, maps = self.augment(images, own_seed, cropped)
        return Shard(
            pixels=torch.from_numpy(pixels),
            labels=labels,
            finish=finish,
            maps=maps,
            share=len(rows) / len(images_of_step),
            labelled=float((self.split.labels[images_of_step] >= 0).mean()),
            read_seconds=read - started,
            augment_seconds=time.perf_counter() - read,
        )


@dataclass(frozen=True, slots=True)
class _EvalMaker(Dataset[tuple[Tensor, Tensor]]):
    """Makes the evaluation batch that begins at any image."""

    split: Split
    data: ImageData
    batch_size: int
    crop_pct: float | None
    crop_mode: str
    interpolation: str

    def __getitem__(self, first: int) -> tuple[Tensor, Tensor]:
        pixels, labels = self.pixels(first)
        images = normalize(pixels, self.data)
        if pixels.shape[1] == self.data.img_size:
            return images, labels
        size, mode = self.data.img_size, self.interpolation
        return F.interpolate(images, size, mode=mode, antialias=True), labels

    def pixels(self, first: int) -> tuple[PixelArray, Tensor]:
        """Return the batch as bytes (B, S, S, 3): of the side of the crop where it is scaled."""
        chunk = slice(first, first + self.batch_size)
        labels = torch.from_numpy(np.array(self.split.labels[chunk]))
        stored = self.split.images
        if isinstance(stored, StreamedImages | JoinedStreams):
            return self._transformed(stored.read(np.arange(first, first + len(labels)))), labels
        return self._cropped(stored[chunk]), labels

    def _transformed(self, images: Sequence[Image.Image]) -> PixelArray:
        transform = transforms_imagenet_eval(
            self.data.img_size,
            crop_pct=self.crop_pct or CROP_FRACTION,
            crop_mode=self.crop_mode,
            interpolation=self.interpolation,
            normalize=False,
        )
        pixels = torch.stack([transform(image) for image in images])
        found: PixelArray = pixels.permute(0, 2, 3, 1).numpy()
        return found

    def _cropped(self, images_BHWC: PixelArray) -> PixelArray:
        stored, wanted = images_BHWC.shape[1], self.data.img_size
        side = wanted if self.crop_pct is None else round(stored * self.crop_pct)
        if side > stored:
            before = (side - stored) // 2
            frame = (before, side - stored - before)
            images_BHWC = np.pad(images_BHWC, ((0, 0), frame, frame, (0, 0)))
            stored = side
        start = (stored - side) // 2
        centre = slice(start, start + side)
        return np.array(images_BHWC[:, centre, centre])


@dataclass(frozen=True, slots=True)
class _PixelMaker(Dataset[tuple[Tensor, Tensor]]):
    """Makes the bytes of the evaluation batch that begins at any image."""

    maker: _EvalMaker

    def __getitem__(self, first: int) -> tuple[Tensor, Tensor]:
        pixels, labels = self.maker.pixels(first)
        return torch.from_numpy(pixels), labels
