"""Whose fault an error is: only the cluster's faults are tried again."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

import pytest
import torch

from search.run_folder.disk import FullDiskError, is_disk_full
from search.run_folder.storage import StorageError
from search.scheduling.tasks import Outcome, outcome_of_error


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (KeyError("head"), "failed"),
        (ValueError("no"), "failed"),
        (FloatingPointError("The loss is nan"), "failed"),
        (MemoryError(), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "full disk"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "full disk"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "full disk"),
        (OSError(errno.ENOENT, "No such file"), "failed"),
        (StorageError("s3://bucket/run: TimeoutError: no answer"), "no storage"),
    ],
)
def test_an_error_says_whose_fault_it_is(
    error: Exception, outcome: Outcome, tmp_path: Path
) -> None:
    assert outcome_of_error(error, tmp_path) == outcome


def test_the_databases_word_for_a_full_disk_is_understood(tmp_path: Path) -> None:
    assert is_disk_full(sqlite3.OperationalError("database or disk is full"), tmp_path)
    assert is_disk_full(FullDiskError("run"), tmp_path / "not" / "there")
    assert not is_disk_full(sqlite3.OperationalError("database is locked"), tmp_path)
