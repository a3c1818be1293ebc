"""One attempt at a transfer, on its device, and whose fault it is if it comes to nothing."""

from __future__ import annotations

import logging
import traceback
from dataclasses import dataclass

from search.retraining.attempt import End, end_of_error
from search.scheduling import last_line
from search.transferring.network import TransferOptions, transfer
from search.transferring.result import TransferResult
from searchspace.architecture import Architecture
from supernet.data.dense import DenseData
from supernet.recipes import DenseRecipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How an attempt ended; a result where it is done by the first process, else a cause."""

    end: End
    result: TransferResult | None = None
    cause: str | None = None


def attempt(
    architecture: Architecture, data: DenseData, recipe: DenseRecipe, options: TransferOptions
) -> Ended:
    """Train and judge a network, see `network.transfer`, and say how that ended."""
    try:
        return Ended(end="done", result=transfer(architecture, data, recipe, options))
    except Exception as error:
        # Whatever it is, it is recorded with its cause; nothing goes on as if it were well.
        logger.error("A transfer ended:\n%s", traceback.format_exc())
        text = last_line(str(error))
        kind = type(error).__name__
        cause = text if isinstance(error, ValueError) else f"{kind}: {text}"
        return Ended(end=end_of_error(error, options.out), cause=cause)
