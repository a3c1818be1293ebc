"""The checkpoint of a supernet: weights that anybody can read, and what its training needs.

``supernet.json`` names the files that belong together and is replaced in one step, so that a
process that is killed while it writes leaves the checkpoint before. Weights are safetensors under
the names of `network.supernet.Supernet`, tied ones (shared projections) once, under one of their
names; the file's metadata says which others it stands for. Only ``training-<step>.pt`` is for the
trainer alone. One checkpoint is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model

from searchspace.space import SearchSpace
from supernet.mixers.weight_sharing import WeightSharing
from supernet.network.supernet import Supernet
from supernet.training.checkpoint import write_text

INDEX_FILE = "supernet.json"


def save_supernet(
    folder: Path,
    *,
    step: int,
    supernet: Supernet,
    averaged: Supernet | None,
    training: Mapping[str, Any],
) -> None:
    """Write a checkpoint, then remove the one before.

    Args:
        averaged: The supernet with averaged weights, where there is one.
        training: What `load_training` gives back; numbers, strings, tensors and dictionaries.
    """
    folder.mkdir(parents=True, exist_ok=True)
    networks = {"weights": supernet} | ({"averaged": averaged} if averaged is not None else {})
    files = {name: f"{name}-{step}.safetensors" for name in networks}
    for name, network in networks.items():
        save_model(network, str(folder / files[name]))
    files["training"] = f"training-{step}.pt"
    torch.save(dict(training), folder / files["training"])
    index = {
        "space": supernet.space.name,
        "sharing": asdict(supernet.sharing),
        "step": step,
        "files": files,
    }
    write_text(folder / INDEX_FILE, json.dumps(index, indent=2) + "\n")
    for path in folder.iterdir():
        if path.name not in (INDEX_FILE, *files.values()):
            path.unlink()


def load_training(
    folder: Path, supernet: Supernet, averaged: Supernet | None, *, device: torch.device
) -> dict[str, Any] | None:
    """Read weights into both supernets and return what the trainer saved, or None.

    None: there is no checkpoint.

    Raises:
        ValueError: If the checkpoint is of a supernet that shares its weights in another way.
    """
    index = _index(folder)
    if index is None:
        return None
    if (stored := _sharing(index)) != supernet.sharing:
        raise ValueError(
            f"The supernet in {folder} was trained with {stored}, and cannot go on with "
            f"{supernet.sharing}. Use the same, or another folder."
        )
    files = index["files"]
    load_model(supernet, str(folder / files["weights"]), device=str(device))
    if averaged is not None:
        load_model(averaged, str(folder / files["averaged"]), device=str(device))
    state: dict[str, Any] = torch.load(
        folder / files["training"], map_location=device, weights_only=True
    )
    return state


def load_supernet(folder: Path, space: SearchSpace) -> Supernet:
    """Load the weights to judge with, the averaged ones where the training has them.

    Returns:
        A supernet on the CPU in eval mode.

    Raises:
        FileNotFoundError: If there is no checkpoint in the folder.
    """
    index = _index(folder)
    if index is None:
        raise FileNotFoundError(f"No supernet in {folder}: {INDEX_FILE} is missing.")
    files, supernet = index["files"], Supernet(space, sharing=_sharing(index))
    load_model(supernet, str(folder / files.get("averaged", files["weights"])))
    return supernet.eval()


def _sharing(index: Mapping[str, Any]) -> WeightSharing:
    """Read how weights are shared; checkpoints from before that was a setting do not say."""
    return WeightSharing(**index.get("sharing", {}))


def _index(folder: Path) -> dict[str, Any] | None:
    path = folder / INDEX_FILE
    if not path.is_file():
        return None
    index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return index
