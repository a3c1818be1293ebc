"""Weights of a network at one resolution as the start of the same network at another.

What depends on offsets is interpolated (bicubic) over them: relative position tables, the tables of
neighbourhoods, depth-wise kernels, generators of filters, ELSA's matrices; so are position
embeddings over places. Kernels whose taps are summed keep their sum, so that the features behind
them, and the statistics of batch norms, stay what they were; logits of a softmax keep their values.
Han et al. 2022 (App. E, Table 13) take depth-wise kernels from 7 to 12 taps "as done for relative
positional embeddings" and say nothing of their sum.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.network.macro import resize_embedding

# Parameters over taps that multiply values which are then added up, or make what does, by the end
# of their names.
SUMMED = re.compile(
    r"\.(depthwise_conv\.(position_)?weight|generators?(\.\d+)?\.(weight|bias)"
    r"|elsa\.(conv_weight|add))$"
)
CLASSIFIERS = ("head.weight", "head.bias")


@dataclass(frozen=True, slots=True)
class Start:
    """The state that a training starts from.

    Attributes:
        state: Of the new network.
        interpolated: Names of what has another size there.
    """

    state: dict[str, Tensor]
    interpolated: tuple[str, ...]


def interpolated_start(old: Mapping[str, Tensor], network: nn.Module) -> Start:
    """Fit the state of a network to one of other image, window or kernel sizes or classes.

    Args:
        old: The trained state.
        network: The new network, with fresh weights.

    Raises:
        ValueError: If the networks differ in anything else, or a weight is no finite number.
    """
    for name, value in old.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(
                f"A network starts from finite numbers; the weights have others in {name}. Name "
                "weights of a training that went well."
            )
    new = network.state_dict()
    if different := sorted(old.keys() ^ new.keys()):
        raise ValueError(
            "Weights can start the same network at another size only; one of the two has "
            f"{different[0]}, the other has not ({len(different)} such). Choose the folder of a "
            "retraining of this network."
        )
    state, interpolated = {}, []
    for name, wanted in new.items():
        found = old[name]
        if found.shape != wanted.shape:
            if name.endswith(CLASSIFIERS) and found.shape[1:] == wanted.shape[1:]:
                found = wanted  # the new classifier
            else:
                interpolated.append(name)
                found = _interpolate(name, found, wanted)
        state[name] = found.detach().clone().to(wanted)
    return Start(state, tuple(interpolated))


def resize_taps(table: Tensor, size: int, *, keep_sum: bool) -> Tensor:
    """Interpolate a table over offsets (S * S, ...) to (size * size, ...).

    Args:
        keep_sum: Divide by the number of taps gained, for taps that are summed.
    """
    side = isqrt(table.shape[0])
    planes = table.flatten(1).t().unflatten(1, (side, side))[None]
    resized = F.interpolate(planes, (size, size), mode="bicubic", align_corners=False)
    if keep_sum:
        resized = resized * (side / size) ** 2
    return resized[0].flatten(1).t().reshape(size * size, *table.shape[1:])


def _interpolate(name: str, found: Tensor, wanted: Tensor) -> Tensor:
    old, new = found.shape, wanted.shape
    squares = all(isqrt(shape[0]) ** 2 == shape[0] for shape in (old, new) if shape)
    if old[1:] == new[1:] and squares:
        return resize_taps(found, isqrt(new[0]), keep_sum=SUMMED.search(name) is not None)
    if name.endswith("pos_embed") and (old[:-3], old[-1]) == (new[:-3], new[-1]):
        maps = found.reshape(-1, *old[-3:])
        return torch.stack([resize_embedding(one, (new[-3], new[-2])) for one in maps]).view(new)
    raise ValueError(
        f"{name} is {tuple(old)} in the weights and {tuple(new)} in the network, which is no other "
        "window, kernel or image size. Choose weights of the same network."
    )
