"""A teacher as a folder of two files, so that other processes learn from the same weights.

``model.safetensors`` and ``teacher.json``: which network it is, and how images are normalised for
it. The key of such a folder is a hash of all of that and of the weights; another one is refused
before anything is built.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from searchspace import durable
from searchspace.architecture import Architecture
from supernet.network import Supernet, build_subnet
from supernet.training.distillation import Teacher

WEIGHTS_FILE, ABOUT_FILE = "model.safetensors", "teacher.json"


class _HasFingerprint(Protocol):
    @property
    def fingerprint(self) -> str: ...


Kept = TypeVar("Kept", bound=_HasFingerprint)


def make_teacher(
    network: nn.Module,
    name: str,
    *,
    img_size: int,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    timm_name: str = "",
) -> Teacher:
    """Make a teacher of a trained network, with its fingerprint; see `Teacher`."""
    about = json.dumps([img_size, list(mean), list(std)])
    state = digest_of(network.state_dict())
    return Teacher(
        network=network.eval().to(torch.float32),
        name=name,
        img_size=img_size,
        num_classes=num_classes,
        mean=tuple(mean),
        std=tuple(std),
        fingerprint=hashlib.sha256(f"{about} {state}".encode()).hexdigest(),
        timm_name=timm_name,
    )


def write_teacher_files(folder: Path, teacher: Teacher) -> str:
    """Write the two files; the network is one of ours, or of timm by ``timm_name``.

    Returns:
        The key of the folder.
    """
    network = teacher.network
    own = network.only if isinstance(network, Supernet) else None
    about = {
        "name": teacher.name,
        "timm_name": teacher.timm_name,
        "architecture": None if own is None else own.to_dict(),
        "img_size": teacher.img_size,
        "num_classes": teacher.num_classes,
        "mean": list(teacher.mean),
        "std": list(teacher.std),
        "fingerprint": teacher.fingerprint,
    }
    return keep_network(folder, network, about)


def read_teacher_files(folder: Path, key: str) -> Teacher:
    """Read what `write_teacher_files` wrote.

    Args:
        key: That the folder must have.

    Raises:
        ValueError: If it is gone, damaged, or another.
    """

    def make(about: dict[str, Any], state: Mapping[str, Tensor]) -> Teacher:
        network = _network_of(about)
        network.load_state_dict(state)
        return make_teacher(
            network,
            about["name"],
            img_size=about["img_size"],
            num_classes=about["num_classes"],
            mean=about["mean"],
            std=about["std"],
            timm_name=about["timm_name"],
        )

    return kept_network(folder, key, make)


def keep_network(folder: Path, network: nn.Module, about: Mapping[str, Any]) -> str:
    """Write the two files of a network.

    Args:
        about: Whatever it is built by, in JSON, with its ``name`` and ``fingerprint``.

    Returns:
        The key of the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Tied weights are written twice: safetensors takes no tensors that share memory.
    state = {name: t.detach().cpu().clone() for name, t in network.state_dict().items()}
    save_file(state, folder / WEIGHTS_FILE)
    durable.sync(folder / WEIGHTS_FILE)
    durable.write_text(folder / ABOUT_FILE, json.dumps(about, indent=1))
    return _key(about)


def kept_network(
    folder: Path, key: str, make: Callable[[dict[str, Any], Mapping[str, Tensor]], Kept]
) -> Kept:
    """Read what `keep_network` wrote.

    Args:
        key: That the folder must have.
        make: From what is known about it and its weights to a teacher.

    Raises:
        ValueError: If it is gone, damaged, or another.
    """
    try:
        about = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))
        if _key(about) != key:
            raise ValueError(f"{ABOUT_FILE} is not the one that was written")
        found = make(about, load_file(folder / WEIGHTS_FILE))
    except (
        *(OSError, ValueError, KeyError, TypeError, AttributeError),
        *(RuntimeError, SafetensorError),
    ) as error:
        words = " ".join(str(error).split())[:200]
        raise _other(folder, f"cannot be read ({words})") from error
    if found.fingerprint != about["fingerprint"]:
        raise _other(folder, "has other weights than the one that the run began with")
    return found


def _key(about: Mapping[str, Any]) -> str:
    """Hash all but the name: one teacher may be called by several."""
    known = {name: value for name, value in about.items() if name != "name"}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _network_of(about: Mapping[str, Any]) -> nn.Module:
    if about["timm_name"]:
        # Other names are addresses of hubs and folders.
        if not timm.is_model(about["timm_name"]):
            raise ValueError(f"timm knows no model {about['timm_name']!r}")
        return timm.create_model(about["timm_name"], num_classes=about["num_classes"])
    return build_subnet(Architecture.from_dict(about["architecture"]))


def _other(folder: Path, what: str) -> ValueError:
    return ValueError(
        f"A run keeps the teacher that it began with, and {folder} {what}. Restore the folder from "
        "a copy, or begin another run."
    )


def digest_of(state: Mapping[str, Tensor]) -> str:
    """Hash weights by their names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        # `contiguous` leaves a single element the stride of what it was cut out of.
        flat = value.detach().cpu().clone(memory_format=torch.contiguous_format).reshape(-1)
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
