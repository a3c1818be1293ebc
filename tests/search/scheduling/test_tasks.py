"""Whose fault an error is: only the cluster's faults are tried again."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

import pytest
import torch

from search.run_folder.disk import FullDiskError, is_disk_full
from search.run_folder.files import StorageError
from search.scheduling.tasks import (
    SPOILT_STATUS,
    Outcome,
    ending_spoilt,
    outcome_of_error,
    spoils_process,
)


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


SPOILING = (
    RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might"),
    RuntimeError("CUDA error: device-side assert triggered"),
    type("AcceleratorError", (RuntimeError,), {})("an error of the accelerator"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"),
    RuntimeError("CUBLAS_STATUS_INTERNAL_ERROR"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("unspecified launch failure"),
)
# What the network itself, its size, or the disk did; the device works on.
HARMLESS = (
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
    OSError(errno.ENOSPC, "No space left on device"),
    AssertionError("Torch not compiled with CUDA enabled"),
)


@pytest.mark.parametrize("error", SPOILING, ids=str)
def test_an_error_of_the_device_spoils_its_process(error: Exception) -> None:
    assert spoils_process(error)
    wrapped = ValueError("The supernet cannot be read")
    wrapped.__cause__ = error
    assert spoils_process(wrapped)


@pytest.mark.parametrize("error", HARMLESS, ids=str)
def test_an_error_that_the_device_survives_spoils_nothing(error: Exception) -> None:
    assert not spoils_process(error)


@pytest.mark.parametrize("name", ["CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"])
def test_a_library_without_a_workspace_is_out_of_memory(name: str, tmp_path: Path) -> None:
    assert outcome_of_error(RuntimeError(f"CUDA error: {name}"), tmp_path) == "out of memory"


def test_a_spoilt_process_ends_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)
    for error in HARMLESS:
        with pytest.raises(type(error)), ending_spoilt():
            raise error
    assert ended == []
    for error in SPOILING:
        with pytest.raises(type(error)), ending_spoilt():
            raise error
    assert ended == [SPOILT_STATUS] * len(SPOILING)


def test_the_databases_word_for_a_full_disk_is_understood(tmp_path: Path) -> None:
    assert is_disk_full(sqlite3.OperationalError("database or disk is full"), tmp_path)
    assert is_disk_full(FullDiskError("run"), tmp_path / "not" / "there")
    assert not is_disk_full(sqlite3.OperationalError("database is locked"), tmp_path)
