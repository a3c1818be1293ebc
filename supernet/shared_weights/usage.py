"""Which elements of the shared weights the architectures of a step use.

The one definition is `Supernet.select`: what is in an architecture's own state dict is used, all
else is not. Slices are traced back by autograd, so that every way of selecting (a centre, a row, a
concatenation, a learned transform) gives its elements without code of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import fields
from typing import Any, TypeAlias

import torch
from torch import Tensor

from searchspace.architecture import Architecture

Usage: TypeAlias = dict[Tensor, Tensor | None]


class UsedWeights:
    """Says which weights of a supernet architectures use; remembers what it found for each block.

    Args:
        supernet: Stays the same object; its weights may change and move. A `network.Supernet`, or
            a network with one in it whose ``select`` gives the state of all of it.
        prefix: Of the names of that one's weights.
        rest_key: What decides which weights around the blocks are used, beside the settings of
            network and stages.
    """

    def __init__(
        self,
        supernet: Any,
        *,
        prefix: str = "",
        rest_key: Callable[[Architecture], Hashable] = lambda _: (),
    ) -> None:
        self._supernet, self._prefix, self._rest_key = supernet, prefix, rest_key
        self._parts: dict[Hashable, Usage] = {}
        self._masks: dict[Tensor, list[Tensor]] = {}  # the different ones of each parameter

    def __call__(self, architectures: Iterable[Architecture]) -> Usage:
        """Map each parameter that is used to None (all of it) or a mask of the used elements.

        A parameter that is not in the result is not used by any of the architectures.

        Args:
            architectures: Of one step; what any of them uses is used.

        Returns:
            Masks are of the type of their parameter, 1 where used and 0 elsewhere. They have its
            number of axes, and size 1 along those where they do not change.
        """
        found: Usage = {}
        for architecture in dict.fromkeys(architectures):
            keys = dict(self._part_keys(architecture))
            if any(key not in self._parts for key in keys.values()):
                self._look_up(architecture, keys)
            for key in keys.values():
                _join(found, self._parts[key])
        return found

    def _look_up(self, architecture: Architecture, keys: dict[str, Hashable]) -> None:
        parameters: list[Tensor] = [p for p in self._supernet.parameters() if p.requires_grad]
        values: dict[Hashable, list[Tensor]] = {key: [] for key in keys.values()}
        with torch.enable_grad():
            for name, value in self._supernet.select(architecture).items():
                part = next((part for part in keys if part and name.startswith(part)), "")
                values[keys[part]].append(value)
        for key, selected in values.items():
            if key not in self._parts:
                self._parts[key] = self._trace(parameters, selected)

    def _part_keys(self, architecture: Architecture) -> Iterator[tuple[str, Hashable]]:
        for name, key in _part_keys(architecture):
            if name:
                yield f"{self._prefix}{name}", key
            else:
                yield "", (key, self._rest_key(architecture))

    def _trace(self, parameters: list[Tensor], selected: list[Tensor]) -> Usage:
        """Find the elements that the selected values are or depend on."""
        usage: Usage = {v: None for v in selected if v.grad_fn is None and v.requires_grad}
        slices = [value for value in selected if value.grad_fn is not None]
        if slices:
            sums = torch.autograd.grad(
                slices, parameters, [torch.ones_like(value) for value in slices], allow_unused=True
            )
            for parameter, gradient in zip(parameters, sums, strict=True):
                if gradient is not None and parameter not in usage:
                    usage[parameter] = self._shared_mask(parameter, gradient != 0)
        return usage

    def _shared_mask(self, parameter: Tensor, used: Tensor) -> Tensor | None:
        """Keep one tensor for each different mask; many settings use the same elements."""
        if bool(used.all()):
            return None
        for axis in range(used.dim()):
            first = used.narrow(axis, 0, 1)
            used = first if torch.equal(used, first.expand_as(used)) else used
        mask = used.to(parameter.dtype)
        known = self._masks.setdefault(parameter, [])
        for other in known:
            if other.shape == mask.shape and torch.equal(other, mask):
                return other
        known.append(mask)
        return mask


def _part_keys(architecture: Architecture) -> Iterator[tuple[str, Hashable]]:
    """Yield the name of each block and of the rest (""), with all settings that decide its weights.

    A block's weights depend on its own mixer and on the settings of its stage and network, never
    on the mixer of another block; what is around the blocks does not depend on their number.
    """
    network = tuple(
        getattr(architecture, field.name)
        for field in fields(architecture)
        if field.name != "stages"
    )
    rest = []
    for index, stage in enumerate(architecture.stages):
        settings = tuple(
            getattr(stage, field.name) for field in fields(stage) if field.name != "mixers"
        )
        rest.append(settings)
        for block, mixer in enumerate(stage.mixers):
            name = f"stages.{index}.{block}."
            yield name, (name, network, settings, mixer)
    yield "", ("", network, tuple(rest))


def _join(found: Usage, part: Usage) -> None:
    """Add what a part uses to what is used already."""
    for parameter, mask in part.items():
        known = found.get(parameter, mask)
        both = None if known is None or mask is None else torch.maximum(known, mask)
        found[parameter] = mask if known is mask else both
