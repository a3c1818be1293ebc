"""Distillation: a student learns from a teacher on the same augmented images.

The loss is that of Hinton et al. (2015), mixed as in DeiT (Touvron et al. 2021, eq. 2):
``(1 - w) CE(student, labels) + w T^2 KL(teacher / T || student / T)``. With w = 1 the labels play
no part. The teacher is timm's `DistillationTeacher`, which sees the images normalised as it was
trained to.

Two more losses may be added. *Tokens*: the mean cosine distance of the maps behind the stages,
token by token, of networks whose maps have the same shapes. *Features*: the similarity of all pairs
of images of a batch by their features in front of the classifier, row-normalised, as mean squared
difference (Tung and Mori 2019, eq. 4, https://arxiv.org/abs/1907.09682): of any two widths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from timm.task import DistillationTeacher
from torch import Tensor, nn

from supernet.network import Supernet
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
        timm_name: What timm calls it; empty for one of our own networks.
    """

    network: nn.Module
    name: str
    img_size: int
    num_classes: int
    mean: Sequence[float]
    std: Sequence[float]
    fingerprint: str
    timm_name: str = ""


@dataclass(slots=True)
class Seen:
    """What a network made of a batch on the way.

    Attributes:
        maps: Behind each stage, (batch, height, width, channels).
        features: In front of the classifier, (batch, channels), in a list of one.
    """

    maps: list[Tensor] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)


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
        self._network, self.name = network, teacher.name
        # Read when a loss is not finite, and not before: that waits for the device.
        self._speaks = torch.tensor(True, device=device)
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
        self._speaks = self._speaks & found.isfinite().all()
        return found

    def blame(self) -> str:
        """Say that the teacher has said what is no number, where it has; empty otherwise."""
        if bool(self._speaks):
            return ""
        return f" The teacher {self.name} said what is no finite number: take another."

    def teach(self, images: Tensor) -> tuple[Tensor, Seen]:
        """Return the teacher's logits, and what it saw of what the recipe asks for."""
        with self.watching(self._network) as seen:
            return self.logits(images), seen

    @contextmanager
    def watching(self, network: nn.Module) -> Iterator[Seen]:
        """Note what a network makes of the batches that pass while the block runs.

        Raises:
            ValueError: If it has not what the recipe asks for.
        """
        seen = Seen()
        with ExitStack() as watched:
            if self._settings.tokens:
                for stage in _stages_of(network):
                    handle = stage.register_forward_hook(lambda m, a, out: seen.maps.append(out))
                    watched.callback(handle.remove)
            if self._settings.features:
                handle = _classifier_of(network).register_forward_pre_hook(
                    lambda m, arguments: seen.features.append(arguments[0])
                )
                watched.callback(handle.remove)
            yield seen

    def loss(
        self,
        student: Tensor,
        teacher: Tensor,
        task: Tensor,
        *,
        seen: Seen | None = None,
        taught: Seen | None = None,
        progress: float = 1.0,
    ) -> Tensor:
        """Mix the loss on labels with those on what a teacher makes of the images.

        Args:
            student: Logits, (batch, classes).
            teacher: Likewise.
            task: Mean loss of the batch on its labels.
            seen: What the student saw on the way.
            taught: What the teacher saw.
            progress: Share of the epochs that are over.
        """
        settings = self._settings
        is_before = progress < settings.labels_from
        loss = self._on_logits(student, teacher, task, 1.0 if is_before else settings.weight)
        if seen is None or taught is None:
            return loss
        if settings.tokens and (is_before or not settings.labels_from):
            loss = loss + settings.tokens * token_distance(seen.maps, taught.maps)
        if settings.features:
            loss = loss + settings.features * similarity_distance(
                seen.features[0].float(), taught.features[0].float()
            )
        return loss

    def _on_logits(self, student: Tensor, teacher: Tensor, task: Tensor, weight: float) -> Tensor:
        temperature = self._settings.temperature
        divergence = F.kl_div(
            F.log_softmax(student / temperature, dim=1),
            F.log_softmax(teacher / temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return (1 - weight) * task + weight * temperature**2 * divergence


def token_distance(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return the mean cosine distance of tokens at the same places, over maps (B, H, W, C).

    Raises:
        ValueError: If the maps have other shapes.
    """
    shapes = [[tuple(one.shape) for one in maps] for maps in (student, teacher)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "Tokens are learned from a teacher whose maps have the student's shapes: they are "
            f"{shapes[0]}, the teacher's {shapes[1]}. Write tokens: 0, or features instead."
        )
    pairs = zip(student, teacher, strict=True)
    distances = [1 - F.cosine_similarity(a.float(), b.float(), dim=-1).mean() for a, b in pairs]
    return torch.stack(distances).mean()


def similarity_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of the row-normalised similarities of images.

    Args:
        student: Features (B, C).
        teacher: Features (B, D).
    """
    mine, theirs = (F.normalize(x @ x.t(), dim=1) for x in (student, teacher))
    return (mine - theirs).square().mean()


def _stages_of(network: nn.Module) -> Sequence[nn.Module]:
    if not isinstance(network, Supernet):
        raise ValueError(
            "Tokens are learned from a teacher of this tool's own networks, got "
            f"{type(network).__name__}. Write tokens: 0, or features instead."
        )
    return list(network.stages)


def _classifier_of(network: Any) -> nn.Module:
    head: Any = network.head if isinstance(network, Supernet) else network.get_classifier()
    if not isinstance(head, nn.Linear):
        raise ValueError(
            "Features are those in front of a linear classifier, and "
            f"{type(network).__name__} ends with {type(head).__name__}. Write features: 0."
        )
    return head
