"""The trained network that a graft begins with, as a run keeps it: a folder of three files.

``architecture.json``, ``model.safetensors``, and ``teacher.json``: what it was, and how images are
normalised for it, which holds for all networks that are made of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from searchspace import durable
from searchspace.architecture import Architecture

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from supernet.data import ImageData
    from supernet.network import Supernet
    from supernet.training import Teacher

ARCHITECTURE_FILE, WEIGHTS_FILE, ABOUT_FILE = (
    "architecture.json",
    "model.safetensors",
    "teacher.json",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherFiles:
    """A trained network that lies in a folder.

    Attributes:
        name: As it was asked for.
        fingerprint: Of its weights.
        mean: Of each channel, in 0..1, that its images are normalised by.
        std: Likewise.
        class_names: In the order of its logits; empty where they are not known.
    """

    folder: Path
    architecture: Architecture
    name: str
    fingerprint: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = ()

    def state(self) -> dict[str, Tensor]:
        """Read its weights.

        Raises:
            ValueError: If they are gone, damaged, or others than those that were kept.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from supernet.training import digest_of

        weights = self.folder / WEIGHTS_FILE
        try:
            found = load_file(weights)
        except (OSError, SafetensorError) as error:
            raise _unreadable(self.folder, f"{WEIGHTS_FILE}: {error}") from error
        if digest_of(found) != self.fingerprint:
            raise _unreadable(self.folder, f"{WEIGHTS_FILE} has other weights")
        return found

    def network(self) -> Supernet:
        """Build it, with its weights.

        Raises:
            ValueError: As `state`.
        """
        from supernet.network import build_subnet

        network = build_subnet(self.architecture)
        network.load_state_dict(self.state())
        return network

    def mentor(self) -> Teacher:
        """Build it as the one whom all networks of the graft learn from.

        Raises:
            ValueError: As `state`.
        """
        from supernet.training import Teacher

        return Teacher(
            network=self.network().eval(),
            name=self.name,
            img_size=self.architecture.img_size,
            num_classes=self.architecture.num_classes,
            mean=self.mean,
            std=self.std,
            fingerprint=self.fingerprint,
        )

    def seen_by(self, data: ImageData) -> ImageData:
        """Return the images normalised as for the teacher.

        Raises:
            ValueError: If they are of other classes.
        """
        self._check_classes(data)
        return data.with_normalisation(self.mean, self.std)

    def _check_classes(self, data: ImageData) -> None:
        classes = self.architecture.num_classes
        others = self.class_names and self.class_names != data.class_names
        if classes != data.num_classes or others:
            raise ValueError(
                f"A graft keeps the classes of its network: {self.name} has {classes} "
                f"({', '.join(self.class_names[:3]) or 'their names are not known'}), {data.name} "
                f"has {data.num_classes} ({', '.join(data.class_names[:3])}). Train it on these "
                "images first: python -m search.retraining.train ARCH --start CHECKPOINT."
            )


def write_teacher(
    folder: Path,
    architecture: Architecture,
    state: Mapping[str, Tensor],
    about: Mapping[str, Any],
) -> None:
    """Write the three files; ``about`` has the other fields of `TeacherFiles`."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.contiguous() for n, t in state.items()}, folder / WEIGHTS_FILE)
    described = json.dumps(architecture.to_dict(), indent=1)
    durable.write_text(folder / ARCHITECTURE_FILE, described)
    durable.write_text(folder / ABOUT_FILE, json.dumps(dict(about), indent=1))


def read_teacher(folder: Path) -> TeacherFiles:
    """Read what `write_teacher` wrote, but for the weights.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        architecture = Architecture.from_dict(
            json.loads((folder / ARCHITECTURE_FILE).read_text(encoding="utf-8"))
        )
        about = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))
        return TeacherFiles(
            folder=folder,
            architecture=architecture,
            name=about["name"],
            fingerprint=about["fingerprint"],
            mean=tuple(about["mean"]),
            std=tuple(about["std"]),
            class_names=tuple(about["class_names"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(folder, str(error)) from error


def _unreadable(folder: Path, cause: str) -> ValueError:
    return ValueError(
        f"The network that the graft began with, {folder}, cannot be read ({cause}). Restore the "
        "folder from a copy, or begin another run."
    )
