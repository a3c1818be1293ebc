"""Batch-norm recalibration: the statistics of what a network's norms really get when it is judged.

The running statistics of a supernet mix all architectures that were trained; one of them gets its
own on a copy (`network.supernet.extract`). Those of a very short training are in part what they
began with.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from supernet.data import ImageData, Split
from supernet.training.batches import eval_batches
from supernet.training.training_step import AMP_DTYPES

CALIBRATION_BATCHES = 8
# Running statistics begin as 0 and 1, of which (1 - 0.1) ** steps are left: then less than 1 %.
ENOUGH_STEPS = 44


def calibration_images(
    data: ImageData, batch_size: int, device: str = "cpu", *, workers: int = 0
) -> list[Tensor]:
    """Return the first `CALIBRATION_BATCHES` batches of the train split, not augmented.

    A last batch of one image is left out: batch norms of pooled maps learn nothing from one.

    Args:
        workers: Processes that make them; 0 for this one.
    """
    split, number = data.split("train"), CALIBRATION_BATCHES * batch_size
    first = Split(split.images[:number], split.labels[:number])
    batches = eval_batches(first, data, batch_size, workers=workers)
    found = [images.to(device) for images, _ in batches]
    return found[:-1] if len(found) > 1 and len(found[-1]) == 1 else found


def recalibrate(network: nn.Module, batches: Iterable[Any], *, amp: str = "none") -> None:
    """Replace all batch-norm statistics by their mean over the batches, in place.

    Everything else (dropped paths, weights) stays in eval mode; the network is left in eval mode.
    A network without batch norms is not run at all.

    Args:
        network: Called with a batch alone.
        batches: Images of shape (B, in_chans, S, S), normalised; or what else the network takes.
        amp: Precision of the pass, one of `AMP_DTYPES`: that in which the network is judged then.
            Statistics are float32 in any.
    """
    network.eval()
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's spelling of a plain mean over batches
        norm.train()
    kind = next(network.parameters()).device.type
    with torch.no_grad(), torch.autocast(kind, AMP_DTYPES[amp], enabled=amp != "none"):
        for images in batches:
            network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()
