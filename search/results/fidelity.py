"""Fidelities: how an architecture was judged, by name, and which is worth more.

``supernet`` is accuracy with inherited weights. ``zero-cost`` is a score of an untrained network,
or its size: no accuracy, so on no front. ``train-<n>e`` is n epochs alone, ``train-<n>e-of-25%``
of a quarter of the images. ``retrain-...`` is a full recipe, and alone is judged on the test split.
``transfer-...`` is a network as the backbone of a detector or segmenter: AP or mIoU, on no front.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from search.plan import Plan
from searchspace.quantity import counted

SUPERNET = "supernet"
ZERO_COST = "zero-cost"

_TRAINED = re.compile(r"train-(\d+)e(?:-of-(\d+)%)?")
_RETRAIN = "retrain-"
_TRANSFER = "transfer-"


def trained_alone(epochs: int, images: float = 1.0) -> str:
    """Name the fidelity of networks trained alone for so many epochs of a share of the images."""
    return f"train-{epochs}e" if images == 1 else f"train-{epochs}e-of-{100 * images:.0f}%"


def rung_fidelities(plan: Plan) -> dict[str, int]:
    """Return the fidelities of a plan's rungs, ascending, and the epochs of each."""
    return {trained_alone(epochs, plan.images_of(epochs)): epochs for epochs in plan.rungs}


def trial_fidelities(plan: Plan) -> dict[str, int]:
    """Return the fidelities of all trainings alone of a plan, ascending, and the epochs of each."""
    return {trained_alone(epochs, plan.images_of(epochs)): epochs for epochs in plan.lengths}


def epochs_of(fidelity: str) -> int | None:
    """Return for how many epochs networks were trained alone on all images; None for all else."""
    trained = _TRAINED.fullmatch(fidelity)
    return None if trained is None or trained[2] else int(trained[1])


def retraining_fidelity(label: str) -> str:
    """Name the fidelity of a retraining: its recipe, epochs and what else decides it."""
    return f"{_RETRAIN}{label}"


def retraining_label(fidelity: str) -> str:
    """Invert `retraining_fidelity`."""
    return fidelity.removeprefix(_RETRAIN)


def is_retraining(fidelity: str) -> bool:
    """Tell whether a fidelity is a retraining."""
    return fidelity.startswith(_RETRAIN)


def transferred(label: str) -> str:
    """Name the fidelity of a transfer: its recipe, length, data and start."""
    return f"{_TRANSFER}{label}"


def transfer_label(fidelity: str) -> str:
    """Invert `transferred`."""
    return fidelity.removeprefix(_TRANSFER)


def is_transfer(fidelity: str) -> bool:
    """Tell whether a fidelity is one of detection or segmentation."""
    return fidelity.startswith(_TRANSFER)


def is_trained_alone(fidelity: str) -> bool:
    """Tell whether a fidelity is a short training of the network alone."""
    return _TRAINED.fullmatch(fidelity) is not None


def order_fidelities(fidelities: Iterable[str]) -> tuple[str, ...]:
    """Sort fidelities from the highest to the lowest; each once."""
    return tuple(sorted(set(fidelities), key=fidelity_height, reverse=True))


def describe_fidelity(fidelity: str, *, is_graft: bool = False) -> str:
    """Say what a fidelity means: ``train-3e`` is "trained alone for 3 epochs".

    Args:
        fidelity: Its name.
        is_graft: Whether networks are assembled of parts, and inherit nothing from a supernet.
    """
    if fidelity == SUPERNET:
        return "as assembled" if is_graft else "with inherited weights"
    trained = _TRAINED.fullmatch(fidelity)
    if trained is None:
        return fidelity
    epochs = int(trained[1])
    part = f" of {trained[2]} % of the images" if trained[2] else ""
    how = "healed" if is_graft else "trained alone"
    return f"{how} for {counted(epochs, 'epoch')}{part}"


def fidelity_height(fidelity: str) -> tuple[int, int, str]:
    """Return a key that sorts fidelities from the lowest to the highest."""
    if is_retraining(fidelity):
        return 2, 0, fidelity
    match = _TRAINED.fullmatch(fidelity)
    return (1, int(match[1]), fidelity) if match else (0, fidelity == SUPERNET, fidelity)
