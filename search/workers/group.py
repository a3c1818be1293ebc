"""Processes that train together: where they meet, and how each of them joins the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch.distributed import FileStore, Store, TCPStore  # type: ignore[attr-defined]

from supernet.training import in_group

# So long processes look for each other, and wait for each other's gradients.
MEETING_TIME = timedelta(minutes=2)
SILENCE_TIME = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Meeting:
    """A place where a group meets, open for as long as the process of its first member keeps this.

    Attributes:
        store: That the members find each other in.
        address: For `join_group`.
    """

    store: Store
    address: str


def open_meeting(host: str) -> Meeting:
    """Open a meeting place in this process, at a port that is this process's already.

    Args:
        host: Where the others reach this machine.
    """
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=MEETING_TIME)
    return Meeting(store, f"tcp://{f'[{host}]' if ':' in host else host}:{store.port}")


def join_group(
    address: str, rank: int, world_size: int, *, device: str, store: Store | None = None
) -> Store:
    """Join the processes that train together.

    Args:
        address: Of a `Meeting`, or a file that all of them reach.
        rank: Which one this is.
        world_size: How many there are.
        device: Torch device of each, ``cpu`` or ``cuda``.
        store: The meeting's own, in the process that opened it.

    Returns:
        The store, to be kept for as long as the group lives.
    """
    place = urlsplit(address)
    if place.scheme == "file":
        store = FileStore(place.path, world_size)
    elif store is None:
        assert place.hostname is not None
        assert place.port is not None
        store = TCPStore(place.hostname, place.port, timeout=MEETING_TIME)
    is_gpu = device == "cuda"
    dist.init_process_group(
        "nccl" if is_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=SILENCE_TIME,
        device_id=torch.device("cuda", torch.cuda.current_device()) if is_gpu else None,
    )
    return store


@contextmanager
def joined(group: tuple[str, int, int] | None, *, device: str) -> Iterator[None]:
    """Be one of a group (address, world size, rank) for a block; None is no group."""
    if group is None:
        yield
        return
    address, world_size, rank = group
    store = join_group(address, rank, world_size, device=device)
    with in_group():
        yield
    del store
