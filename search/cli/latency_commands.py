"""`search latency`: tables of latencies, on the device that counts, and a front measured there."""

from __future__ import annotations

import csv
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from configs.files import check_output, check_output_folder, writing
from search.cli.options import Command, Device, DeviceName, check_device, make_console

if TYPE_CHECKING:
    from rich.table import Table

    from search.deployed import Kit
    from searchspace.deployment import Deployment
    from searchspace.latency_table import Checked, LatencyTable, Part
    from searchspace.space import SearchSpace

NUM_CHECKED = 50


class LatencyCommand(Command):
    """A command whose ``--check`` may stand without its number."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read what was typed; see the class."""
        behind = [*args[1:], ""]
        return super().parse_args(
            ctx,
            [
                f"--check={NUM_CHECKED}" if one == "--check" and not _is_number(after) else one
                for one, after in zip(args, behind, strict=True)
            ],
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def latency(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN", help="Folder of a run: measure the networks of its front here."
        ),
    ] = None,
    space: Annotated[
        str, typer.Option(help="Name or YAML file of a search space, or the folder of a run.")
    ] = "micro",
    target: Annotated[
        str | None,
        typer.Option(
            help="eager, compiled, cuda-graph, onnxruntime, openvino or tensorrt.  "
            "[default: eager, or the run's]"
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, bf16, fp16 or int8.  [default: fp32, or the run's]"),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch", "--batch-size", min=1, help="Images at a time.  [default: 1, or the run's]"
        ),
    ] = None,
    device: Device = "cpu",
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="Of the head; default: the space's.")
    ] = None,
    check: Annotated[
        int,
        typer.Option(
            min=0,
            help="Random networks measured whole, to compare with the sum; of a run, its front.",
        ),
    ] = NUM_CHECKED,
    threads: Annotated[int, typer.Option(min=1, help="Of a CPU.")] = 1,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Of the networks and of their order.")
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the table as JSON.")] = None,
    csv_: Annotated[Path | None, typer.Option("--csv", help="Write the table as CSV.")] = None,
    export: Annotated[
        Path | None,
        typer.Option(help="Measure nothing: write ONNX files to a folder, for --parts elsewhere."),
    ] = None,
    parts: Annotated[
        Path | None,
        typer.Option(help="Measure the files of such a folder; torch is not needed."),
    ] = None,
) -> None:
    """Time every part of a space's networks; say how well sums predict whole ones."""
    for path in (out, csv_):
        check_output(path)
    asked = _Asked(target=target, precision=precision, batch=batch, device=device)
    if parts is not None:
        _refuse_both("--parts", {"RUN": run, "--export": export, "--precision": precision})
        _refuse_both("--parts", {"--batch": batch, "--num-classes": num_classes})
        _measure_parts(parts, target or "onnxruntime", threads, seed, out=out, csv_file=csv_)
        return
    check_device(device)
    if export is not None:
        _refuse_both("--export", {"--out": out, "--csv": csv_})
        check_output_folder(export)
    if run is not None:
        _refuse_both("RUN", {"--out": out, "--csv": csv_, "--num-classes": num_classes})
        _check_front(run, asked, threads, seed, export=export)
        return
    _measure_space(
        space, asked, num_classes, check, threads, seed, out=out, csv_file=csv_, export=export
    )


class _Asked:
    """What was typed of how networks are run."""

    def __init__(
        self, *, target: str | None, precision: str | None, batch: int | None, device: DeviceName
    ) -> None:
        self.given = {"target": target, "precision": precision, "batch": batch}
        self.device = device

    def over(self, other: Deployment, *, exports: bool) -> Deployment:
        """Put what was typed over another deployment, and check that it can be run here."""
        from dataclasses import replace

        changes: dict[str, Any] = {k: v for k, v in self.given.items() if v is not None}
        found = replace(other, **changes)
        if exports and found.in_torch:
            raise ValueError(
                f"--export writes files for onnxruntime, openvino or tensorrt, got {found.target}. "
                "Add e.g. --target onnxruntime."
            )
        found.check(device=self.device)
        return found


def _refuse_both(option: str, others: dict[str, object]) -> None:
    for name, value in others.items():
        if value is not None:
            raise ValueError(f"{option} and {name} do not go together, got both. Leave {name} out.")


def _space_of_run(folder: Path) -> SearchSpace:
    from search.run_folder import open_run

    with open_run(folder) as run:
        return run.space()


def _measure_space(
    space: str,
    asked: _Asked,
    num_classes: int | None,
    num_checked: int,
    threads: int,
    seed: int,
    *,
    out: Path | None,
    csv_file: Path | None,
    export: Path | None,
) -> None:
    """Measure a table of a space here, or write the files of its parts."""
    from searchspace.deployment import Deployment
    from searchspace.spec_file import load_space

    deployment = asked.over(Deployment(), exports=export is not None)
    loaded = _space_of_run(Path(space)) if Path(space).is_dir() else load_space(space)
    if num_classes is not None:
        loaded = loaded.replace(num_classes=num_classes)

    import torch

    from search.deployed.exporting import Wanted, export_kit
    from search.deployed.measuring import table_of_space

    torch.set_num_threads(threads)
    rng = random.Random(seed)
    with _progress("Building networks ...") as tell:
        if export is not None:
            with writing(export):
                export.mkdir(parents=True, exist_ok=True)
                wanted = Wanted.of(loaded, num_checked, rng)
                kit = export_kit(export, wanted, deployment, progress=tell)
        else:
            table, checked = table_of_space(
                loaded,
                deployment,
                device=torch.device(asked.device),
                num_checked=num_checked,
                rng=rng,
                progress=tell,
            )
    if export is not None:
        _say_exported(export, kit)
        return
    _show_table(space, table, checked, out=out, csv_file=csv_file)


@contextmanager
def _progress(text: str, what: str = "done") -> Iterator[Callable[[int, int], None]]:
    with make_console(stderr=True).status(text) as shown:
        yield lambda done, total: shown.update(f"{done} of {total} {what}")


def _check_front(run: Path, asked: _Asked, threads: int, seed: int, *, export: Path | None) -> None:
    """Measure the networks of a run's front here, beside what the run says of them."""
    from search.front import FrontQuery, choose_rows, judged_by
    from search.run_folder import open_run

    with open_run(run) as folder:
        table, settings = folder.settings.load_table(), folder.settings
        own = table.deployment if table else settings.deployment
        deployment = asked.over(own, exports=export is not None)
        query = FrontQuery()
        rows = choose_rows(judged_by(folder, query), query, objectives=settings.objectives)
    # What search pareto --latency has kept is of no run.
    weighed = "latency_ms" in settings.objectives
    expected = {
        row.id: table.predict(row.architecture) if table else row.latency_ms if weighed else None
        for row in rows
    }

    import torch

    from search.deployed.exporting import export_front
    from search.deployed.measuring import time_networks
    from supernet.measuring import device_name

    torch.set_num_threads(threads)
    networks = {row.id: row.architecture for row in rows}
    with _progress("Building networks ...") as tell:
        if export is not None:
            with writing(export):
                export.mkdir(parents=True, exist_ok=True)
                kit = export_front(export, networks, expected, deployment, progress=tell)
        else:
            where = torch.device(asked.device)
            found = time_networks(
                networks, deployment, device=where, rng=random.Random(seed), progress=tell
            )
    if export is not None:
        _say_exported(export, kit)
        return
    console = make_console()
    console.say(f"{deployment}, on {device_name(where)}, {threads} thread(s)")
    if deployment != own and any(expected.values()):
        console.say(f"The run's ms are of something else ({own}): compare the order alone.")
    console.print(_front_table({str(i): (expected[i], found[i].median_ms) for i in networks}))
    for line in _describe_front([(expected[i], found[i].median_ms) for i in networks]):
        console.print(line)


def _measure_parts(
    folder: Path, target: str, threads: int, seed: int, *, out: Path | None, csv_file: Path | None
) -> None:
    """Measure the files that --export wrote."""
    from dataclasses import replace

    from search.deployed import Kit, measure_kit

    kit = Kit.load(folder)
    deployment = replace(kit.deployment, target=target)
    if deployment.in_torch:
        raise ValueError(
            f"--parts are files for onnxruntime, openvino or tensorrt, got --target {target}. "
            "Name one of these."
        )
    deployment.check(device="cuda" if target == "tensorrt" else "cpu", exports=False)
    if not kit.parts:
        _refuse_both("--parts of a run's front", {"--out": out, "--csv": csv_file})
    with _progress("Opening files ...", what="files timed") as tell:
        found = measure_kit(
            folder, kit, target=target, threads=threads, rng=random.Random(seed), progress=tell
        )
    if found.table is not None:
        _show_table(str(folder), found.table, found.checked, out=out, csv_file=csv_file)
        return
    console = make_console()
    console.say(found.where)
    times = [
        (one.expected_ms, checked.measured.median_ms)
        for one, checked in zip(kit.wholes, found.checked, strict=True)
    ]
    names = [one.name for one in kit.wholes]
    console.print(_front_table(dict(zip(names, times, strict=True))))
    for line in _describe_front(times):
        console.print(line)


def _say_exported(folder: Path, kit: Kit) -> None:
    from search.terminal import shell_command

    console = make_console()
    console.say(f"{len(kit.files)} files in {folder}. Copy it to the device, and there:")
    out = () if not kit.parts else ("--out", "table.json")
    console.say(
        shell_command(
            "search", "latency", "--parts", folder, "--target", kit.deployment.target, *out
        )
    )


def _show_table(
    name: str,
    table: LatencyTable,
    checked: Sequence[Checked],
    *,
    out: Path | None,
    csv_file: Path | None,
) -> None:
    writers: tuple[tuple[Path | None, Callable[[Path], None]], ...] = (
        (out, table.save),
        (csv_file, lambda path: _write_csv(path, table)),
    )
    for path, write in writers:
        if path is not None:
            with writing(path):
                write(path)
    console = make_console()
    console.say(f"{name}: {table}")
    console.print(_summary(table))
    if table.num_fitted:
        console.print(
            f"A network is {table.per_network_ms:.3f} ms and {table.scale:.3f} times its parts, "
            f"fitted on {table.num_fitted} whole networks."
        )
    if checked:
        console.print(describe_errors([one.error for one in checked]))


def describe_errors(errors: Sequence[float]) -> str:
    """Say how far sums are from whole networks, in percent: median with interval, largest, bias."""
    from searchspace.latency_table import median_interval

    sizes = [100 * abs(error) for error in errors]
    low, high = median_interval(sizes)
    return (
        f"Sum of parts against {len(errors)} whole random networks: median absolute error "
        f"{statistics.median(sizes):.1f} % (95 % interval {low:.1f} to {high:.1f}), largest "
        f"{max(sizes):.1f} %; median error {100 * statistics.median(errors):+.1f} %."
    )


def _front_table(times: dict[str, tuple[float | None, float]]) -> Table:
    """Show what a run says of each network's latency, and what was measured."""
    from rich.table import Table

    shown = Table("id", "run's ms", "measured ms", "difference")
    for name, (expected, measured) in times.items():
        said = "-" if not expected else f"{expected:.3f}"
        difference = "-" if not expected else f"{100 * (expected / measured - 1):+.1f} %"
        shown.add_row(name, said, f"{measured:.3f}", difference)
    return shown


def _describe_front(times: Sequence[tuple[float | None, float]]) -> list[str]:
    """Say how far the run's latencies are from those measured, and whether the order is kept."""
    both = [(expected, measured) for expected, measured in times if expected]
    if not both:
        return ["The run did not weigh the latency, so there is nothing to compare with."]
    errors = [100 * abs(expected / measured - 1) for expected, measured in both]
    lines = [
        f"The run's latencies against {len(both)} networks measured here: median absolute "
        f"difference {statistics.median(errors):.1f} %, largest {max(errors):.1f} %."
    ]
    pairs = [
        (expected - other) * (measured - another)
        for number, (expected, measured) in enumerate(both)
        for other, another in both[:number]
    ]
    if pairs:
        kept = sum(product > 0 for product in pairs)
        lines.append(f"Of {len(pairs)} pairs {kept} are in the same order.")
    return lines


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
