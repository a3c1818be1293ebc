"""Images for training: a source is decoded once into arrays on disk that all processes share.

`prepare_data` leaves the train and search splits in a folder, as uint8 arrays to be mapped into
memory, and `open_data` opens them in milliseconds. The test split is not decoded before
`ImageData.test_split` is called, which only retraining does: no choice made by a search can depend
on it. A source whose arrays would be too large is streamed instead: decoded whenever it is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from configs.reading import read_json
from searchspace import durable
from supernet.data.arrays import (
    GIB,
    LOCK_FILE,
    OnProgress,
    Split,
    array_bytes,
    channel_statistics,
    check_disk,
    fingerprint,
    is_sound,
    is_stored,
    load_arrays,
    locked,
    read_array,
    remove_arrays,
    write_split,
)
from supernet.data.catalog import DIGITS, open_source, resolve_source
from supernet.data.source import Source
from supernet.data.splits import SEARCH, SPLITS, TEST, TRAIN, IntArray
from supernet.data.streaming import StreamedImages, listed
from supernet.data.summary import Summary, read_summary, summarize, write_summary

DATA_FILE = "data.json"
# Of all images in the order train, search, test: where the source has them, of what class they are
# (both only where they are streamed), and hashes of their content, 0 where it was not read.
POSITIONS_FILE, LABELS_FILE, DIGESTS_FILE = "positions.npy", "labels.npy", "digests.npy"
# So many streamed training images are read to notice later that they are others.
SAMPLED_IMAGES = 2_000
# One file for both, train first, so that together they need no copy.
TRAIN_SEARCH = "train_search"
MEMORY_LIMIT_BYTES = 4 * GIB
MIN_IMG_SIZE = 8
# timm's constants; timm takes seconds to import.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# The share of a stored image's side that an evaluation sees, as in timm.
CROP_FRACTION = 0.875


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageData:
    """Prepared images and what there is to know about them; small, and cheap to pickle.

    Attributes:
        source: Where the images come from, absolute, so that it can be opened again.
        img_size: The side of the images that networks see.
        stored_size: The side of the stored images: training crops ``img_size`` at random from
            them, evaluation takes the centre.
        allows_flip: False where a mirrored image may be of another class, as with digits.
        mean: Of each channel over the train split, in 0..1; ImageNet's where images are streamed.
        std: Likewise.
        sizes: The number of images of train, search and test.
        fingerprint: Hash of the decoded train and search splits; the listing's for streamed ones.
        listing: Hash of the names and classes of all images of the source.
        content: Hash of the digests of the test images' files, and where images are streamed of
            the search images' and a sample of the training images'; empty if they were not read.
        is_streamed: Nothing is stored, and images have their own sizes until they are cropped.
    """

    name: str
    source: str
    folder: Path
    class_names: tuple[str, ...]
    img_size: int
    stored_size: int
    allows_flip: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sizes: Mapping[str, int]
    fingerprint: str
    listing: str
    content: str = ""
    is_streamed: bool = False

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    def split(self, name: str) -> Split:
        """Open the ``train`` or the ``search`` split."""
        if name not in (TRAIN, SEARCH):
            raise ValueError(
                f"A search may read the splits 'train' and 'search', got {name!r}. The test split "
                "is for retraining: test_split()."
            )
        both = self.full_train()
        rows = slice(self.sizes[TRAIN]) if name == TRAIN else slice(self.sizes[TRAIN], None)
        return Split(both.images[rows], both.labels[rows])

    def full_train(self) -> Split:
        """Open train and search as one split, to retrain on."""
        if self.is_streamed:
            return self._stream(TRAIN, SEARCH)
        return Split(*load_arrays(self.folder, TRAIN_SEARCH))

    def streamed(self) -> ImageData:
        """Return the same images streamed, whether or not they are stored."""
        source = listed(self.source, self.img_size)
        return replace(
            self,
            is_streamed=True,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            fingerprint=source.fingerprint(),
        )

    def at_size(self, img_size: int, folder: Path) -> ImageData:
        """Prepare the same images for networks that see them at another size.

        Raises:
            ValueError: If the source lists others by now, or has other test images.
        """
        if not (folder / DATA_FILE).exists():
            source = open_source(self.source, img_size=img_size)
            if source.fingerprint() != self.listing or self._tests_other_images(source):
                raise _changed(self)
        found = prepare_data(self.source, img_size=img_size, folder=folder)
        if found.listing != self.listing:
            raise ValueError(
                f"{folder} holds other images than {self.folder}, which come from the same "
                "place. Remove it."
            )
        return found

    def _tests_other_images(self, source: Source) -> bool:
        """Tell whether test images have another content than they had."""
        known = self.test_digests()
        # The digits come scaled, so that their content is that of their size.
        if self.source == DIGITS or not known.any():
            return False
        return not np.array_equal(source.digests(source.splits()[TEST]), known)

    def with_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> ImageData:
        """Return the same images for networks that were trained with other statistics.

        Args:
            mean: Of each channel, in 0..1.
            std: Likewise.
        """
        return replace(self, mean=tuple(mean), std=tuple(std))

    def lines(self) -> list[str]:
        """Say how many images of which classes there are, and what was left out."""
        summary = self.summary()
        if summary is not None:
            return summary.lines()
        return [f"{split}: {count:,} images" for split, count in self.sizes.items()]

    def summary(self) -> Summary | None:
        """Return how many images of which classes there are, and what was left out."""
        return read_summary(self.folder)

    def _stream(self, *splits: str) -> Split:
        source = listed(self.source, self.img_size)
        if source.fingerprint() != self.listing:
            raise _changed(self)
        positions, labels = self._stored_order(source)
        starts = dict(zip(SPLITS, np.cumsum([0, *self.sizes.values()]), strict=False))
        rows = slice(starts[splits[0]], starts[splits[-1]] + self.sizes[splits[-1]])
        images = StreamedImages(self.source, self.img_size, positions[rows], self._digests()[rows])
        return Split(images, labels[rows])

    def _stored_order(self, source: Source) -> tuple[IntArray, IntArray]:
        """Return positions and labels of train, search and test; found once, as it takes long."""
        if (self.folder / POSITIONS_FILE).is_file():
            positions = _load_rows(self, POSITIONS_FILE)
            return positions, _load_rows(self, LABELS_FILE)
        found = source.splits()
        positions = np.concatenate([found[split] for split in SPLITS])
        return positions, source.labels[positions]

    def test_digests(self) -> IntArray:
        """Return the digests of the test images, 0 where there are none."""
        return self._digests()[-self.sizes[TEST] :]

    def search_digests(self) -> IntArray:
        """Return the digests of the search images, which are read again where they are stored."""
        if self.is_streamed:
            return self._digests()[self.sizes[TRAIN] : -self.sizes[TEST]]
        source = open_source(self.source, img_size=self.img_size)
        return source.digests(source.splits()[SEARCH])

    def _digests(self) -> IntArray:
        """Return the digests of train, search and test, 0 where there are none.

        Raises:
            ValueError: If they are not those that were written.
        """
        if not self.content:
            return np.zeros(sum(self.sizes.values()), dtype=np.int64)
        digests = _load_rows(self, DIGESTS_FILE)
        if hashlib.sha256(digests.tobytes()).hexdigest() != self.content:
            raise _not_prepared(self.folder, f"{DIGESTS_FILE} is damaged")
        return digests

    def test_split(self, on_progress: OnProgress | None = None) -> Split:
        """Open the test split, decoding it from the source when it is asked for the first time.

        Raises:
            ValueError: If the source is gone or not what it was, or an image is damaged.
        """
        if self.is_streamed:
            return self._stream(TEST)
        if not is_sound(self.folder, TEST):
            with locked(self.folder):
                # Another process may have been at it while this one waited.
                if not is_sound(self.folder, TEST):
                    _prepare_test(self, on_progress)
        return Split(*load_arrays(self.folder, TEST))


def prepare_data(
    source: str,
    *,
    img_size: int,
    folder: Path,
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
    on_progress: OnProgress | None = None,
    reads_content: bool = True,
) -> ImageData:
    """Decode the train and search splits of a source into a folder, unless that is done already.

    What was begun is done anew. Arrays that are damaged or gone are decoded again, and must become
    what they were.

    Images of exactly ``img_size`` x ``img_size`` are kept as they are. If any differs, the central
    square of each is scaled to a side of ``img_size / 0.875``, to leave training room for crops.

    Args:
        source: ``digits``, an ImageFolder, a tar of one, or a timm name (``NAME`` or
            ``NAME:FOLDER``).
        img_size: The side of the images that networks will see, in pixels.
        folder: Where the arrays go; made if it is missing, used again if it holds the same data.
        memory_limit_bytes: The most that the arrays of all three splits may take; a larger source
            is streamed.
        on_progress: Called with the number of images done and their total, every few hundred.
        reads_content: Read the files that are not decoded now, so that it is noticed later if they
            are others.

    Raises:
        ValueError: If the source cannot be used as it is; nothing is left behind.
    """
    if img_size < MIN_IMG_SIZE:
        raise ValueError(f"img_size must be at least {MIN_IMG_SIZE} pixels, got {img_size}.")
    recorded = resolve_source(source)
    if (folder / DATA_FILE).exists():
        return _taken_up(folder, recorded, img_size, on_progress)
    opened = open_source(recorded, img_size=img_size)
    with durable.made_folder(folder), locked(folder):
        # Another process may have been at it while this one waited.
        if (folder / DATA_FILE).exists():
            return _same_data(open_data(folder), recorded, img_size)
        remove_arrays(folder, TRAIN_SEARCH)
        remove_arrays(folder, TEST)
        try:
            positions = opened.splits()
            data = _prepare(
                opened, positions, recorded, img_size, folder, memory_limit_bytes, on_progress
            )
            return _described(data, opened, positions, reads_content=reads_content)
        except BaseException:
            remove_arrays(folder, TRAIN_SEARCH)
            (folder / LOCK_FILE).unlink()
            raise


def open_data(folder: Path) -> ImageData:
    """Open what `prepare_data` left in a folder.

    Raises:
        ValueError: If the folder does not hold prepared data.
    """
    data = _read_description(folder)
    if not data.is_streamed and not is_stored(folder, TRAIN_SEARCH):
        raise _not_prepared(folder, "its arrays are missing")
    return data


def mend_data(folder: Path) -> ImageData:
    """Open prepared data, after decoding arrays anew that are damaged or gone.

    Raises:
        ValueError: If the folder does not hold prepared data, or the source has changed.
    """
    data = _read_description(folder)
    return _taken_up(folder, data.source, data.img_size, None)


def _read_description(folder: Path) -> ImageData:
    try:
        data = read_json(folder / DATA_FILE)
        if not isinstance(data, dict) or data.pop("checksum", "") != _checksum(data):
            raise ValueError(f"{DATA_FILE} is damaged")
        for name in ("class_names", "mean", "std"):
            data[name] = tuple(data[name])
        return ImageData(**data, folder=folder)
    except (ValueError, KeyError, TypeError) as error:
        raise _not_prepared(folder, str(error)) from error


def _not_prepared(folder: Path, reason: str) -> ValueError:
    return ValueError(
        f"{folder} does not hold prepared data ({reason}). Delete it and prepare it again."
    )


def _taken_up(
    folder: Path, source: str, img_size: int, on_progress: OnProgress | None
) -> ImageData:
    """Open prepared data; decode arrays anew that are damaged or gone."""
    data = _same_data(_read_description(folder), source, img_size)
    if data.is_streamed or is_sound(folder, TRAIN_SEARCH):
        return data
    opened = open_source(source, img_size=img_size)
    with locked(folder):
        if is_sound(folder, TRAIN_SEARCH):
            return data
        if opened.fingerprint() != data.listing:
            raise _changed(data)
        positions = opened.splits()
        write_split(
            opened,
            np.concatenate([positions[TRAIN], positions[SEARCH]]),
            folder=folder,
            stem=TRAIN_SEARCH,
            stored_size=data.stored_size,
            on_progress=on_progress,
        )
        if fingerprint(*load_arrays(folder, TRAIN_SEARCH)) != data.fingerprint:
            remove_arrays(folder, TRAIN_SEARCH)
            raise _changed(data)
    return data


def _load_rows(data: ImageData, name: str) -> IntArray:
    """Map an array with a row for each image."""
    try:
        rows = read_array(data.folder / name, np.int64)
    except ValueError as error:
        raise _not_prepared(data.folder, str(error)) from error
    if rows.shape != (sum(data.sizes.values()),):
        raise _not_prepared(data.folder, f"{name} is damaged")
    return rows


def _described(
    data: ImageData, source: Source, positions: Mapping[str, IntArray], *, reads_content: bool
) -> ImageData:
    """Write what else is known of the source, and then that the data are complete."""
    order = np.concatenate([positions[split] for split in SPLITS])
    write_summary(data.folder, summarize(source, positions))
    if data.is_streamed:
        _save_rows(data.folder / POSITIONS_FILE, order)
        _save_rows(data.folder / LABELS_FILE, source.labels[order])
    if reads_content:
        is_read = np.arange(len(order)) >= data.sizes[TRAIN] + data.sizes[SEARCH]
        if data.is_streamed:
            is_read[data.sizes[TRAIN] :] = is_read[:SAMPLED_IMAGES] = True
        digests = np.zeros(len(order), dtype=np.int64)
        digests[is_read] = source.digests(order[is_read])
        if data.is_streamed:
            # To read them all would take as long as an epoch; their sizes are to be had for little.
            digests[~is_read] = source.sizes(order[~is_read])
        _save_rows(data.folder / DIGESTS_FILE, digests)
        data = replace(data, content=hashlib.sha256(digests.tobytes()).hexdigest())
    write_description(data)
    return data


def _save_rows(path: Path, rows: IntArray) -> None:
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        np.save(file, rows)
    durable.replace(partial, path)


def _prepare(
    source: Source,
    positions: Mapping[str, IntArray],
    recorded: str,
    img_size: int,
    folder: Path,
    memory_limit_bytes: int,
    on_progress: OnProgress | None,
) -> ImageData:
    sizes = {split: len(positions[split]) for split in SPLITS}
    both = np.concatenate([positions[TRAIN], positions[SEARCH]])
    for stored_size in (img_size, round(img_size / CROP_FRACTION)):
        if array_bytes(sum(sizes.values()), stored_size) > memory_limit_bytes:
            listed(recorded, img_size)  # says so if it cannot be streamed
            return _streamed(source, recorded, img_size, folder, sizes)
        check_disk(sum(sizes.values()), stored_size, folder)
        is_complete = write_split(
            source,
            both,
            folder=folder,
            stem=TRAIN_SEARCH,
            stored_size=stored_size,
            exact=stored_size == img_size,
            on_progress=on_progress,
        )
        if is_complete:
            break
    images, labels = load_arrays(folder, TRAIN_SEARCH)
    mean, std = channel_statistics(images[: sizes[TRAIN]])
    return ImageData(
        name=source.name,
        source=recorded,
        folder=folder,
        class_names=source.class_names,
        img_size=img_size,
        stored_size=stored_size,
        allows_flip=source.allows_flip,
        mean=mean,
        std=std,
        sizes=sizes,
        fingerprint=fingerprint(images, labels),
        listing=source.fingerprint(),
    )


def _streamed(
    source: Source, recorded: str, img_size: int, folder: Path, sizes: Mapping[str, int]
) -> ImageData:
    """Describe a source that is too large to be stored."""
    remove_arrays(folder, TRAIN_SEARCH)
    return ImageData(
        name=source.name,
        source=recorded,
        folder=folder,
        class_names=source.class_names,
        img_size=img_size,
        stored_size=round(img_size / CROP_FRACTION),
        allows_flip=source.allows_flip,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        sizes=sizes,
        fingerprint=source.fingerprint(),
        listing=source.fingerprint(),
        is_streamed=True,
    )


def write_description(data: ImageData) -> None:
    """Write what `open_data` reads; with it the folder is complete."""
    fields = {name: value for name, value in asdict(data).items() if name != "folder"}
    fields["checksum"] = _checksum(fields)
    durable.write_text(data.folder / DATA_FILE, json.dumps(fields, indent=1) + "\n")


def _checksum(fields: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def _changed(data: ImageData) -> ValueError:
    return ValueError(
        f"The data {data.source} must not change during a run, but its images differ from "
        f"those that {data.folder} was prepared from. Restore them."
    )


def _prepare_test(data: ImageData, on_progress: OnProgress | None) -> None:
    source = open_source(data.source, img_size=data.img_size)
    if source.fingerprint() != data.listing:
        raise _changed(data)
    try:
        write_split(
            source,
            source.splits()[TEST],
            folder=data.folder,
            stem=TEST,
            stored_size=data.stored_size,
            digests=data.test_digests(),
            on_progress=on_progress,
        )
    except BaseException:
        remove_arrays(data.folder, TEST)
        raise


def _same_data(data: ImageData, source: str, img_size: int) -> ImageData:
    if (data.source, data.img_size) != (source, img_size):
        raise ValueError(
            f"{data.folder} holds {data.source} at {data.img_size} pixels, not {source} at "
            f"{img_size} pixels. Choose another folder."
        )
    return data
