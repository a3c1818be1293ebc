"""A detector or segmenter as a teacher that a run keeps: see `supernet.training.teacher_files`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from supernet.dense.distillation import DenseTeacher
from supernet.dense.network import build_dense
from supernet.dense.options import dense_options
from supernet.dense.target import choices_of, read_target
from supernet.recipes import DenseRecipe
from supernet.training import digest_of, keep_network, kept_network


def write_dense_teacher(folder: Path, teacher: DenseTeacher) -> str:
    """Write the two files; return the key of the folder."""
    about = {
        "name": teacher.name,
        "target": teacher.target.to_dict(),
        "recipe": teacher.recipe.model_dump(mode="json"),
        "num_classes": teacher.num_classes,
        "fingerprint": teacher.fingerprint,
    }
    return keep_network(folder, teacher.network, about)


def read_dense_teacher(folder: Path, key: str) -> DenseTeacher:
    """Read what `write_dense_teacher` wrote.

    Args:
        key: That the folder must have.

    Raises:
        ValueError: If it is gone, damaged, or another.
    """
    return kept_network(folder, key, _make)


def _make(about: dict[str, Any], state: Mapping[str, Tensor]) -> DenseTeacher:
    recipe = DenseRecipe.model_validate(about["recipe"])
    target, num_classes = read_target(about["target"]), int(about["num_classes"])
    network = build_dense(choices_of(target), dense_options(recipe, num_classes))
    network.load_state_dict(state)
    return DenseTeacher(
        network=network.eval(),
        name=str(about["name"]),
        fingerprint=digest_of(network.state_dict()),
        target=target,
        recipe=recipe,
        num_classes=num_classes,
    )
