"""What mixers and MLPs of a network are given, and what they make of it: noted by hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from searchspace.mixers import NoMixer
from supernet.network import Supernet


@dataclass(slots=True)
class Record:
    """The last batch of a mixer or an MLP: maps (B, H, W, C).

    Attributes:
        given: To a mixer as the block gets it, in front of the norm; to an MLP behind its norm.
        added: What it adds to the block's map.
    """

    given: Tensor = field(default_factory=lambda: torch.empty(0))
    added: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True, slots=True)
class BlockRecord:
    """What is noted of a block."""

    mixer: Record
    mlp: Record


@contextmanager
def record_blocks(network: Supernet) -> Iterator[dict[str, BlockRecord]]:
    """Write down every batch that passes through a network while the block runs.

    Yields:
        A record for each of its blocks, by the block's name.
    """
    architecture = network.only
    assert architecture is not None
    records: dict[str, BlockRecord] = {}
    handles = []
    for index, stage in enumerate(architecture.stages):
        for number, mixer in enumerate(stage.mixers):
            name = f"stages.{index}.{number}"
            record = records[name] = BlockRecord(Record(), Record())
            block = network.get_submodule(name)
            handles.append(block.register_forward_pre_hook(partial(_note_given, record.mixer)))
            if stage.ratios[number]:
                mlp = block.get_submodule("mlp")
                handles.append(mlp.register_forward_pre_hook(partial(_note_given, record.mlp)))
                handles.append(mlp.register_forward_hook(partial(_note_added, record.mlp)))
            if not isinstance(mixer, NoMixer):
                mixing = block.get_submodule(f"mixers.{mixer.kind}")
                handles.append(mixing.register_forward_hook(partial(_note_added, record.mixer)))
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()


def _note_given(record: Record, module: nn.Module, arguments: tuple[Any, ...]) -> None:
    record.given = arguments[0]


def _note_added(
    record: Record, module: nn.Module, arguments: tuple[Any, ...], output: Tensor
) -> None:
    record.added = output
