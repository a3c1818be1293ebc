"""Fidelities: how an architecture was judged, by name, and which is worth more.

``supernet`` is accuracy with inherited weights. ``zero-cost`` is a score of an untrained network,
or its size: no accuracy, so on no front. ``train-<n>e`` is n epochs alone. ``retrain-...`` is a
full recipe, and alone is judged on the test split.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

SUPERNET = "supernet"
ZERO_COST = "zero-cost"

_TRAINED = re.compile(r"train-(\d+)e")
_RETRAIN = "retrain-"


def trained_alone(epochs: int) -> str:
    """Name the fidelity of networks that are trained alone for so many epochs."""
    return f"train-{epochs}e"


def retrained(label: str) -> str:
    """Name the fidelity of a retraining: its recipe, epochs and what else decides it."""
    return f"{_RETRAIN}{label}"


def retraining_label(fidelity: str) -> str:
    """Invert `retrained`."""
    return fidelity.removeprefix(_RETRAIN)


def is_retraining(fidelity: str) -> bool:
    """Tell whether a fidelity is a retraining."""
    return fidelity.startswith(_RETRAIN)


def is_trained_alone(fidelity: str) -> bool:
    """Tell whether a fidelity is a short training of the network alone."""
    return _TRAINED.fullmatch(fidelity) is not None


def order_fidelities(fidelities: Iterable[str]) -> tuple[str, ...]:
    """Sort fidelities from the highest to the lowest; each once."""
    return tuple(sorted(set(fidelities), key=fidelity_height, reverse=True))


def describe_fidelity(fidelity: str) -> str:
    """Say what a fidelity means: ``train-3e`` is "trained alone for 3 epochs"."""
    if fidelity == SUPERNET:
        return "with inherited weights"
    trained = _TRAINED.fullmatch(fidelity)
    if trained is None:
        return fidelity
    epochs = int(trained[1])
    return f"trained alone for {epochs} epoch{'' if epochs == 1 else 's'}"


def fidelity_height(fidelity: str) -> tuple[int, int, str]:
    """Return a key that sorts fidelities from the lowest to the highest."""
    if is_retraining(fidelity):
        return 2, 0, fidelity
    match = _TRAINED.fullmatch(fidelity)
    return (1, int(match[1]), fidelity) if match else (0, fidelity == SUPERNET, fidelity)
