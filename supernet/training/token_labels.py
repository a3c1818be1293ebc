"""Token labelling (Jiang et al. 2021, arXiv 2104.10858): a loss at every token, and MixToken.

A teacher's label maps are files ``<folder>/<class>/<image>.pt``, as the published sets have them: a
half-precision tensor (2, K, H, W), the teacher's K largest logits at each place of the whole image
and their classes. Training crops the maps as it crops the images.

The published code gives `roi_align` the crop's rows as x and its columns as y; here columns are x,
so that a token's target is what lies under it. Logits that a map leaves out count as 0, as there.

Shape suffixes: B images, C classes, N tokens, K stored logits of a place.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor, nn
from torchvision.ops import roi_align
from torchvision.transforms.functional import hflip, resized_crop

from supernet.recipes import TokenLabels

# Of a split's label maps, so many are read before a training starts; all are hashed.
LOOKED_INTO = 64


@dataclass(frozen=True, slots=True)
class LabelMaps:
    """The label maps of a split's images.

    Attributes:
        folder: Holds ``<class>/<image>.pt``.
        names: Of the images by row, ``.../<class>/<image>.<suffix>``.
        num_classes: That a map may name; None does not look.
    """

    folder: Path
    names: Sequence[str]
    num_classes: int | None = None

    def load(self, row: int) -> Tensor:
        """Read the map (2, K, H, W) of an image: logits and their classes.

        Raises:
            ValueError: If the file is missing or something else.
        """
        path = self._path(row)
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except OSError as error:
            raise _missing(path, error) from error
        except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"The label map {path} cannot be read ({type(error).__name__}). Make it anew, or "
                "take it from a copy."
            ) from error
        if not isinstance(found, Tensor) or found.ndim != 4 or len(found) != 2:
            raise ValueError(
                f"A label map is a tensor (2, K, H, W) of logits and classes, {path} is "
                f"{tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__}. "
                "Make it as TokenLabeling's generate_label.py does."
            )
        maps = found.float()
        self._check_classes(maps[1], path)
        return maps

    def fingerprint(self) -> str:
        """Hash all maps, and look into some of them.

        Raises:
            ValueError: If one is missing, or one that was looked into is something else.
        """
        digest = hashlib.sha256()
        for row in range(len(self.names)):
            path = self._path(row)
            try:
                content = path.read_bytes()
            except OSError as error:
                raise _missing(path, error) from error
            digest.update(hashlib.sha256(content).digest())
        for row in range(0, len(self.names), max(len(self.names) // LOOKED_INTO, 1)):
            self.load(row)
        return digest.hexdigest()

    def _path(self, row: int) -> Path:
        *folders, image = self.names[row].split("/")[-2:]
        # The published sets name a map after what stands before the first dot.
        return self.folder.joinpath(*folders, f"{image.split('.')[0]}.pt")

    def _check_classes(self, classes: Tensor, path: Path) -> None:
        if self.num_classes is None:
            return
        low, high = float(classes.min()), float(classes.max())
        if not 0 <= low <= high < self.num_classes:
            raise ValueError(
                f"A label map names classes of the data, 0 to {self.num_classes - 1}; {path} has "
                f"{low:g} to {high:g}. Give the folder of the maps of these images."
            )


def _missing(path: Path, error: OSError) -> ValueError:
    return ValueError(
        f"Every training image needs a label map; there is no {path} ({error.strerror}). "
        "Give the folder of the maps of these images."
    )


@dataclass(frozen=True, slots=True)
class CroppedMaps:
    """Label maps of a batch and the parts of them that the images show.

    Attributes:
        topk: Shape (B, 2, K, H, W), mirrored as the images are.
        boxes: Shape (B, 4): left, top, right, bottom of the crops, in 0..1.
    """

    topk: Tensor
    boxes: Tensor

    def to(self, device: torch.device) -> CroppedMaps:
        """Copy to a device."""
        return CroppedMaps(self.topk.to(device), self.boxes.to(device))


@dataclass(frozen=True, slots=True)
class MappedCrop:
    """timm's resized crop and mirroring, which tell where they cut.

    Attributes:
        crop: timm's transform.
        flip: Probability of mirroring.
    """

    crop: RandomResizedCropAndInterpolation
    flip: float

    @classmethod
    def of(cls, resize_and_flip: Callable[[Image.Image], Image.Image], flip: float) -> MappedCrop:
        """Take the crop out of the first transforms that timm made."""
        transforms: Sequence[Any] = getattr(resize_and_flip, "transforms", ())
        (crop,) = (t for t in transforms if isinstance(t, RandomResizedCropAndInterpolation))
        return cls(crop, flip)

    def __call__(
        self, images: Any, maps: Sequence[Tensor]
    ) -> tuple[npt.NDArray[np.uint8], CroppedMaps]:
        """Cut and mirror images (PIL or arrays) with the global generators, as timm does."""
        pictures = map(Image.fromarray, images) if isinstance(images, np.ndarray) else images
        cut, boxes, topk = [], [], []
        for picture, found in zip(pictures, maps, strict=True):
            top, left, height, width = self.crop.get_params(
                picture, self.crop.scale, self.crop.ratio
            )
            mode = self.crop.interpolation
            if isinstance(mode, tuple):
                mode = mode[int(torch.randint(len(mode), ()))]
            picture_ = resized_crop(picture, top, left, height, width, self.crop.size, mode)
            x1, x2 = left / picture.width, (left + width) / picture.width
            y1, y2 = top / picture.height, (top + height) / picture.height
            if float(torch.rand(())) < self.flip:
                picture_, found, (x1, x2) = hflip(picture_), found.flip(-1), (1 - x2, 1 - x1)
            cut.append(np.asarray(picture_))
            boxes.append((x1, y1, x2, y2))
            topk.append(found)
        return np.stack(cut), CroppedMaps(torch.stack(topk), torch.tensor(boxes))


@dataclass(frozen=True, slots=True)
class MixedBox:
    """The tokens that MixToken takes from the batch in reverse order: rows, then columns."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def area(self) -> int:
        """The number of tokens."""
        return (self.bottom - self.top) * (self.right - self.left)

    def swap(self, maps: Tensor, scale: int = 1) -> Tensor:
        """Swap the box of maps (B, H, W, ...) with the reversed batch's; its own inverse."""
        rows = slice(scale * self.top, scale * self.bottom)
        columns = slice(scale * self.left, scale * self.right)
        mixed = maps.clone()
        mixed[:, rows, columns] = maps.flip(0)[:, rows, columns]
        return mixed


def random_box(side: int, alpha: float, rng: np.random.Generator) -> MixedBox:
    """Draw a box of a share 1 - Beta(alpha, alpha) of side x side tokens, cut at the border."""
    if alpha == 0:
        return MixedBox(0, 0, 0, 0)
    cut = int(side * np.sqrt(1 - rng.beta(alpha, alpha)))
    row, column = rng.integers(0, side, 2).tolist()
    ends = (row - cut // 2, column - cut // 2, row + cut // 2, column + cut // 2)
    return MixedBox(*(min(max(end, 0), side) for end in ends))


def token_targets(
    maps: CroppedMaps, labels: Tensor, *, num_classes: int, side: int, smoothing: float
) -> Tensor:
    """Pool label maps to targets (B, C, 2 + side * side): truth, the teacher's class, tokens.

    Args:
        labels: Class indices (B,).
        side: Of the map of tokens.
        smoothing: Of all targets, spread over the classes.
    """
    logits, classes = maps.topk[:, 0], maps.topk[:, 1].long()
    height, width = logits.shape[-2:]
    full = logits.new_zeros(len(logits), num_classes, height, width).scatter_(1, classes, logits)
    numbers = torch.arange(len(full), device=full.device, dtype=full.dtype)
    sizes = full.new_tensor([width, height, width, height])
    boxes = torch.cat([numbers[:, None], maps.boxes.to(full) * sizes - 0.5], 1)
    whole = roi_align(full, boxes, (1, 1)).flatten(2)
    tokens = roi_align(full, boxes, (side, side)).flatten(2)
    off = smoothing / num_classes
    teacher = torch.cat([whole, tokens], 2).softmax(1) * (1 - smoothing + off) + off
    truth = F.one_hot(labels, num_classes).to(full) * (1 - smoothing) + off
    return torch.cat([truth[:, :, None], teacher], 2)


def token_label_loss(
    class_logits: Tensor, token_logits: Tensor, targets: Tensor, box: MixedBox, recipe: TokenLabels
) -> Tensor:
    """Return the cross entropy of the class logits and, weighted, of all tokens.

    Args:
        class_logits: Shape (B, C).
        token_logits: Shape (B, N, C), in the places of ``targets`` (MixToken undone).
        targets: Shape (B, C, 2 + N), see `token_targets`.
        box: What MixToken took from the reversed batch.
    """
    teacher = targets[:, :, 1]
    if recipe.ground_truth:
        truth = targets[:, :, 0]
        agrees = truth.argmax(1) == teacher.argmax(1)
        of_teacher = (0.9 - 0.4 * agrees)[:, None]
        teacher = of_teacher * teacher + (1 - of_teacher) * truth
    kept = 1 - box.area / token_logits.shape[1]
    if kept < 1:
        teacher = kept * teacher + (1 - kept) * teacher.flip(0)
    class_loss = F.cross_entropy(class_logits, teacher)
    dense_loss = F.cross_entropy(token_logits.transpose(1, 2), targets[:, :, 2:])
    return recipe.cls_weight * class_loss + recipe.dense_weight * dense_loss


def token_side(network: Any, images: Tensor) -> int:
    """Return the side of the map of tokens that a network classifies."""
    _check_tokens(network)
    was_training = network.training
    with torch.no_grad():
        tokens = network.eval().forward_tokens(images, network.only)[1]
    network.train(was_training)
    return round(tokens.shape[1] ** 0.5)


def forward_mixed(network: Any, images: Tensor, box: MixedBox, side: int) -> tuple[Tensor, Tensor]:
    """Return class logits (B, C) and token logits (B, N, C) with MixToken.

    The maps of the patch embedding are mixed, and the token logits put back in their places.
    """

    def mix(_module: nn.Module, _inputs: Any, maps: Tensor) -> Tensor:
        return box.swap(maps, maps.shape[1] // side)

    _check_tokens(network)
    handle = network.patch_embed.register_forward_hook(mix)
    try:
        class_logits, tokens = network.forward_tokens(images, network.only)
    finally:
        handle.remove()
    return class_logits, box.swap(tokens.unflatten(1, (side, side))).flatten(1, 2)


def _check_tokens(network: nn.Module) -> None:
    if not hasattr(network, "forward_tokens"):
        raise ValueError(
            "Token labels need a network that classifies its tokens (the VOLO family); this one "
            "does not. Choose a recipe without token_labels, e.g. swin_300e."
        )
