"""A predictor of accuracy: ridge regression on what an architecture is made of.

It learns from the networks of a run that were trained alone. Its own trust is measured on networks
that it has not seen (repeated cross-validation), because a fit to 20 points proves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from searchspace.architecture import Architecture
from searchspace.cost import count
from searchspace.mixers import mixer_to_dict

MIN_NETWORKS = 8
NUM_FOLDS = 5
NUM_REPEATS = 4
PENALTIES = tuple(10.0**power for power in range(-1, 5))


class Predictor:
    """Accuracies of architectures, learnt from some of them.

    Args:
        architectures: Trained ones, at least two.
        top1: Their accuracies in percent.
    """

    def __init__(self, architectures: Sequence[Architecture], top1: Sequence[float]) -> None:
        # Scaled features: the penalty weighs a choice and a logarithm of MACs alike.
        self._model: Pipeline = make_pipeline(
            DictVectorizer(sparse=False), StandardScaler(), RidgeCV(alphas=PENALTIES)
        )
        self._model.fit([features(a) for a in architectures], list(top1))

    def __call__(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        """Predict top-1 in percent, one value for each architecture."""
        found: NDArray[np.float64] = self._model.predict([features(a) for a in architectures])
        return found


def features(architecture: Architecture) -> dict[str, float]:
    """Describe an architecture by numbers with names.

    The share of blocks with each mixer kind, in the whole network and in each stage; the share of
    a stage's blocks with each value of each setting; sizes of the stages; logarithms of parameters
    and MACs.
    """
    cost = count(architecture)
    found = {"params": math.log(cost.params), "macs": math.log(cost.macs)}
    blocks = sum(stage.depth for stage in architecture.stages)
    for index, stage in enumerate(architecture.stages):
        found |= {f"{index}.dim": stage.dim, f"{index}.depth": stage.depth}
        found[f"{index}.mlp_ratio"] = sum(stage.ratios) / stage.depth
        for mixer in stage.mixers:
            settings: Mapping[str, object] = mixer_to_dict(mixer)
            _add(found, f"{mixer.kind}", 1 / blocks)
            for name, value in settings.items():
                place = mixer.kind if name == "kind" else f"{mixer.kind}.{name}={value}"
                _add(found, f"{index}.{place}", 1 / stage.depth)
    return found


def cross_validated(
    architectures: Sequence[Architecture], top1: Sequence[float], *, seed: int
) -> NDArray[np.float64]:
    """Predict each network by predictors that have not seen it, mean over repeated folds.

    Raises:
        ValueError: With fewer than `MIN_NETWORKS` networks.
    """
    if len(architectures) < MIN_NETWORKS:
        raise ValueError(
            f"A predictor needs at least {MIN_NETWORKS} trained networks, "
            f"got {len(architectures)}. Train more of them alone."
        )
    total = np.zeros(len(architectures))
    for repeat in range(NUM_REPEATS):
        folds = KFold(NUM_FOLDS, shuffle=True, random_state=seed + repeat)
        for known, hidden in folds.split(architectures):
            predictor = Predictor([architectures[i] for i in known], [top1[i] for i in known])
            total[hidden] += predictor([architectures[i] for i in hidden])
    return total / NUM_REPEATS


def _add(found: dict[str, float], name: str, share: float) -> None:
    found[name] = found.get(name, 0.0) + share
