"""What a graft begins with, found where a user has it: `find_source`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from configs.files import read_object, reading
from search.retraining.finished import find_retrained
from search.retraining.out_folder import ARCHITECTURE_FILE, RECIPE_FILE, RESULT_FILE
from search.run_folder import load_target, run_and_id, write_teacher
from searchspace.architecture import Architecture
from supernet.exchange.published import convert, read_checkpoint
from supernet.network import build_subnet
from supernet.training import digest_of

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class GraftSource:
    """A trained network: what it is, its weights, and how its images are normalised."""

    name: str
    architecture: Architecture
    state: Mapping[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        """Write it as `search.run_folder.teacher` reads it."""
        about = {
            "name": self.name,
            "fingerprint": digest_of(self.state),
            "mean": list(self.mean),
            "std": list(self.std),
            "class_names": list(self.class_names),
        }
        write_teacher(folder, self.architecture, self.state, about)


def find_source(text: str, arch: str | None) -> GraftSource:
    """Find the network that a graft begins with.

    Args:
        text: The folder of a retraining or of `search import`, ``RUN:ID``, or a file: a published
            checkpoint, or weights under our names.
        arch: The preset or file that a checkpoint's file was trained as; a folder says it itself.

    Raises:
        ValueError: If there is none, or it does not fit.
    """
    path = Path(text)
    if path.is_file():
        return _of_file(text, path, arch)
    if arch is not None:
        raise ValueError(
            f"--arch says what a file of weights was trained as, and {text} says it itself. Leave "
            "--arch out."
        )
    if is_import(path):
        return _of_import(text, path)
    if not path.is_dir() and run_and_id(text) is None:
        raise ValueError(
            f"--from {text}: there is no such file or folder. Name a checkpoint, the folder of "
            "`search import` or of a retraining, or RUN:ID."
        )
    found = find_retrained(text)
    return GraftSource(
        name=text,
        architecture=found.architecture,
        state=found.network().state_dict(),
        mean=found.result.mean,
        std=found.result.std,
        class_names=found.result.class_names,
    )


def is_import(folder: Path) -> bool:
    """Tell whether a folder is one of `search import`: a network that no training has left."""
    has = [(folder / name).is_file() for name in (ARCHITECTURE_FILE, RESULT_FILE, RECIPE_FILE)]
    return has == [True, False, False]


def _of_import(text: str, folder: Path) -> GraftSource:
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise ValueError(
            f"--from {text}: it has no {WEIGHTS_FILE}. Name the folder of `search import`, or of a "
            "finished retraining."
        )
    source = _checked(text, load_target(text), read_checkpoint(weights))
    config = folder / CONFIG_FILE
    return _as_exported(source, config) if config.is_file() else source


def _as_exported(source: GraftSource, config: Path) -> GraftSource:
    """Add what `search export` wrote beside a network: how its images are normalised."""
    what, remedy = "what search export wrote", "Export the network again, or remove this file."
    data = read_object(config, what, remedy=remedy)
    with reading(config, what, remedy=remedy, errors=(KeyError, TypeError)):
        about: Any = data["pretrained_cfg"]
        return replace(
            source,
            mean=tuple(map(float, about["mean"])),
            std=tuple(map(float, about["std"])),
            class_names=tuple(map(str, about.get("label_names", ()))),
        )


def _of_file(text: str, path: Path, arch: str | None) -> GraftSource:
    if arch is None:
        raise ValueError(
            f"--from {text}: a file of weights does not say what it was trained as. Add --arch "
            "PRESET, e.g. --arch swin_t, or a file of `search show --json`."
        )
    state = read_checkpoint(path)
    architecture = load_target(arch)
    head = state.get("head.weight", state.get("head.fc.weight"))
    if head is not None:
        architecture = architecture.replace(num_classes=len(head))
    with torch.device("meta"):
        wanted = build_subnet(architecture).state_dict()
    if state.keys() != wanted.keys():
        state = convert(state, architecture)
    return _checked(text, architecture, state)


def _checked(text: str, architecture: Architecture, state: Mapping[str, Tensor]) -> GraftSource:
    network = build_subnet(architecture)
    try:
        network.load_state_dict(dict(state))
    except RuntimeError as error:
        line = str(error).strip().splitlines()[-1].strip()
        raise ValueError(
            f"--from {text}: the weights are not those of the architecture ({line}). Name what "
            "they were trained as with --arch."
        ) from error
    for name, value in network.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(
                f"--from {text}: a graft begins with finite numbers, and {name} has others. Name "
                "weights of a training that went well."
            )
    return GraftSource(
        name=text,
        architecture=architecture,
        state=network.state_dict(),
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
    )
