"""Which elements of the shared weights the architectures of a step use.

The one definition is `Supernet.select`: what is in an architecture's own state dict is used, all
else is not. Slices are traced back by autograd, so that every way of selecting (a centre, a row, a
concatenation, a learned transform) gives its elements without code of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

import torch
from torch import Tensor

from searchspace.architecture import Architecture

Box: TypeAlias = tuple[slice, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Mask:
    """Which elements of a parameter are used.

    Attributes:
        values: Of the type of the parameter, 1 where used and 0 elsewhere. They have its number of
            axes, and size 1 along those where they do not change.
        box: The smallest block of the parameter that has all used elements.
        inside: The values inside the box; size 1 where they do not change along an axis.
    """

    values: Tensor
    box: Box
    inside: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "inside", narrowed(self.values, self.box))

    @classmethod
    def of(cls, values: Tensor) -> Mask:
        """Find the block that has all used elements."""
        used, box = values != 0, []
        for axis, size in enumerate(used.shape):
            others = [other for other in range(used.dim()) if other != axis]
            places = (used.any(others) if others else used).nonzero().flatten().tolist()
            is_whole = size == 1 or not places
            box.append(slice(None) if is_whole else slice(places[0], places[-1] + 1))
        return cls(values, tuple(box))

    def joined(self, other: Mask) -> Mask:
        """Return what one of both uses."""
        box = tuple(
            slice(None)
            if mine.stop is None or theirs.stop is None
            else slice(min(mine.start, theirs.start), max(mine.stop, theirs.stop))
            for mine, theirs in zip(self.box, other.box, strict=True)
        )
        return Mask(torch.maximum(self.values, other.values), box)


def narrowed(values: Tensor, box: Box) -> Tensor:
    """Cut what broadcasts to a parameter to a block of it; size 1 stays."""
    sizes = zip(values.shape, box, strict=True)
    return values[tuple(slice(None) if size == 1 else cut for size, cut in sizes)]


# None: all of a parameter.
Usage: TypeAlias = dict[Tensor, Mask | None]


class UsedWeights:
    """Says which weights of a supernet architectures use; remembers what it found for each block.

    On a GPU a copy on the CPU is traced, so that nobody waits for the numbers of masks.

    Args:
        supernet: Stays the same object, on its device; its weights may change. A `Supernet`, or a
            network with one in it whose ``select`` gives the state of all of it.
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
        self._traced: Any = None
        self._parts: dict[Hashable, Usage] = {}
        # The different ones of each parameter, as they were traced and where the parameter is.
        self._masks: dict[Tensor, list[tuple[Mask, Mask]]] = {}
        self._as_traced: dict[Mask, Mask] = {}
        self._joins: dict[tuple[Mask, Mask], Mask] = {}

    def __call__(self, architectures: Iterable[Architecture]) -> Usage:
        """Map each parameter that is used to None (all of it) or a mask of the used elements.

        A parameter that is not in the result is not used by any of the architectures.

        Args:
            architectures: Of one step; what any of them uses is used.

        """
        found: Usage = {}
        for architecture in dict.fromkeys(architectures):
            keys = dict(self._part_keys(architecture))
            if any(key not in self._parts for key in keys.values()):
                self._look_up(architecture, keys)
            for key in keys.values():
                self._join(found, self._parts[key])
        return found

    def _join(self, found: Usage, part: Usage) -> None:
        """Add what a part uses to what is used already."""
        for parameter, mask in part.items():
            known = found.get(parameter, mask)
            if known is mask:
                found[parameter] = mask
            elif known is None or mask is None:
                found[parameter] = None
            else:
                found[parameter] = self._joined(parameter, known, mask)

    def _joined(self, parameter: Tensor, one: Mask, other: Mask) -> Mask:
        """Return the mask of both: the same object each time, as few as there are."""
        if (one, other) not in self._joins:
            both = self._as_traced[one].joined(self._as_traced[other])
            self._joins[one, other] = self._shared_mask(parameter, both)
        return self._joins[one, other]

    def _look_up(self, architecture: Architecture, keys: dict[str, Hashable]) -> None:
        traced = self._traced_supernet()
        values: dict[str, list[Tensor]] = {part: [] for part in keys}
        with torch.enable_grad():
            for name, value in traced.select(architecture).items():
                part = next((part for part in keys if part and name.startswith(part)), "")
                values[part].append(value)
        own: dict[Tensor, Tensor] = dict(
            zip(traced.parameters(), self._supernet.parameters(), strict=True)
        )
        for part, key in keys.items():
            if key not in self._parts:
                # What a block uses is in the block.
                parameters = [
                    parameter
                    for name, parameter in traced.named_parameters()
                    if parameter.requires_grad and name.startswith(part)
                ]
                self._parts[key] = {
                    own[parameter]: None
                    if mask is None
                    else self._shared_mask(own[parameter], mask)
                    for parameter, mask in _trace(parameters, values[part]).items()
                }

    def _part_keys(self, architecture: Architecture) -> Iterator[tuple[str, Hashable]]:
        for name, key in _part_keys(architecture):
            if name:
                yield f"{self._prefix}{name}", key
            else:
                yield "", (key, self._rest_key(architecture))

    def _traced_supernet(self) -> Any:
        """Return the supernet itself, or its copy on the CPU, where only shapes count."""
        if next(self._supernet.parameters()).device.type == "cpu":
            return self._supernet
        if self._traced is None:
            self._traced = copy.deepcopy(self._supernet).cpu()
        return self._traced

    def _shared_mask(self, parameter: Tensor, mask: Mask) -> Mask:
        """Keep one for each different mask; many settings use the same elements."""
        known = self._masks.setdefault(parameter, [])
        for traced, placed in known:
            is_alike = traced.box == mask.box and traced.values.shape == mask.values.shape
            if is_alike and torch.equal(traced.values, mask.values):
                return placed
        placed = Mask(mask.values.to(parameter.device), mask.box)
        known.append((mask, placed))
        self._as_traced[placed] = mask
        return placed


def _trace(parameters: Sequence[Tensor], selected: Sequence[Tensor]) -> Usage:
    """Find the elements that the selected values are or depend on."""
    usage: Usage = {v: None for v in selected if v.grad_fn is None and v.requires_grad}
    slices = [value for value in selected if value.grad_fn is not None]
    if slices:
        sums = torch.autograd.grad(
            slices, parameters, [torch.ones_like(value) for value in slices], allow_unused=True
        )
        for parameter, gradient in zip(parameters, sums, strict=True):
            if gradient is not None and parameter not in usage and bool(gradient.any()):
                usage[parameter] = _mask(gradient != 0, parameter.dtype)
    return usage


def _mask(used: Tensor, dtype: torch.dtype) -> Mask | None:
    if bool(used.all()):
        return None
    for axis in range(used.dim()):
        first = used.narrow(axis, 0, 1)
        used = first if torch.equal(used, first.expand_as(used)) else used
    return Mask.of(used.to(dtype))


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
