"""One attempt at a transfer, on its device, and whose fault it is if it comes to nothing."""

from __future__ import annotations

from search.retraining.attempt import Ended, tried
from search.transferring.network import TransferOptions, transfer
from search.transferring.result import TransferResult
from searchspace.architecture import Architecture
from supernet.data.dense import DenseData
from supernet.recipes import DenseRecipe


def attempt(
    architecture: Architecture, data: DenseData, recipe: DenseRecipe, options: TransferOptions
) -> Ended[TransferResult]:
    """Train and judge a network, see `network.transfer`, and say how that ended."""
    return tried(lambda: transfer(architecture, data, recipe, options), options.out)
