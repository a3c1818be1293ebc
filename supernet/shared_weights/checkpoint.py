"""The checkpoint of a supernet: weights that anybody can read, and what its training needs.

``supernet.json`` names the files that belong together, with the SHA-256 of each, and is replaced in
one step, so that a process that is killed while it writes leaves the checkpoint before. Weights are
safetensors under the names of `network.supernet.Supernet`, tied ones (shared projections) once,
under one of their names; the file's metadata says which others it stands for. Only
``training-<step>.pt`` is for the trainer alone. One checkpoint is kept.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from searchspace import durable
from searchspace.space import SearchSpace
from supernet.mixers import WeightSharing
from supernet.network import Supernet
from supernet.training import changed_file, checksums, write_text

INDEX_FILE = "supernet.json"

Network = TypeVar("Network", bound=nn.Module)

# The files that `save_supernet` writes; nothing else is read or removed.
_FILE = re.compile(r"(weights|averaged)-\d+b?\.safetensors|training-\d+b?\.pt")


def save_supernet(
    folder: Path,
    *,
    step: int,
    supernet: Supernet,
    averaged: Supernet | None,
    training: Mapping[str, Any],
    heads: nn.Module | None = None,
) -> None:
    """Write a checkpoint, then remove the one before.

    Args:
        averaged: The supernet with averaged weights, where there is one.
        heads: The whole network, where the supernet is only the backbone of one; it is written.
        training: What `load_training` gives back; numbers, strings, tensors and dictionaries.
    """
    folder.mkdir(parents=True, exist_ok=True)
    networks: dict[str, nn.Module] = {"weights": heads or supernet}
    networks |= {"averaged": averaged} if averaged is not None else {}
    mark = _free_mark(folder, step)
    files = {name: f"{name}-{step}{mark}.safetensors" for name in networks}
    files["training"] = f"training-{step}{mark}.pt"
    for name in files.values():
        (folder / name).unlink(missing_ok=True)  # a link would be written through
    for name, network in networks.items():
        save_model(network, str(folder / files[name]))
    torch.save(dict(training), folder / files["training"])
    for name in files.values():
        durable.sync(folder / name)
    index = {
        "space": supernet.space.name,
        "sharing": asdict(supernet.sharing),
        "step": step,
        "files": files,
        "sha256": checksums(folder, files.values()),
    }
    write_text(folder / INDEX_FILE, json.dumps(index, indent=2) + "\n")
    for path in folder.iterdir():
        if _FILE.fullmatch(path.name) and path.name not in files.values():
            path.unlink()


def _free_mark(folder: Path, step: int) -> str:
    """Tell the files of a step from those of the checkpoint that there is, if it is of that step.

    They may not be written over: the index has their checksums until it is replaced.
    """
    index = folder / INDEX_FILE
    named = index.read_bytes() if index.is_file() else b""
    return "b" if f'"training-{step}.pt"'.encode() in named else ""


def load_training(
    folder: Path,
    supernet: Supernet,
    averaged: Supernet | None,
    *,
    device: torch.device,
    heads: nn.Module | None = None,
) -> dict[str, Any] | None:
    """Read weights into both supernets and return what the trainer saved, or None.

    None: there is no checkpoint.

    Raises:
        ValueError: If the checkpoint is damaged, or of a supernet that shares its weights in
            another way.
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
    with _reading(folder):
        # On the CPU first: safetensors takes "cuda" for the first GPU, whichever was chosen.
        load_model(heads or supernet, str(folder / files["weights"]))
        if averaged is not None:
            load_model(averaged, str(folder / files["averaged"]))
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
        ValueError: If it is damaged, or of another space.
    """
    return load_shared(folder, lambda sharing: Supernet(space, sharing=sharing))


def load_shared(folder: Path, build: Callable[[WeightSharing], Network]) -> Network:
    """Load a network whose backbone is a supernet; see `load_supernet`.

    Args:
        build: Makes the network, by what its choices share.
    """
    index = _index(folder)
    if index is None:
        raise FileNotFoundError(f"No supernet in {folder}: {INDEX_FILE} is missing.")
    files, network = index["files"], build(_sharing(index))
    with _reading(folder):
        load_model(network, str(folder / files.get("averaged", files["weights"])))
    return network.eval()


def check_supernet(folder: Path) -> bool:
    """Compare the files of a checkpoint with their checksums; tell whether there is one.

    Raises:
        ValueError: If it is damaged.
    """
    return _index(folder) is not None


def _sharing(index: Mapping[str, Any]) -> WeightSharing:
    """Read how weights are shared; checkpoints from before that was a setting do not say."""
    return WeightSharing(**index.get("sharing", {}))


def _index(folder: Path) -> dict[str, Any] | None:
    """Read the index, and see that the files that it names are those that were written."""
    path = folder / INDEX_FILE
    if not path.is_file():
        return None
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        files, sums = dict(index["files"]), dict(index["sha256"])
        _sharing(index)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(folder, f"{INDEX_FILE}: {type(error).__name__}: {error}") from error
    for name in files.values():
        if not (isinstance(name, str) and _FILE.fullmatch(name)):
            raise _damaged(folder, f"{INDEX_FILE} names {name!r}, which is no file of a supernet")
    if set(sums) != set(files.values()) or not {"weights", "training"} <= set(files):
        raise _damaged(folder, f"{INDEX_FILE} does not list the files of a supernet")
    if cause := changed_file(folder, sums):
        raise _damaged(folder, cause)
    return index


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Say in our words that weights, though whole, cannot be read into this supernet."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, EOFError, pickle.UnpicklingError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise _damaged(folder, f"{type(error).__name__}: {error}") from error


def _damaged(folder: Path, cause: str) -> ValueError:
    return ValueError(
        f"The supernet in {folder} cannot be read: {cause}. Restore the folder from a copy, or "
        "start a new run."
    )
