"""One step of a training: gradients over shards and processes, batch statistics, losses that fail.

A step's gradient, and what batch norms learn in it, is the mean over its shards, whichever process
computes which: so any number of processes takes the same steps, up to the rounding of sums (none
for two). Dropped paths are drawn anew for every shard, from a seed of its number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from supernet.network import Supernet
from supernet.recipes import Recipe
from supernet.training.batches import Shard
from supernet.training.distillation import Lesson
from supernet.training.seeding import derived_seed
from supernet.training.token_labels import (
    forward_mixed,
    random_box,
    token_label_loss,
    token_side,
    token_targets,
)

# As DistributedDataParallel's buckets.
MESSAGE_BYTES = 25 * 2**20
AMP_DTYPES = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def process_place() -> tuple[int, int]:
    """Return rank and number of the processes that train together."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


@contextmanager
def in_group() -> Iterator[None]:
    """Be one of the processes that train together for a block, and leave them behind it.

    NCCL's communicators end all together, so that one which leaves alone, with an error of its own,
    would wait for the others, who wait for its gradients (pytorch/pytorch#141510). It keeps its
    communicator, and ends with it.
    """
    try:
        yield
    except BaseException:
        if dist.get_backend() != dist.Backend.NCCL:
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


class Gradients:
    """Computes the gradients of a recipe's loss and leaves them in the parameters.

    Args:
        network: Called as ``network(images)``.
        recipe: Loss, precision, memory.
        device: Torch device.
        scaler: Of the loss, for fp16.
        lesson: Of a teacher, where there is one.
        has_unlabelled: Whether some images have no class; they learn from the teacher alone.
    """

    def __init__(
        self,
        network: nn.Module,
        recipe: Recipe,
        device: torch.device,
        scaler: torch.amp.GradScaler,
        lesson: Lesson | None = None,
        has_unlabelled: bool = False,
    ) -> None:
        self.network, self.recipe, self.device, self.scaler = network, recipe, device, scaler
        self.lesson, self.has_unlabelled = lesson, has_unlabelled
        self.layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.run = torch.compile(network) if recipe.compile else network
        self.rank, self.world_size = process_place()
        self._side: int | None = None
        if recipe.gradient_checkpointing:
            if not isinstance(network, Supernet):
                raise ValueError(
                    "gradient_checkpointing works on this tool's own networks, got "
                    f"{type(network).__name__}. Turn it off in the recipe."
                )
            network.grad_checkpointing = True

    def of_step(self, shards: Sequence[Shard], seed: int, progress: float = 1.0) -> float:
        """Compute a step's gradients and return its mean loss, the same in all processes.

        Args:
            shards: This process's part of the batch.
            seed: Of the step.
            progress: Share of the epochs that are over, for a teacher.
        """
        several = len(shards) * self.world_size > 1
        statistics = BatchStatistics(self.network) if several else None
        losses = []
        for index, shard in enumerate(shards):
            number = self.rank + index * self.world_size
            torch.manual_seed(derived_seed(seed, "shard", number))
            loss = self._loss(shard, derived_seed(seed, "box", number), progress) * shard.share
            self.scaler.scale(loss).backward()
            losses.append(loss.detach())
            if statistics is not None:
                statistics.take(shard.share)
        total = torch.stack(losses).sum()
        if self.world_size > 1:
            sums = [] if statistics is None else statistics.sums
            gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
            add_up([*gradients, *sums, total])
        if statistics is not None:
            statistics.put()
        return float(total)

    def _loss(self, shard: Shard, seed: int, progress: float) -> Tensor:
        recipe = self.recipe
        images, targets = shard.finished(self.device)
        images = images.to(memory_format=self.layout)
        if recipe.token_labels is not None and shard.maps is not None:
            return self._token_label_loss(shard, images, targets, seed)
        if self.lesson is None:
            with self._precision():
                logits = self.run(images).float()
            return self._task_loss(logits, targets, shard.labelled)
        with self._precision(), self.lesson.watching(self.network) as seen:
            logits = self.run(images).float()
        with self._precision():
            said, taught = self.lesson.teach(images)
        task = self._task_loss(logits, targets, shard.labelled)
        return self.lesson.loss(
            logits, said.float(), task, seen=seen, taught=taught, progress=progress
        )

    def _task_loss(self, logits: Tensor, targets: Tensor, labelled: float) -> Tensor:
        smoothing = self.recipe.label_smoothing
        if self.has_unlabelled:
            return labelled_loss(logits, targets, smoothing, labelled)
        # One formula for class indices and probabilities; equal to timm's two losses.
        return F.cross_entropy(logits, targets, label_smoothing=smoothing)

    def _token_label_loss(self, shard: Shard, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        recipe = self.recipe
        assert recipe.token_labels is not None
        assert shard.maps is not None
        if self._side is None:
            self._side = token_side(self.network, images[:1])
        rng = np.random.default_rng(seed)
        box = random_box(self._side, recipe.token_labels.mix_token, rng)
        with self._precision():
            logits, tokens = forward_mixed(self.network, images, box, self._side)
        targets = token_targets(
            shard.maps.to(self.device),
            labels,
            num_classes=logits.shape[1],
            side=self._side,
            smoothing=recipe.label_smoothing,
        )
        return token_label_loss(logits.float(), tokens.float(), targets, box, recipe.token_labels)

    def _precision(self) -> torch.autocast:
        amp = self.recipe.amp
        return torch.autocast(self.device.type, AMP_DTYPES[amp], enabled=amp != "none")


def labelled_loss(logits: Tensor, targets: Tensor, smoothing: float, labelled: float) -> Tensor:
    """Return what a shard adds to a step's mean loss of the images that have a class.

    Its mean over the shards, by their shares, is that mean loss, wherever these images are; 0 where
    none has a class.

    Args:
        logits: (B, classes).
        targets: Class indices (B,), -1 for none; or probabilities (B, classes) of mixed images,
            whose sum is the share of those that have a class, and the weight of the loss.
        smoothing: Of the targets.
        labelled: Share of the images of the step that have a class.
    """
    if targets.ndim == 1:
        weights = (targets >= 0).to(logits.dtype)
        plain = targets.clamp_min(0)
    else:
        weights = targets.sum(1)
        plain = targets / weights.clamp_min(1e-6).unsqueeze(1)
    losses = F.cross_entropy(logits, plain, label_smoothing=smoothing, reduction="none")
    return (losses * weights).sum() / max(labelled * len(logits), 1e-6)


class BatchStatistics:
    """Lets every shard start from the same running statistics, and averages what they become.

    Args:
        network: Its batch norms are meant.
    """

    def __init__(self, network: nn.Module) -> None:
        norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
        buffers = [buffer for norm in norms for buffer in norm.buffers()]
        self._means = [buffer for buffer in buffers if buffer.is_floating_point()]
        self._counts = [buffer for buffer in buffers if not buffer.is_floating_point()]
        self._before = [buffer.clone() for buffer in self._means]
        self._counts_before = [buffer.clone() for buffer in self._counts]
        self.sums = [torch.zeros_like(buffer) for buffer in self._means]

    def take(self, share: float) -> None:
        """Add what a shard of that share made of the statistics, and take it back."""
        for total, buffer, before in zip(self.sums, self._means, self._before, strict=True):
            total += share * buffer
            buffer.copy_(before)

    def put(self) -> None:
        """Let the mean be the statistics after this step; it counts as one batch."""
        for buffer, total in zip(self._means, self.sums, strict=True):
            buffer.copy_(total)
        for count, before in zip(self._counts, self._counts_before, strict=True):
            count.copy_(before + 1)

    def restore(self) -> None:
        """Put everything back as it was."""
        for buffer, before in zip(self._means, self._before, strict=True):
            buffer.copy_(before)
        for count, before in zip(self._counts, self._counts_before, strict=True):
            count.copy_(before)


def stops_all(wish: Callable[[], bool] | None, device: torch.device) -> bool:
    """Tell whether the caller of the first process wants all of them to stop."""
    stops = torch.tensor(wish is not None and wish(), device=device)
    if process_place()[1] > 1:
        dist.broadcast(stops, 0)
    return bool(stops)


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their sums over all processes.

    They travel in messages of about `MESSAGE_BYTES`: the next is packed, and the last is unpacked,
    while one is under way. All processes must have tensors of the same sizes.
    """
    sent = []
    for batch in _batches(tensors):
        message = torch.cat([tensor.flatten().float() for tensor in batch])
        sent.append((batch, message, dist.all_reduce(message, async_op=True)))
    for batch, message, work in sent:
        work.wait()
        sizes = [tensor.numel() for tensor in batch]
        for tensor, total in zip(batch, message.split(sizes), strict=True):
            tensor.copy_(total.view_as(tensor))


def _batches(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Put tensors together, in their order, until a message of float32 is long enough."""
    batch: list[Tensor] = []
    size = 0
    for tensor in tensors:
        batch.append(tensor)
        size += 4 * tensor.numel()
        if size >= MESSAGE_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
