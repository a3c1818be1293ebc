"""``search eval``: accuracy, throughput and latency of a retrained network."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from timm.data import RealLabelsImagenet

from configs.files import reading
from search.results import wilson_interval
from search.retraining.finished import Retrained, find_retrained
from searchspace.latency_table import latency_of
from supernet.data import (
    DATA_FILE,
    ImageData,
    StreamedImages,
    open_data,
    open_source,
    prepare_data,
    resolve_source,
)
from supernet.measuring import time_runs
from supernet.training import Accuracy, eval_batches, evaluate

BATCH_SIZE = 128
_VALIDATION_IMAGE = re.compile(r"(^|/)ILSVRC2012_val_\d{8}\.JPEG$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What was measured of a network.

    Attributes:
        accuracy: On the test split.
        real: Percent of images with a label of ImageNet-real's (Beyer et al. 2020), where asked.
        images_per_second: In batches of ``batch_size``, median of the runs.
        latency_ms: Of one image, median of the runs, and its 95 % interval.
        threads: Of the processor, in both.
    """

    accuracy: Accuracy
    real: float | None
    images_per_second: float
    batch_size: int
    latency_ms: float
    latency_interval_ms: tuple[float, float]
    device: str
    threads: int

    def to_json(self) -> dict[str, Any]:
        """Describe it with JSON values."""
        low, high = wilson_interval(self.accuracy.correct, self.accuracy.total)
        return {
            "top1": self.accuracy.top1,
            "top1_interval": [low, high],
            "top5": self.accuracy.top5,
            **{name: value for name, value in asdict(self).items() if name != "accuracy"},
            "images": self.accuracy.total,
        }


def evaluate_retrained(
    target: str, *, data: str | None, real_labels: Path | None, device: str, folder: Path
) -> Evaluation:
    """Judge a retrained network and time it.

    Args:
        target: ``RUN:ID`` or the folder of a retraining.
        data: Other images with the same classes; None takes the run's test split.
        real_labels: ImageNet-real's ``real.json``.
        device: Torch device.
        folder: Where other images are prepared.

    Raises:
        ValueError: If there is no such retraining, or the images do not fit it.
    """
    found = find_retrained(target)
    images = _images(found, data, folder)
    network = found.network().to(device)
    split, recipe = images.test_split(), found.recipe
    real = None if real_labels is None else _real_labels(split.images, real_labels)
    batches = eval_batches(
        split,
        images,
        BATCH_SIZE,
        found.result.crop_pct,
        crop_mode=found.crop_mode,
        interpolation=recipe.eval_interpolation,
    )
    accuracy = evaluate(network, batches, device, None if real is None else real.add_result)
    size = (found.architecture.in_chans, *(found.architecture.img_size,) * 2)
    batch = time_runs(network, torch.zeros(BATCH_SIZE, *size, device=device))
    single = time_runs(network, torch.zeros(1, *size, device=device))
    latency = latency_of(single)
    return Evaluation(
        accuracy=accuracy,
        real=None if real is None else float(real.get_accuracy(k=1)),
        images_per_second=BATCH_SIZE / statistics.median(batch),
        batch_size=BATCH_SIZE,
        latency_ms=latency.median_ms,
        latency_interval_ms=(latency.low_ms, latency.high_ms),
        device=device,
        threads=torch.get_num_threads(),
    )


def evaluation_table(found: Evaluation) -> Table:
    """Show an evaluation, a line for each number."""
    low, high = wilson_interval(found.accuracy.correct, found.accuracy.total)
    table = Table(show_header=False)
    table.add_row("top-1", f"{found.accuracy.top1:.2f} % (95 % interval {low:.2f} to {high:.2f})")
    table.add_row("top-5", f"{found.accuracy.top5:.2f} %")
    if found.real is not None:
        table.add_row("ImageNet-real", f"{found.real:.2f} %")
    table.add_row("images", f"{found.accuracy.total:,}")
    where = found.device if found.device == "cuda" else f"{found.device}, {found.threads} thread(s)"
    table.add_row(
        "throughput",
        f"{found.images_per_second:,.0f} images/s in batches of {found.batch_size}, {where}",
    )
    fast, slow = found.latency_interval_ms
    table.add_row(
        "latency",
        f"{found.latency_ms:.2f} ms an image (95 % interval {fast:.2f} to {slow:.2f}), {where}",
    )
    return table


def _images(found: Retrained, data: str | None, folder: Path) -> ImageData:
    """Open the images that the network was retrained with, or prepare others.

    They are seen as the network saw its own, whatever they are: with the mean and deviation of its
    training images.
    """
    size = found.architecture.img_size
    if data is not None:
        # Listed twice, so that images of others are not decoded in vain.
        source = open_source(resolve_source(data), img_size=size)
        _check_classes(found, source.class_names, source.name)
        images = prepare_data(data, img_size=size, folder=folder)
    else:
        run = found.folder.parent.parent
        stored = [
            run / name for name in ("data", f"data-{size}") if (run / name / DATA_FILE).is_file()
        ]
        fitting = [opened for opened in map(open_data, stored) if opened.img_size == size]
        if not fitting:
            raise ValueError(
                f"{found.folder} does not lie in a run that has its images. Name them with --data."
            )
        images = fitting[0]
    _check_classes(found, images.class_names, images.name)
    if found.recipe.token_labels:
        images = images.streamed()
    return replace(images, mean=found.result.mean, std=found.result.std)


def _check_classes(found: Retrained, class_names: Sequence[str], name: str) -> None:
    if class_names != found.result.class_names:
        raise ValueError(
            f"The network tells {len(found.result.class_names)} classes apart, and the classes of "
            f"{name} are others. Give images with the same class folders."
        )


def _real_labels(images: object, path: Path) -> Any:
    if not isinstance(images, StreamedImages):
        raise ValueError(
            "ImageNet-real's labels belong to the file names of ImageNet's validation images, "
            "which only streamed data has. Give ImageNet with --data."
        )
    names = images.names()
    if foreign := [name for name in names if not _VALIDATION_IMAGE.search(name)]:
        raise ValueError(
            "ImageNet-real's labels belong to ImageNet's validation images, which are called "
            f"ILSVRC2012_val_00000001.JPEG and so on; one here is called {foreign[0]}. Give them "
            "with --data under their own names."
        )
    errors = (AttributeError, IndexError, KeyError, TypeError, AssertionError)
    remedy = "Download it from its authors; it has a label for each of the images."
    with reading(path, "ImageNet-real's real.json", remedy=remedy, errors=errors):
        return RealLabelsImagenet(names, real_json=str(path))  # type: ignore[no-untyped-call]
