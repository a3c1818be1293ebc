"""A trained detector or segmenter as the teacher of another, on the same augmented images.

*Detectors* learn the maps of the teacher's pyramid (PKD, Cao et al. 2022,
https://arxiv.org/abs/2207.02039): each channel of a map is brought to mean 0 and variance 1 over
images and places, then half of the mean squared difference counts, which is 1 - r of Pearson.
*Segmenters* learn its logits (CWD, Shu et al. 2021, https://arxiv.org/abs/2011.13256): each class's
softmax over all places, by the KL divergence. Weights are those of MMRazor's configurations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from searchspace.architecture import Architecture
from supernet.dense.network import DenseBatch, DenseNetwork, Detector
from supernet.dense.target import Target
from supernet.recipes import DenseRecipe

PYRAMID_WEIGHT, LOGITS_WEIGHT = 6.0, 5.0
_PROBE_PIXELS = 64


@dataclass(frozen=True, eq=False, slots=True)
class DenseTeacher:
    """A trained detector or segmenter.

    Attributes:
        network: Never trained.
        name: As it was asked for.
        fingerprint: Of its weights.
        target: What it stands on.
        recipe: That it was trained with, which says what heads it has.
        num_classes: Of its head.
    """

    network: DenseNetwork
    name: str
    fingerprint: str
    target: Target
    recipe: DenseRecipe
    num_classes: int


@dataclass(slots=True)
class Watched:
    """The maps that a network has made of its last batch: (B, C, H, W) each."""

    maps: list[Tensor] = field(default_factory=list)


class DenseLesson:
    """A teacher at work on a device.

    Args:
        teacher: Whose maps or logits are learned.
        recipe: Of the student: its images are normalised as that says.
        device: Torch device.
    """

    def __init__(self, teacher: DenseTeacher, recipe: DenseRecipe, device: torch.device) -> None:
        self.name = teacher.name
        own = teacher.recipe
        # Of the student's values, so that they become those that the teacher was trained on.
        self._change: tuple[Tensor, Tensor] | None = None
        if (recipe.mean, recipe.std) != (own.mean, own.std):
            mean, std, own_mean, own_std = (
                torch.tensor(x, device=device).view(3, 1, 1)
                for x in (recipe.mean, recipe.std, own.mean, own.std)
            )
            self._change = std / own_std, (mean - own_mean) / own_std
        self._network = teacher.network.requires_grad_(False).to(device).eval()
        self._speaks = torch.ones((), dtype=torch.bool, device=device)

    @contextmanager
    def watching(
        self, network: DenseNetwork, architecture: Architecture | None = None
    ) -> Iterator[Watched]:
        """Note what a network makes of the batches that pass while the block runs.

        Args:
            architecture: With which it is called, see `DenseNetwork`.
        """
        seen = Watched()
        handle = _watched_part(network, architecture).register_forward_hook(
            lambda module, given, out: setattr(seen, "maps", _maps_of(network, out))
        )
        try:
            yield seen
        finally:
            handle.remove()

    @torch.no_grad()
    def maps(self, batch: DenseBatch) -> list[Tensor]:
        """Return what the teacher makes of the student's batch, which is on the device."""
        images = self._as_taught(batch)
        made = self._network.part_of_maps(None)(self._network.backbone(images, None))
        maps = _maps_of(self._network, made)
        for one in maps:
            # Without waiting for a GPU.
            self._speaks = self._speaks & one.isfinite().all()
        return maps

    def _as_taught(self, batch: DenseBatch) -> Tensor:
        """Normalise images as the teacher's were; what is padded is 0 for everybody."""
        if self._change is None:
            return batch.images
        factor, offset = self._change
        images = batch.images * factor + offset
        for image, size in zip(images, batch.sizes, strict=True):
            rows, columns = size.content
            image[:, rows:] = 0
            image[:, :, columns:] = 0
        return images

    def blame(self) -> str:
        """Say that the teacher has made maps of no numbers, where it has; empty otherwise."""
        if bool(self._speaks):
            return ""
        return f" The teacher {self.name} makes maps that are no finite numbers: take another."

    def loss(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the losses by name: of maps of a pyramid, or of the logits alone."""
        pairs = list(zip(student, teacher, strict=True))
        if isinstance(self._network, Detector):
            losses = [PYRAMID_WEIGHT * pearson_distance(s, t) for s, t in pairs]
            return {f"teacher_{level}": loss for level, loss in enumerate(losses)}
        return {"teacher": LOGITS_WEIGHT * places_divergence(*pairs[0])}


def pearson_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return half of the mean squared difference of maps (B, C, H, W), normalised by channel."""
    mine, theirs = (_normalised(x.float()) for x in (student, teacher))
    return F.mse_loss(mine, theirs) / 2


def places_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over images and classes of the KL of the softmax over all places."""
    mine, theirs = (x.float().flatten(2).log_softmax(2) for x in (student, teacher))
    return F.kl_div(mine, theirs, reduction="sum", log_target=True) / mine[..., 0].numel()


def check_dense_teacher(student: DenseNetwork, teacher: DenseTeacher) -> None:
    """Refuse a teacher whose maps have other shapes than the student's, or are no finite numbers.

    Raises:
        ValueError: Then.
    """
    shapes = []
    with torch.no_grad():
        for network in (student, teacher.network):
            is_training = network.training
            # A teacher may be where it taught another network before.
            device = next(network.parameters()).device
            images = torch.zeros(1, 3, _PROBE_PIXELS, _PROBE_PIXELS, device=device)
            # A clone would cost memory; in eval mode nothing of it changes.
            made = network.part_of_maps(None)(network.eval().backbone(images, None))
            network.train(is_training)
            maps = _maps_of(network, made)
            shapes.append([tuple(one.shape[1:]) for one in maps])
    if shapes[0] != shapes[1] or isinstance(student, Detector) != isinstance(
        teacher.network, Detector
    ):
        raise ValueError(
            "A detector learns the maps of its teacher's pyramid and a segmenter its logits, of "
            f"the same shapes: of an image of {_PROBE_PIXELS} pixels they are {shapes[0]}, those "
            f"of {teacher.name} {shapes[1]}. Name a teacher of the same task and head."
        )
    if not all(one.isfinite().all() for one in maps):
        raise ValueError(
            f"The teacher {teacher.name} makes maps that are no finite numbers. Name another."
        )


def _normalised(maps: Tensor) -> Tensor:
    mean = maps.mean((0, 2, 3), keepdim=True)
    std = maps.std((0, 2, 3), keepdim=True)
    return (maps - mean) / (std + 1e-6)


def _watched_part(network: DenseNetwork, architecture: Architecture | None) -> nn.Module:
    """Return the module whose forward makes the maps; of narrower networks it is another one."""
    part: nn.Module = next(iter(network.part_of_maps(architecture).modules()))
    return part


def _maps_of(network: nn.Module, made: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Leave out the pyramid's last map, which is taken out of the one before."""
    if isinstance(network, Detector):
        return list(made[:-1])
    assert isinstance(made, Tensor)
    return [made]
