"""The folder that a training leaves: begun once, and never another training's."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import save_model
from torch import nn

from search.record import take_claim
from searchspace import durable
from supernet.training import checksums, write_text

RESULT_FILE = "result.json"
ARCHITECTURE_FILE = "architecture.json"
RECIPE_FILE = "recipe.yaml"
LOCK_FILE = "training.lock"


class Described(Protocol):
    """An architecture, or what else is trained."""

    def to_dict(self) -> dict[str, Any]:
        """Describe it with JSON values."""


def claim_folder(
    out: Path,
    architecture: Described,
    recipe: str,
    *,
    what: str,
    also: Collection[str] = (),
) -> None:
    """Make a folder with architecture and recipe, or see that they are those it has.

    The recipe is written last, so that a folder without it was left before it began.

    Args:
        out: The folder.
        architecture: That is trained.
        recipe: Text of the recipe.
        what: The kind of training, e.g. ``retraining``.
        also: What may lie there before.

    Raises:
        ValueError: If the folder holds something else.
    """
    contents = {
        ARCHITECTURE_FILE: json.dumps(architecture.to_dict(), indent=1) + "\n",
        RECIPE_FILE: recipe,
    }
    if (out / RECIPE_FILE).exists():
        for name, text in contents.items():
            if not (out / name).is_file() or (out / name).read_bytes() != text.encode():
                raise ValueError(
                    f"{out} holds a {what} with another {name}, and results are never "
                    "overwritten. Choose another folder, or remove this one."
                )
        return
    ours = {*contents, *(f"{name}.partial" for name in contents), *also}
    if out.exists() and any(path.name not in ours for path in out.iterdir()):
        raise ValueError(f"{out} is in use by something else than a {what}. Choose another folder.")
    out.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        write_text(out / name, text)


@contextmanager
def claimed_training(folder: Path) -> Iterator[None]:
    """Hold a folder in which one process trains at a time: two would take each other's files.

    Raises:
        ValueError: If another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    claim = take_claim(folder / LOCK_FILE)
    if claim is None:
        raise ValueError(
            f"Another process trains in {folder}. Wait for its end, or name another folder."
        )
    try:
        yield
    finally:
        claim.release()


def save_weights(out: Path, networks: Mapping[str, nn.Module | None]) -> dict[str, str]:
    """Write the weights of networks, each file as a whole; return their checksums.

    Args:
        out: The folder.
        networks: By the name of the file; None leaves it out.
    """
    files = []
    for name, network in networks.items():
        if network is not None:
            partial = out / f"{name}.partial"
            save_model(network, str(partial))
            durable.replace(partial, out / name)
            files.append(name)
    return checksums(out, files)
