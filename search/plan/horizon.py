"""The horizon: a few networks are trained on towards the full recipe, to see whether the order of
short trainings lasts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from search.plan.rungs import Rungs

# Of the recipe's epochs: the longer one where there is time for enough networks.
RECIPE_SHARES = (0.5, 0.25)
# As many as an interval of Kendall's tau needs (`search.trust.MIN_POINTS`); more than the most tell
# little that is new.
MIN_NETWORKS, MAX_NETWORKS = 5, 8
# Trials take longer than their steps: their workers start, the last ones wait for each other.
MARGIN = 1.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Horizon:
    """How far, and how many.

    Attributes:
        epochs: Of a training.
        num_networks: That are trained so long, and on the rungs that they have not been on.
        devices: That train one network together.
        seconds: Device-seconds of all of it.
    """

    epochs: int
    num_networks: int
    devices: int
    seconds: float


def choose_horizon(
    rungs: Rungs,
    *,
    recipe_epochs: int,
    limit_seconds: float,
    epoch_seconds: float,
    num_trust: int,
    devices: int,
) -> Horizon | None:
    """Choose how long networks are trained on.

    Args:
        rungs: Of the plan.
        recipe_epochs: Of the full recipe; 0 where they are not known.
        limit_seconds: Device-seconds that there are.
        epoch_seconds: Device-seconds of an epoch of a middling network alone.
        num_trust: Networks that the trust phase trains; 0 where there is none.
        devices: The most that may train one network together.

    Returns:
        None where there is too little time, or the rungs reach a quarter of the recipe themselves.
    """
    if rungs.epochs[-1] >= recipe_epochs * RECIPE_SHARES[-1]:
        return None
    # Networks of the trust phase have been on its rung.
    below = [epochs for epochs in rungs.epochs if not num_trust or epochs != rungs.trust_epochs]
    shares = dict(zip(rungs.epochs, rungs.images, strict=False))
    passes = sum(epochs * shares.get(epochs, 1.0) for epochs in below)
    most = min(MAX_NETWORKS, num_trust) if num_trust else MAX_NETWORKS
    for share in RECIPE_SHARES:
        epochs = math.ceil(share * recipe_epochs)
        seconds = MARGIN * (epochs + passes) * epoch_seconds
        number = min(int(limit_seconds / seconds), most)
        if number >= MIN_NETWORKS:
            together = devices if rungs.are_large else 1
            return Horizon(
                epochs=epochs, num_networks=number, devices=together, seconds=number * seconds
            )
    return None
