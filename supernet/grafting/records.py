"""What the blocks of a network are given, and what their mixers make of it: noted by hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from searchspace.mixers import NoMixer
from supernet.network import Supernet


@dataclass(slots=True)
class BlockRecord:
    """The last batch of a block: its map (B, H, W, C), and what its mixer added to it."""

    x: Tensor | None = None
    mixed: Tensor | None = None


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
            record = records[name] = BlockRecord()
            block = network.get_submodule(name)
            handles.append(block.register_forward_pre_hook(partial(_note_input, record)))
            if not isinstance(mixer, NoMixer):
                mixing = block.get_submodule(f"mixers.{mixer.kind}")
                handles.append(mixing.register_forward_hook(partial(_note_output, record)))
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()


def _note_input(record: BlockRecord, module: nn.Module, arguments: tuple[Any, ...]) -> None:
    record.x = arguments[0]


def _note_output(
    record: BlockRecord, module: nn.Module, arguments: tuple[Any, ...], output: Tensor
) -> None:
    record.mixed = output
