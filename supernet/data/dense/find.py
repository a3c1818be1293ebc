"""Which layout a folder has: COCO's annotations, ADE20K's folders, or images with masks.

Networks are judged on the test split; where there is none, on the validation split, as the papers
do on COCO and ADE20K. Everything else is learned from, once a network is trained for good.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

from supernet.data.decoding import MAX_FILE_BYTES
from supernet.data.dense.annotated import DenseData, DenseSplit
from supernet.data.dense.coco import read_coco
from supernet.data.dense.mask_folders import (
    ADE20K_CLASSES,
    read_class_names,
    read_mask_folder,
)
from supernet.data.tars import check_size, members_of, open_checked

_SPLITS = ("train", "val", "test")


def open_dense_data(source: str, task: str, *, unpack_to: Path) -> DenseData:
    """Open data for a task.

    Args:
        source: A folder, or a tar of one.
        task: ``instance``, ``detection`` or ``semantic``.
        unpack_to: Where a tar is unpacked, once.

    Raises:
        ValueError: If there is no data for the task, or something in it is wrong.
    """
    folder = unpacked_folder(source, unpack_to)
    name = Path(source).name.partition(".")[0]
    if task == "semantic":
        return _open_masks(folder, name)
    return _open_coco(folder, name, task)


def unpacked_folder(source: str, unpack_to: Path) -> Path:
    """Return the folder with the data, unpacked once if the source is a tar.

    Raises:
        ValueError: If there is none, or the tar is damaged.
    """
    path = Path(source)
    folder = _unpacked(path, unpack_to) if path.is_file() else path
    if not folder.is_dir():
        raise ValueError(f"There is no folder {source} with data. Check the path.")
    return folder


def _unpacked(path: Path, target: Path) -> Path:
    if not tarfile.is_tarfile(path):
        raise ValueError(f"{path} is neither a folder nor a tar. Give one of them.")
    # Another tar of this name, or this one written anew, is not the one that was unpacked.
    made = path.stat()
    words = f"{path.resolve()} {made.st_size} {made.st_mtime_ns}"
    own = f"{path.stem}-{hashlib.sha256(os.fsencode(words)).hexdigest()[:8]}"
    done, folder = target / f"{own}.unpacked", target / own
    if not done.exists():
        try:
            _check_tar(path)
            folder.mkdir(parents=True, exist_ok=True)
            with open_checked(path, "r:*") as archive:
                for member in members_of(archive, path):
                    archive.extract(member, folder, filter="data")
        except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise ValueError(
                f"The tar {path} is damaged, or no tar of images and annotations ({error}). "
                "Copy or download it again."
            ) from error
        done.touch()
    found = list(folder.iterdir())
    return found[0] if len(found) == 1 and found[0].is_dir() else folder


def _check_tar(path: Path) -> None:
    """Look at every header before anything is written.

    Raises:
        tarfile.TarError: If a member is neither file nor folder, larger than any annotations, or
            stored with holes; if all of them unpack to far more than they take.
    """
    with open_checked(path, "r:*") as archive:
        for member in members_of(archive, path):
            if not (member.isreg() or member.isdir()):
                raise tarfile.ReadError(f"{member.name} is neither a file nor a folder")
            check_size(member, MAX_FILE_BYTES)


def _open_coco(folder: Path, name: str, task: str) -> DenseData:
    splits: dict[str, DenseSplit] = {}
    remarks = []
    for split in _SPLITS:
        files = sorted((folder / "annotations").glob(f"instances_{split}*.json"))
        if not files:
            continue
        if len(files) > 1:
            raise ValueError(
                f"{folder / 'annotations'} has {len(files)} files for {split}: "
                f"{', '.join(file.name for file in files)}. Keep one."
            )
        images = _image_folder(folder, files[0].stem.removeprefix("instances_"), split)
        splits[split], left_out = read_coco(files[0], images, with_masks=task == "instance")
        if left_out:
            remarks.append(
                f"{files[0].name}: {left_out} objects have less than a pixel in their image, and "
                "are not learned from."
            )
    if "train" not in splits or len(splits) < 2:
        raise ValueError(
            f"{folder} needs annotations/instances_train*.json and one of instances_val*.json and "
            f"instances_test*.json for --task {task}, got {', '.join(splits) or 'none'}. Write "
            "COCO's format, or convert Pascal VOC's with python -m supernet.data.dense.voc."
        )
    return _data(name, task, splits, tuple(remarks))


def _image_folder(folder: Path, stem: str, split: str) -> Path:
    tried = [folder / stem, folder / "images" / stem, folder / split, folder / "images" / split]
    for path in tried:
        if path.is_dir():
            return path
    raise ValueError(
        f"The images of {stem} are in none of {', '.join(map(str, dict.fromkeys(tried)))}. "
        "Put them into one."
    )


def _open_masks(folder: Path, name: str) -> DenseData:
    if (folder / "annotations" / "training").is_dir():
        names, masks, is_ade = {"train": "training", "val": "validation"}, "annotations", True
        class_names = tuple(f"class {number}" for number in range(1, ADE20K_CLASSES + 1))
    elif (folder / "masks" / "train").is_dir():
        names, masks, is_ade = {split: split for split in _SPLITS}, "masks", False
        class_names = read_class_names(folder, folder / "masks" / "train")
    else:
        raise ValueError(
            f"{folder} needs masks/train and images/train (or ADE20K's annotations/training and "
            "images/training) for --task semantic. Put PNG files with classes of pixels there."
        )
    splits, remarks = {}, []
    for split, own in names.items():
        if (folder / masks / own).is_dir():
            splits[split], skipped = read_mask_folder(
                folder / "images" / own,
                folder / masks / own,
                class_names,
                zero_is_ignored=is_ade,
            )
            remarks += [
                f"{split}: left out {count:,} {reason} (e.g. {first})."
                for reason, (count, first) in skipped.found.items()
            ]
    if len(splits) < 2:
        raise ValueError(
            f"{folder} has no masks to judge by. Put some into {masks}/{names['val']}."
        )
    return _data(name, "semantic", splits, tuple(remarks))


def _data(
    name: str, task: str, splits: dict[str, DenseSplit], remarks: tuple[str, ...]
) -> DenseData:
    known = {split.class_names for split in splits.values()}
    if len(known) > 1:
        raise ValueError(
            f"The splits of {name} have different classes: "
            f"{'; '.join(', '.join(names) for names in known)}. Give them the same, in one order."
        )
    test_name = "test" if "test" in splits else "val"
    learned = [split for own, split in splits.items() if own != test_name]
    images = tuple(image for split in learned for image in split.images)
    if len({image.number for image in images}) < len(images):  # each file counts anew
        images = tuple(replace(image, number=number) for number, image in enumerate(images))
    return DenseData(
        name=name,
        task=task,
        train=replace(learned[0], images=images),
        test=splits[test_name],
        test_name=test_name,
        remarks=remarks,
    )
