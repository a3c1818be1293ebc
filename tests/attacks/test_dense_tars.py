"""Tars of boxes and masks from strangers: one message, before anything is written."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from supernet.data.dense import open_dense_data


def link(archive: tarfile.TarFile) -> None:
    info = tarfile.TarInfo("train/away")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc"
    archive.addfile(info)


def device(archive: tarfile.TarFile) -> None:
    info = tarfile.TarInfo("train/0.png")
    info.type = tarfile.CHRTYPE
    archive.addfile(info)


def pipe(archive: tarfile.TarFile) -> None:
    info = tarfile.TarInfo("annotations/instances_train.json")
    info.type = tarfile.FIFOTYPE
    archive.addfile(info)


def above(archive: tarfile.TarFile) -> None:
    info = tarfile.TarInfo("../outside.txt")
    info.size = 3
    archive.addfile(info, io.BytesIO(b"out"))


def huge(archive: tarfile.TarFile) -> None:
    info = tarfile.TarInfo("annotations/instances_train.json")
    info.size = 20 * 2**30
    assert archive.fileobj is not None
    archive.fileobj.write(info.tobuf())


@pytest.mark.parametrize("attack", [link, device, pipe, above, huge])
def test_a_hostile_tar_is_one_message_and_nothing_is_written_outside(
    tmp_path: Path, attack: Callable[[tarfile.TarFile], None]
) -> None:
    source = tmp_path / "in" / "boxes.tar"
    source.parent.mkdir()
    with tarfile.open(source, "w") as archive:
        attack(archive)

    with pytest.raises(ValueError, match=r"boxes\.tar is damaged, or no tar") as raised:
        open_dense_data(str(source), "instance", unpack_to=tmp_path / "out" / "unpacked")

    assert len(str(raised.value).splitlines()) == 1
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path != source]
    assert written == []


def test_a_small_archive_of_zeros_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "boxes.tar.gz"
    with tarfile.open(source, "w:gz") as archive:
        info = tarfile.TarInfo("train/0.png")
        info.size = 200 * 2**20
        archive.addfile(info, io.BytesIO(bytes(info.size)))

    with pytest.raises(ValueError, match="announces"):
        open_dense_data(str(source), "instance", unpack_to=tmp_path / "out")
