"""Weights that a detector or segmenter starts from: its backbone's, or all of them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from supernet.dense.network import DenseNetwork
from supernet.network import interpolated_start

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
    prefix = "backbone.network."
    is_dense = any(name.startswith(prefix) for name in state)
    found = {
        name.removeprefix(prefix): value
        for name, value in state.items()
        if (name.startswith(prefix) if is_dense else not name.startswith(_CLASSIFIER))
    }
    backbone = network.backbone.network
    backbone.load_state_dict(interpolated_start(found, backbone).state)
    if is_dense:
        norms = "backbone.norms."
        own = {n.removeprefix(norms): v for n, v in state.items() if n.startswith(norms)}
        network.backbone.norms.load_state_dict(own)
