"""Distillation: a student learns from a teacher's logits on the same augmented images.

The loss is that of Hinton et al. (2015), mixed as in DeiT (Touvron et al. 2021, eq. 2):
``(1 - w) CE(student, labels) + w T^2 KL(teacher / T || student / T)``. With w = 1 the labels play
no part. The teacher is timm's `DistillationTeacher`, which sees the images normalised as it was
trained to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.task import DistillationTeacher
from torch import Tensor, nn

from supernet.recipes import Distillation


@dataclass(frozen=True, eq=False, slots=True)
class Teacher:
    """A trained network that others learn from.

    Attributes:
        network: Called as ``network(images)``; never trained.
        name: As it was asked for.
        img_size: Side of the images that it was trained on: others are scaled to it.
        num_classes: Of its logits.
        mean: Of each channel, in 0..1, that its images are normalised by.
        std: Likewise.
        fingerprint: Of its weights and all that is above.
    """

    network: nn.Module
    name: str
    img_size: int
    num_classes: int
    mean: Sequence[float]
    std: Sequence[float]
    fingerprint: str


class Lesson:
    """A teacher at work on a device, with the loss that a recipe asks for.

    Args:
        teacher: Whose logits count.
        settings: Of the recipe.
        mean: That the student's images are normalised by.
        std: Likewise.
        device: Torch device.
    """

    def __init__(
        self,
        teacher: Teacher,
        settings: Distillation,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
    ) -> None:
        network = teacher.network.requires_grad_(False)
        # Where timm looks for what a network expects.
        network.pretrained_cfg = {"mean": teacher.mean, "std": teacher.std}  # type: ignore[assignment]
        self._teacher = DistillationTeacher(network, device=device).to(device).eval()
        self._settings, self._img_size = settings, teacher.img_size
        self._mean, self._std = (
            torch.tensor(tuple(values), device=device).view(1, -1, 1, 1) for values in (mean, std)
        )

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return what the teacher says.

        Args:
            images: The student's batch, (batch, channels, height, width), normalised for it.

        Returns:
            (batch, classes).
        """
        images = self._teacher.normalize_input(images, self._mean, self._std)
        if images.shape[-1] != self._img_size:
            size = (self._img_size, self._img_size)
            images = F.interpolate(images, size, mode="bicubic", antialias=True)
        found: Tensor = self._teacher(images)
        return found

    def loss(self, student: Tensor, teacher: Tensor, task: Tensor) -> Tensor:
        """Mix the loss on labels with that on a teacher's logits; see the module.

        Args:
            student: Logits, (batch, classes).
            teacher: Likewise.
            task: Mean loss of the batch on its labels.
        """
        weight, temperature = self._settings.weight, self._settings.temperature
        divergence = F.kl_div(
            F.log_softmax(student / temperature, dim=1),
            F.log_softmax(teacher / temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return (1 - weight) * task + weight * temperature**2 * divergence
