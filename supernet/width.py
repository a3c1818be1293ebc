"""Narrower networks: what a part of a supernet is with fewer channels.

A narrow part computes with the first channels of every weight of the wide one (Yu et al. 2019,
Slimmable Neural Networks, https://arxiv.org/abs/1812.08928). It is a module built for that width,
without weights of its own, which gets these slices whenever it is called. So whatever a module
computes, it computes at every width, and a narrow network of its own is the same code again.

A weight may hold several blocks of channels along an axis: queries, keys and values in one
projection, the four tokens that a patch merging joins. It is cut to the first channels of each
block. Its module has an attribute ``channel_blocks`` that says so: the axis and the sizes of its
blocks, by the name of the weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

ChannelBlocks: TypeAlias = dict[str, tuple[int, tuple[int, ...]]]


class NarrowPart:
    """A part of a supernet, with fewer channels.

    A part may have a method ``unused(*arguments)``, which says how the names of weights start that
    such a call does not need.

    Args:
        wide: The part itself; its weights may change and move, its modules stay.
        narrow: The same part built for fewer channels; its own weights are never looked at.

    Raises:
        ValueError: If a weight of the narrow part is no part of that of the wide one.
    """

    def __init__(self, wide: nn.Module, narrow: nn.Module) -> None:
        self._wide, self._narrow, self._select = wide, narrow, _Select(narrow)
        self._slices = {slice_.name: slice_ for slice_ in _slices(wide, narrow)}
        # One name of what has several; for one call they may not be given twice.
        self._distinct = [name for name in _distinct_names(narrow) if name in self._slices]

    def __call__(self, *arguments: Any) -> Any:
        """Call ``forward`` of the narrow part."""
        if self._narrow.training != self._wide.training:
            self._narrow.train(self._wide.training)
        unused = getattr(self._wide, "unused", lambda *arguments: ())(*arguments)
        state = {
            name: slice_() for name, slice_ in self._slices.items() if not name.startswith(unused)
        }
        return functional_call(self._narrow, state, arguments, tie_weights=False)

    def select(self, *arguments: Any) -> dict[str, Tensor]:
        """Call ``select`` of the narrow part; of a part without, return all of its state."""
        state = {f"part.{name}": self._slices[name]() for name in self._distinct}
        return cast(
            dict[str, Tensor],
            functional_call(self._select, state, arguments, tie_weights=False),
        )

    def modules(self) -> Iterator[nn.Module]:
        """Yield the modules of both parts: those that compute, and those that have the state."""
        return chain(self._narrow.modules(), self._wide.modules())


class _Select(nn.Module):
    """Makes ``select`` of a module its ``forward``, the one method that can be given weights."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, *arguments: Any) -> dict[str, Tensor]:
        if hasattr(self.part, "select"):
            return cast(dict[str, Tensor], cast(Any, self.part).select(*arguments))
        return self.part.state_dict(keep_vars=True)


class _Slice:
    """The first channels of one weight or statistic of a module.

    Args:
        name: Its name in the whole part.
        owner: The module of the wide part that has it.
        shape: What is left of it.
        axis: The axis that holds blocks of channels, if there is one.
        blocks: The sizes of these blocks, each with what is left of it.
    """

    def __init__(
        self,
        name: str,
        owner: nn.Module,
        shape: Sequence[int],
        axis: int | None,
        blocks: Sequence[tuple[int, int]],
    ) -> None:
        self.name, self._owner, self._leaf = name, owner, name.rpartition(".")[2]
        self._shape, self._axis, self._blocks = tuple(shape), axis, blocks

    def __call__(self) -> Tensor:
        value = self._value
        for axis, size in enumerate(self._shape):
            if size == value.shape[axis]:
                continue
            if axis == self._axis:
                blocks = value.split([full for full, _ in self._blocks], axis)
                pairs = zip(blocks, self._blocks, strict=True)
                value = torch.cat([block.narrow(axis, 0, left) for block, (_, left) in pairs], axis)
            else:
                value = value.narrow(axis, 0, size)
        return value

    @property
    def _value(self) -> Tensor:
        return cast(Tensor, getattr(self._owner, self._leaf))


def _slices(wide: nn.Module, narrow: nn.Module) -> Iterator[_Slice]:
    """Say how each weight and statistic of a narrow module is cut out of the wide one's."""
    blocks, narrow_blocks = _channel_blocks(wide), _channel_blocks(narrow)
    parameters = narrow.named_parameters(remove_duplicate=False)
    for name, value in chain(parameters, narrow.named_buffers(remove_duplicate=False)):
        owner = wide.get_submodule(name.rpartition(".")[0])
        axis, sizes = blocks.get(name, (None, ()))
        _, lefts = narrow_blocks.get(name, (None, ()))
        full = getattr(owner, name.rpartition(".")[2])
        if full is None or len(sizes) != len(lefts) or _is_larger(value, full):
            raise ValueError(
                f"The weight {name} of a narrow network is no part of that of the widest. Remove "
                "the choice of width from the space, or what the mixers of a block share."
            )
        yield _Slice(name, owner, value.shape, axis, [*zip(sizes, lefts, strict=True)])


def _is_larger(value: Tensor, full: Tensor) -> bool:
    return any(size > most for size, most in zip(value.shape, full.shape, strict=True))


def _distinct_names(part: nn.Module) -> Iterator[str]:
    """Name the weights and statistics of all modules, those of a shared module once."""
    for path, module in part.named_modules():
        for leaf in (*module._parameters, *module._buffers):
            yield f"{path}.{leaf}".lstrip(".")


def _channel_blocks(part: nn.Module) -> ChannelBlocks:
    """Gather what the modules of a part say about their weights, by name in the part."""
    return {
        f"{path}.{name}".lstrip("."): found
        for path, module in part.named_modules(remove_duplicate=False)
        for name, found in getattr(module, "channel_blocks", {}).items()
    }
