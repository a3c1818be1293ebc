"""One attempt at a retraining, on its device, and whose fault it is if it comes to nothing."""

from __future__ import annotations

import errno
import logging
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

import torch.distributed as dist

from search.retraining.network import RetrainOptions, RetrainResult, retrain
from search.run_folder import is_disk_full
from search.scheduling import last_line, outcome_of_error
from searchspace.architecture import Architecture
from supernet.data import ImageData
from supernet.recipes import Recipe

logger = logging.getLogger(__name__)

# `lost` is the machine's fault, `failed` the network's, the recipe's or the data's.
End = Literal["done", "failed", "lost", "full disk"]
Result = TypeVar("Result")

# What libraries say when a process, a driver or a connection has died under them. After an error of
# CUDA every call of the process fails, whatever it is for.
_MACHINE = re.compile(
    r"cuda error|device-side assert|nccl|gloo|connection (closed|reset) by peer|"
    r"dataloader worker|killed by signal|bus error|broken pipe|stale file handle|"
    r"input/output error",
    re.IGNORECASE,
)
_MACHINE_NUMBERS = {errno.EIO, errno.ESTALE, errno.ENODEV, errno.ETIMEDOUT, errno.ECONNRESET}


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended(Generic[Result]):
    """How an attempt ended; a result where it is done, else a cause."""

    end: End
    result: Result | None = None
    cause: str | None = None


def attempt(
    architecture: Architecture, data: ImageData, recipe: Recipe, options: RetrainOptions
) -> Ended[RetrainResult]:
    """Retrain a network, see `network.retrain`, and say how that ended."""
    return tried(lambda: retrain(architecture, data, recipe, options), options.out)


def tried(training: Callable[[], Result | None], out: Path) -> Ended[Result]:
    """Train, and say how that ended.

    Args:
        training: It leaves the folder ``out``; its result is None in all processes but the first.
        out: That folder.
    """
    try:
        return Ended(end="done", result=training())
    except Exception as error:
        # Whatever it is, it is recorded with its cause; nothing goes on as if it were well.
        logger.error("The training of %s ended:\n%s", out, traceback.format_exc())
        text = last_line(str(error))
        kind = type(error).__name__
        cause = text if isinstance(error, ValueError) else f"{kind}: {text}"
        return Ended(end=end_of_error(error, out), cause=cause)


def end_of_error(error: BaseException, out: Path) -> End:
    """Tell whose fault an error is, of a training that leaves the folder ``out``."""
    if is_disk_full(error, out):
        return "full disk"
    if outcome_of_error(error, out) == "out of memory":
        return "failed"  # it would be again
    if isinstance(error, dist.DistError | ConnectionError):
        return "lost"
    if isinstance(error, OSError) and error.errno in _MACHINE_NUMBERS:
        return "lost"
    is_ours = isinstance(error, ValueError | FloatingPointError)
    return "lost" if not is_ours and _MACHINE.search(str(error)) else "failed"
