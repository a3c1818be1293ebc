"""``search eval`` of a transfer: its numbers again, at other scales or on other data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from search.transferring.result import open_transferred
from supernet.data.dense import open_dense_data
from supernet.dense.judging import Judgement, judge


def evaluate_transfer(
    folder: Path, *, data: str | None, scales: Sequence[float], flip: bool, device: str
) -> Judgement:
    """Judge a finished transfer.

    Args:
        data: Other data with the same classes; None takes what it was judged on.
        scales: Of segmenters.
        flip: Of segmenters.

    Raises:
        ValueError: If there is no such transfer, or the data is gone or has other classes.
    """
    found = open_transferred(folder)
    task = found.result.task
    if task != "semantic" and (flip or tuple(scales) != (1.0,)):
        raise ValueError(
            "Several scales and mirror images are for --task semantic, and this is one for "
            f"{task}. Leave --scales and --flip out."
        )
    source = data or found.result.data_source
    opened = open_dense_data(source, task, unpack_to=folder.with_name(f"{folder.name}-data"))
    if opened.class_names != found.result.class_names:
        raise ValueError(
            f"The network knows the classes {', '.join(found.result.class_names)}, and {source} "
            f"has {', '.join(opened.class_names)}. Give data with the same classes."
        )
    return judge(
        found.network(), opened.test, found.recipe, device=device, scales=scales, flip=flip
    )


def judgement_table(judged: Judgement, folder: Path) -> Table:
    """Show a judgement: a line for each number, and the first measure for each class."""
    result = open_transferred(folder).result
    table = Table("measure", "%", "95 % interval", title=f"{judged.images} images")
    for measure in judged.measures:
        table.add_row(
            measure.name, f"{measure.value:.2f}", f"{measure.low:.2f} to {measure.high:.2f}"
        )
        for name, value in measure.more.items():
            table.add_row(name, f"{value:.2f}", "")
    for name, by_class in zip(result.class_names, judged.measures[0].by_class, strict=True):
        table.add_row(f"  {name}", "none there" if by_class is None else f"{by_class:.2f}", "")
    return table
