"""A network as one of timm's own classes, for processes that have timm and not this package.

`published.convert` says which of timm's tensors is which of ours. It only moves numbers,
so it is inverted by converting the places of timm's tensors instead of their values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor

from searchspace.architecture import Architecture, Stage
from searchspace.mixers import WindowAttention
from supernet.exchange.published import convert

State = dict[str, Tensor]

# Entry points that fix all sizes but image and classes.
VOLOS = tuple(f"volo_d{number}_224" for number in range(1, 6))


@dataclass(frozen=True, slots=True)
class TimmModel:
    """What ``timm.create_model`` is called with, beside ``num_classes``."""

    name: str
    args: Mapping[str, Any]

    def build(self, num_classes: int) -> torch.nn.Module:
        """Build the network with fresh weights."""
        network: torch.nn.Module = timm.create_model(
            self.name, num_classes=num_classes, **self.args
        )
        return network


def timm_model(architecture: Architecture) -> TimmModel:
    """Say which of timm's networks the architecture is: a Swin of any sizes, or VOLO-D1 to D5.

    Raises:
        ValueError: If timm has no such network.
    """
    for model in _candidates(architecture):
        with torch.device("meta"):
            state = model.build(architecture.num_classes).state_dict()
        try:
            convert(state, architecture)
        except ValueError:
            continue
        return model
    raise ValueError(
        "timm has a class of its own for Swin (windows everywhere, one size and number of heads a "
        "stage, widths that double) and for VOLO-D1 to D5, and this network is neither. "
        "Use --format safetensors, which timm loads where mixer-search is installed, or onnx."
    )


def timm_state(state: Mapping[str, Tensor], architecture: Architecture) -> State:
    """Write a network's tensors under timm's names; the inverse of `published.convert`.

    Args:
        state: The state dict of the architecture's own network.

    Raises:
        ValueError: If timm has no such network.
    """
    theirs = timm_model(architecture).build(architecture.num_classes).state_dict()
    places, start = {}, 0
    for name, value in theirs.items():
        places[name] = torch.arange(start, start + value.numel()).view(value.shape)
        start += value.numel()
    flat = torch.full((start,), torch.nan, dtype=torch.float64)
    for name, place in convert(places, architecture).items():
        flat[place.flatten()] = state[name].detach().double().flatten()
    found = {name: flat[place].to(theirs[name].dtype) for name, place in places.items()}
    if missing := [name for name, value in found.items() if not value.isfinite().all()]:
        raise ValueError(f"The network has no finite value for timm's {missing[0]}.")
    return found


def _candidates(architecture: Architecture) -> Iterator[TimmModel]:
    size = {"img_size": architecture.img_size, "in_chans": architecture.in_chans}
    if architecture.family == "volo":
        for name in VOLOS:
            yield TimmModel(name, size)
    elif (stages := _swin_stages(architecture)) is not None:
        args = size | {
            "patch_size": architecture.patch_size,
            "embed_dim": architecture.stages[0].dim,
            "depths": [stage.depth for stage in architecture.stages],
            "num_heads": [mixer.num_heads for mixer in stages],
            "window_size": [mixer.window_size for mixer in stages],
            "mlp_ratio": [stage.mlp_ratio for stage in architecture.stages],
        }
        yield TimmModel("swin_tiny_patch4_window7_224", args)


def _swin_stages(architecture: Architecture) -> list[WindowAttention] | None:
    """Return the window attention of each stage, where the network is a Swin and nothing else."""
    found = []
    for index, stage in enumerate(architecture.stages):
        first = stage.mixers[0]
        if not isinstance(first, WindowAttention):
            return None
        plain = WindowAttention(window_size=first.window_size, num_heads=first.num_heads)
        dim = architecture.stages[0].dim * 2**index
        if stage != Stage(dim=dim, mixers=(plain,) * stage.depth, mlp_ratio=stage.mlp_ratio):
            return None
        found.append(plain)
    return found if architecture.family == "swin" else None
