"""Batch-norm recalibration: the running statistics that one architecture really sees.

Shared running statistics mix all architectures that were trained. Judging one network needs its
own; they are computed on a copy (`network.supernet.extract`), so that the shared ones never change.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from searchspace.architecture import Architecture
from supernet.data import ImageData, Split
from supernet.network import Supernet, extract
from supernet.training import eval_batches

CALIBRATION_BATCHES = 8


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


def recalibrated(
    supernet: Supernet, architecture: Architecture, batches: Iterable[Tensor]
) -> Supernet:
    """Extract an architecture's network and give it batch-norm statistics of its own.

    Args:
        batches: See `recalibrate`.
    """
    network = extract(supernet, architecture)
    recalibrate(network, batches)
    return network


def recalibrate(network: nn.Module, batches: Iterable[Any]) -> None:
    """Replace all batch-norm statistics by their mean over the batches, in place.

    Everything else (dropped paths, weights) stays in eval mode; the network is left in eval mode.
    A network without batch norms is not run at all.

    Args:
        network: Called with a batch alone.
        batches: Images of shape (B, in_chans, S, S), normalised; or what else the network takes.
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
    with torch.no_grad():
        for images in batches:
            network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()
