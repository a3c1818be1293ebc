"""Weights that a detector or segmenter starts from: its backbone's, or all of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor

from searchspace import durable
from searchspace.architecture import Architecture
from searchspace.map_rules import MapRules
from searchspace.space import SearchSpace
from supernet.dense.network import DenseNetwork
from supernet.mixers import WeightSharing
from supernet.network import Supernet, extract, interpolated_start

START_FILE = "backbones.safetensors"

# What a classifier has behind its last stage.
_CLASSIFIER = ("norm.", "head.", "head_dist.", "aux_head.", "class_blocks.", "cls_token")


def load_start(network: DenseNetwork, state: Mapping[str, Tensor]) -> None:
    """Load weights in place.

    Args:
        state: Of a classifier of the same architecture, at any image or window size, whose last
            norm and classifier are left out; or of a detector or segmenter: its backbone, with the
            norms behind the stages.

    Raises:
        ValueError: If it is of another network.
    """
    backbone = network.backbone.network
    backbone.load_state_dict(interpolated_start(_backbone_of(state), backbone).state)
    norms = "backbone.norms."
    if any(name.startswith(norms) for name in state):
        own = {n.removeprefix(norms): v for n, v in state.items() if n.startswith(norms)}
        network.backbone.norms.load_state_dict(own)


def write_start(
    folder: Path,
    state: Mapping[str, Tensor],
    space: SearchSpace,
    sharing: WeightSharing,
    rules: MapRules,
) -> None:
    """Keep the backbones of a supernet for networks of a space to start from.

    Args:
        state: Of a supernet, as a classifier or with heads.

    Raises:
        ValueError: If it is of another space.
    """
    supernet = Supernet(space, sharing=sharing, backbone=rules)
    supernet.load_state_dict(interpolated_start(_backbone_of(state), supernet).state)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{START_FILE}.partial"
    save_model(supernet, str(partial))
    durable.replace(partial, folder / START_FILE)


def read_start(
    folder: Path, space: SearchSpace, sharing: WeightSharing, rules: MapRules
) -> Supernet:
    """Read what `write_start` wrote.

    Raises:
        ValueError: If it is gone or damaged.
    """
    supernet = Supernet(space, sharing=sharing, backbone=rules)
    try:
        load_model(supernet, str(folder / START_FILE))
    except (OSError, RuntimeError, SafetensorError) as error:
        words = " ".join(str(error).split())[:200]
        raise ValueError(
            f"A run keeps the weights that its backbones begin with, and {folder / START_FILE} "
            f"cannot be read ({words}). Restore it from a copy, or begin another run."
        ) from error
    return supernet


def start_of(supernet: Supernet, architecture: Architecture) -> dict[str, Tensor]:
    """Return the weights that one network starts from, see `load_start`."""
    return dict(extract(supernet, architecture).state_dict())


def _backbone_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out heads, norms behind stages and classifiers."""
    prefix = "backbone.network."
    is_dense = any(name.startswith(prefix) for name in state)
    return {
        name.removeprefix(prefix): value
        for name, value in state.items()
        if (name.startswith(prefix) if is_dense else not name.startswith(_CLASSIFIER))
    }
