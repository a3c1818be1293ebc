"""How many images a network classifies correctly."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from supernet.training.training_step import AMP_DTYPES


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Counts of correctly classified images.

    Attributes:
        correct: Images whose class has the largest logit.
        correct_top5: Images whose class is among the five largest logits.
        total: Images that were judged.
    """

    correct: int
    correct_top5: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.correct_top5 <= self.total or not self.total:
            raise ValueError(
                f"{self.correct} and {self.correct_top5} of {self.total} images are no accuracy"
            )

    @property
    def top1(self) -> float:
        """Percent of images."""
        return 100 * self.correct / self.total

    @property
    def top5(self) -> float:
        """Percent of images."""
        return 100 * self.correct_top5 / self.total


def evaluate(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: str | torch.device,
    on_logits: Callable[[Tensor], None] | None = None,
    *,
    amp: str = "none",
) -> Accuracy:
    """Classify images in eval mode, and put the network back into the mode that it was in.

    An image whose logits are not finite is classified wrongly.

    Args:
        batches: Images of shape (B, C, H, W) and class indices of shape (B,).
        on_logits: Called with the logits (B, num_classes) of every batch.
        amp: Precision of the pass, one of `AMP_DTYPES`.

    Raises:
        ValueError: If there are no images.
    """
    was_training = network.training
    network.eval()
    correct = correct_top5 = total = 0
    with torch.inference_mode():
        for images, labels in batches:
            with torch.autocast(torch.device(device).type, AMP_DTYPES[amp], amp != "none"):
                logits = network(images.to(device))
            logits = logits.float()
            if on_logits is not None:
                on_logits(logits)
            top5 = logits.topk(min(5, logits.shape[1]), dim=1).indices
            hits = (top5 == labels.to(device)[:, None]) & logits.isfinite().all(1, keepdim=True)
            correct += int(hits[:, 0].sum())
            correct_top5 += int(hits.sum())
            total += len(labels)
    network.train(was_training)
    if total == 0:
        raise ValueError("An accuracy needs at least one image, got none. Add images to the split.")
    return Accuracy(correct, correct_top5, total)
