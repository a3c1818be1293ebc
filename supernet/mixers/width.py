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

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
        self._slices = dict(_slices(wide, narrow))
        self._owners = {name: _owner(narrow, name) for name in self._slices}
        self._used: dict[tuple[str, ...], dict[str, _Slice]] = {}
        # One name of what has several; for one call they may not be given twice.
        names = (name for name in _distinct_names(narrow) if name in self._slices)
        self._distinct = {name: self._slices[name] for name in names}

    def __call__(self, *arguments: Any) -> Any:
        """Call ``forward`` of the narrow part."""
        if self._narrow.training != self._wide.training:
            self._narrow.train(self._wide.training)
        unused = getattr(self._wide, "unused", lambda *arguments: ())(*arguments)
        if unused not in self._used:
            self._used[unused] = {
                name: one for name, one in self._slices.items() if not name.startswith(unused)
            }
        with self._lent(_cut(self._used[unused])):
            return self._narrow(*arguments)

    @contextmanager
    def _lent(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Let the narrow part have weights; `functional_call` takes a tenth of a small step."""
        places = [self._owners[name] for name in values]
        own = [owner[leaf] for owner, leaf in places]
        try:
            for (owner, leaf), lent in zip(places, values.values(), strict=True):
                owner[leaf] = lent
            yield
        finally:
            for (owner, leaf), kept in zip(places, own, strict=True):
                owner[leaf] = kept

    def select(self, *arguments: Any) -> dict[str, Tensor]:
        """Call ``select`` of the narrow part; of a part without, return all of its state."""
        state = {f"part.{name}": value for name, value in _cut(self._distinct).items()}
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
        self._owner, self._leaf = owner, name.rpartition(".")[2]
        places: list[list[slice]] = [[]]
        for number, size in enumerate(shape):
            cuts, start = [slice(size)], 0
            if number == axis:
                cuts = []
                for full, left in blocks:
                    cuts.append(slice(start, start + left))
                    start += full
            places = [[*place, cut] for cut in cuts for place in places]
        self.places, self.axis = [tuple(place) for place in places], axis or 0
        self.is_whole = tuple(shape) == tuple(self.value.shape)

    @property
    def value(self) -> Tensor:
        """The whole weight or statistic."""
        return cast(Tensor, getattr(self._owner, self._leaf))

    def cut(self, value: Tensor) -> Tensor:
        """Cut a tensor of the whole shape: a view, or a copy where there are several blocks."""
        parts = [value[place] for place in self.places]
        return parts[0] if len(parts) == 1 else torch.cat(parts, self.axis)

    def fill(self, gradient: Tensor, whole: Tensor) -> None:
        """Write the gradient of what was cut into one of the whole shape."""
        sizes = [whole[place].shape[self.axis] for place in self.places]
        parts = gradient.split(sizes, self.axis) if len(sizes) > 1 else [gradient]
        for place, part in zip(self.places, parts, strict=True):
            whole[place] = part


class _Cut(torch.autograd.Function):
    """Cuts all weights of a part in one step: half the time of a step for each cut."""

    @staticmethod
    def forward(ctx: Any, slices: Sequence[_Slice], *values: Tensor) -> tuple[Tensor, ...]:
        ctx.slices, ctx.values = slices, values
        # Dense, as those of a network of its own: products of rows that lie apart are slower.
        return tuple(one.cut(v).contiguous() for one, v in zip(slices, values, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        found: list[Tensor | None] = [None]
        for one, value, gradient in zip(ctx.slices, ctx.values, gradients, strict=True):
            whole = None
            if gradient is not None:
                whole = torch.zeros_like(value)
                one.fill(gradient, whole)
            found.append(whole)
        return tuple(found)


def _cut(slices: Mapping[str, _Slice]) -> dict[str, Tensor]:
    """Cut weights and statistics, by name."""
    found = {name: one.value for name, one in slices.items()}
    # Statistics are changed where they are, so they stay views.
    found |= {
        name: slices[name].cut(value) for name, value in found.items() if not value.requires_grad
    }
    learned = [
        name for name, value in found.items() if value.requires_grad and not slices[name].is_whole
    ]
    cut = _Cut.apply([slices[name] for name in learned], *(found[name] for name in learned))
    return found | dict(zip(learned, cut, strict=True))


def _slices(wide: nn.Module, narrow: nn.Module) -> Iterator[tuple[str, _Slice]]:
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
        yield name, _Slice(name, owner, value.shape, axis, [*zip(sizes, lefts, strict=True)])


def _is_larger(value: Tensor, full: Tensor) -> bool:
    return any(size > most for size, most in zip(value.shape, full.shape, strict=True))


def _owner(part: nn.Module, name: str) -> tuple[dict[str, Tensor | None], str]:
    """Return where a module keeps a weight or statistic, and under which name."""
    path, _, leaf = name.rpartition(".")
    module = part.get_submodule(path)
    kept = module._parameters if leaf in module._parameters else module._buffers
    return cast(dict[str, Tensor | None], kept), leaf


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
