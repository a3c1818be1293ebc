"""``search import``: a published checkpoint as a folder that this tool and timm load."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from search.retraining.out_folder import RECIPE_FILE
from search.run_folder import load_target
from search.terminal import architecture_json
from searchspace import durable
from supernet.exchange.published import convert, read_checkpoint


def import_checkpoint(checkpoint: Path, target: str, *, out: Path) -> Path:
    """Write a checkpoint's weights under our names, beside the architecture's description.

    Args:
        checkpoint: A published checkpoint of Swin, ELSA or VOLO.
        target: The architecture that it was trained as: a preset or a file.
        out: Folder to make; it gets ``model.safetensors`` and ``architecture.json``.

    Returns:
        The folder.

    Raises:
        ValueError: If the folder holds weights or a training already, or the checkpoint is not one
            of the architecture.
    """
    weights = out / "model.safetensors"
    # A training that is under way has a recipe, and no weights yet.
    for taken in (weights, out / RECIPE_FILE):
        if taken.exists():
            raise ValueError(f"{taken} exists. Name another folder with --out.")
    state = read_checkpoint(checkpoint)
    architecture = load_target(target)
    if "head.weight" in state or "head.fc.weight" in state:
        head = state.get("head.weight", state.get("head.fc.weight"))
        assert head is not None
        architecture = architecture.replace(num_classes=len(head))
    converted = convert(state, architecture)
    out.mkdir(parents=True, exist_ok=True)
    description = json.dumps(architecture_json(architecture), indent=2)
    (out / "architecture.json").write_text(description + "\n", encoding="utf-8")
    partial = weights.with_name(f"{weights.name}.partial")
    save_file(converted, partial)
    durable.replace(partial, weights)
    return out
