"""The processes that train one network together, started by Ray or by torchrun."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.distributed as dist
import typer

from supernet.training import TrainingStopped, in_group, process_place


@contextmanager
def joined(group: tuple[str, int, int] | None, device: str) -> Iterator[bool]:
    """Join the processes that train together; tell whether this is the first of them.

    Args:
        group: Where they meet, their number, and which this one is; None for one process, or for
            the default group where there is one.
        device: That they train on.
    """
    if group is None:
        yield process_place()[0] == 0
        return
    address, world_size, rank = group
    dist.init_process_group(_backend(device), init_method=address, world_size=world_size, rank=rank)
    with in_group():
        yield rank == 0


@contextmanager
def joined_torchrun(device: str) -> Iterator[bool]:
    """Join the group that torchrun's variables describe, if there is one; see `joined`.

    Raises:
        Exit: Where a training in the block was stopped or came to nothing, which is said.
    """
    is_group = "RANK" in os.environ
    if is_group:
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group(_backend(device))
    try:
        with in_group() if is_group else nullcontext():
            yield not is_group or dist.get_rank() == 0
    except TrainingStopped as stopped:
        print(f"{stopped} The same command goes on.")
        raise typer.Exit(130) from None
    except FloatingPointError as error:
        print(f"Failed: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


@contextmanager
def first_goes_first(is_first: bool) -> Iterator[None]:
    """Let the first process of a group make in the block what the others find in it then."""
    if not is_first:
        dist.barrier()
    yield
    if is_first and dist.is_initialized():
        dist.barrier()


def _backend(device: str) -> str:
    return "nccl" if device == "cuda" else "gloo"
