"""`search latency`: a table of latencies for a space on this machine, and how well it predicts."""

from __future__ import annotations

import csv
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from configs.files import check_output, writing
from search.cli.options import Device, check_device, make_console

if TYPE_CHECKING:
    from rich.table import Table

    from supernet.measuring import LatencyTable, Part


def latency(
    space: Annotated[str, typer.Option(help="Name or YAML file of a search space.")] = "micro",
    device: Device = "cpu",
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 1,
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="Of the head; default: the space's.")
    ] = None,
    check: Annotated[
        int, typer.Option(min=0, help="Random networks measured whole, to compare with the sum.")
    ] = 50,
    threads: Annotated[int, typer.Option(min=1, help="Of a CPU.")] = 1,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Of the networks and of their order.")
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the table as JSON.")] = None,
    csv_: Annotated[Path | None, typer.Option("--csv", help="Write the table as CSV.")] = None,
) -> None:
    """Time every part of a space's networks; say how well sums predict whole ones."""
    import torch

    from searchspace.spec_file import load_space
    from supernet.measuring import measure_table

    check_device(device)
    for path in (out, csv_):
        check_output(path)
    loaded = load_space(space)
    if num_classes is not None:
        loaded = loaded.replace(num_classes=num_classes)
    torch.set_num_threads(threads)
    status = make_console(stderr=True)
    with status.status("Building networks ...") as shown:
        table, checked = measure_table(
            loaded,
            device=torch.device(device),
            batch_size=batch_size,
            num_checked=check,
            rng=random.Random(seed),
            progress=lambda done, total: shown.update(f"{done} of {total} networks timed"),
        )
    for path, write in ((out, table.save), (csv_, lambda path: _write_csv(path, table))):
        if path is not None:
            with writing(path):
                write(path)
    console = make_console()
    console.say(
        f"{space}, batch {batch_size}, on {table.device}, {table.threads} thread(s), "
        f"torch {table.torch_version}, {table.measured_on}"
    )
    console.print(_summary(table))
    if checked:
        console.print(describe_errors([one.error for one in checked]))


def describe_errors(errors: Sequence[float]) -> str:
    """Say how far sums are from whole networks, in percent: median with interval, largest, bias."""
    from supernet.measuring import median_interval

    sizes = [100 * abs(error) for error in errors]
    low, high = median_interval(sizes)
    return (
        f"Sum of parts against {len(errors)} whole random networks: median absolute error "
        f"{statistics.median(sizes):.1f} % (95 % interval {low:.1f} to {high:.1f}), largest "
        f"{max(sizes):.1f} %; median error {100 * statistics.median(errors):+.1f} %."
    )


def _summary(table: LatencyTable) -> Table:
    """Show the fastest and the slowest choice of every place."""
    from rich.table import Table

    places: dict[str, list[Part]] = {}
    for part in table.parts:
        places.setdefault(part.name, []).append(part)
    shown = Table("part", "choices", "fastest", "ms", "slowest", "ms")
    for name, parts in places.items():
        parts.sort(key=lambda part: table.parts[part].median_ms)
        cells = []
        for part in (parts[0], parts[-1]):
            found = table.parts[part]
            interval = f"{found.median_ms:.3f} ({found.low_ms:.3f} to {found.high_ms:.3f})"
            cells += [str(part).removeprefix(name).strip(), interval]
        shown.add_row(name, str(len(parts)), *cells)
    return shown


def _write_csv(path: Path, table: LatencyTable) -> None:
    from searchspace.mixer_text import describe_mixer

    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        names = ["part", "dims", "mixer", "mlp_ratio", "median_ms", "low_ms", "high_ms"]
        writer.writerow(names)
        for part, found in table.parts.items():
            mixer = describe_mixer(part.mixer) if part.mixer else ""
            times = (found.median_ms, found.low_ms, found.high_ms)
            dims = "-".join(map(str, part.dims))
            writer.writerow([part.name, dims, mixer, part.mlp_ratio or "", *times])
