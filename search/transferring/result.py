"""What a finished transfer left: its folder, its numbers, its network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_model

from configs.reading import read_json, typed
from search.record import Measured
from search.retraining.out_folder import ARCHITECTURE_FILE, RECIPE_FILE, RESULT_FILE
from supernet.dense.network import DenseNetwork, build_dense
from supernet.dense.options import dense_options
from supernet.dense.target import Target, choices_of, read_target
from supernet.recipes import DenseRecipe, load_dense_recipe
from supernet.training import WEIGHTS_FILE, changed_file

FOLDER = "transfer"
PREDICTIONS_FILE = "predictions.json"
PICTURES = "pictures"


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferResult:
    """A finished transfer.

    Attributes:
        params: Of the whole detector or segmenter.
        macs: Of one image at the size that both papers count at.
        length: ``12e`` or ``240s``.
        start: What weights it began with: ``fresh``, or a name.
        measured: AP and mIoU with their intervals.
        by_class: The first of them for each class; None for a class without objects.
        seconds: Of training.
        identity: Hash of all that decides a transfer but for its seed.
        teacher: Whom it learnt from; empty for nobody.
        sha256: Of the file of weights, by name.
    """

    key: str
    task: str
    head: str
    params: int
    macs: int
    recipe: str
    length: str
    seed: int
    start: str
    data: str
    data_source: str
    data_fingerprint: str
    split: str
    class_names: tuple[str, ...]
    images: int
    measured: Measured
    by_class: tuple[float | None, ...]
    device: str
    seconds: float
    identity: str
    teacher: str = ""
    sha256: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Describe it with JSON values; `from_dict` inverts it."""
        found = asdict(self)
        found.pop("measured")
        return found | {"values": self.measured.to_json()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TransferResult:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: If a value is missing or of another kind.
        """
        values = typed(dict[str, float], data.get("values"))
        return typed(cls, data | {"measured": Measured.from_json(values)})


def result_text(measured: Measured) -> str:
    """Say in a line what a network reached; intervals are of 95 %, over images."""
    names = {"ap_mask": "mask AP", "ap_box": "box AP", "miou": "mIoU"}
    parts = []
    for name, words in names.items():
        if not measured.has(name):
            continue
        value, low, high = (measured.value(f"{name}{end}") for end in ("", "_low", "_high"))
        text = f"{words} {value:.1f} % (95 % interval {low:.1f} to {high:.1f})"
        if name != "miou" and measured.has(f"{name}50"):
            ap50, ap75 = (measured.value(f"{name}{overlap}") for overlap in (50, 75))
            text += f", AP50 {ap50:.1f}, AP75 {ap75:.1f}"
        parts.append(text)
    return "; ".join(parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Transferred:
    """A finished transfer with what its folder holds."""

    folder: Path
    architecture: Target
    recipe: DenseRecipe
    result: TransferResult

    def weights(self) -> Path:
        """Return the file of weights.

        Raises:
            ValueError: If it is not the one that the training left.
        """
        wanted = self.result.sha256.get(WEIGHTS_FILE)
        if wanted is None:
            raise _damaged(self.folder, f"{RESULT_FILE} has no checksum of {WEIGHTS_FILE}")
        if cause := changed_file(self.folder, {WEIGHTS_FILE: wanted}):
            raise _damaged(self.folder, cause)
        return self.folder / WEIGHTS_FILE

    def network(self) -> DenseNetwork:
        """Build the detector or segmenter with its weights, in eval mode.

        Raises:
            ValueError: If they are not those that the training left.
        """
        options = dense_options(self.recipe, len(self.result.class_names))
        network = build_dense(choices_of(self.architecture), options)
        load_model(network, str(self.weights()))
        return network.eval()


def is_transfer(folder: Path) -> bool:
    """Tell whether a folder is one of a transfer, finished or not."""
    path = folder / RECIPE_FILE
    return path.is_file() and b"\nhead:" in path.read_bytes()


def open_transferred(folder: Path) -> Transferred:
    """Open the folder of a finished transfer.

    Raises:
        ValueError: If there is none.
    """
    if not is_transfer(folder):
        raise ValueError(
            f"{folder} is not the folder of a transfer. Name one that search transfer left."
        )
    if not (folder / RESULT_FILE).is_file():
        raise ValueError(f"The transfer in {folder} is not finished. Run its command again.")
    try:
        described: Any = read_json(folder / ARCHITECTURE_FILE)
        architecture = read_target(described)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, f"{ARCHITECTURE_FILE}: {type(error).__name__}: {error}") from error
    return Transferred(
        folder=folder,
        architecture=architecture,
        recipe=load_dense_recipe(str(folder / RECIPE_FILE)),
        result=read_result(folder),
    )


def read_result(folder: Path) -> TransferResult:
    """Read what a finished transfer measured.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        stored: Any = read_json(folder / RESULT_FILE)
        return TransferResult.from_dict(stored)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, f"{RESULT_FILE}: {type(error).__name__}: {error}") from error


def _damaged(folder: Path, cause: str) -> ValueError:
    return ValueError(
        f"The transfer in {folder} is damaged: {cause}. Restore the folder from a copy, or remove "
        "it and train again."
    )
