"""Detection and segmentation: transfer, predict, and what show and eval say of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from configs.files import check_output_folder
from search.cli.options import Device, RayAddress, check_device, make_console

if TYPE_CHECKING:
    from searchspace.architecture import Architecture
    from supernet.data.dense import DenseData
    from supernet.dense.distillation import DenseTeacher
    from supernet.recipes import DenseRecipe


def transfer(
    target: Annotated[
        str, typer.Argument(help="A run, a preset, an architecture file, RUN:ID or timm:NAME.")
    ],
    task: Annotated[str, typer.Option(help="instance, detection or semantic.")],
    data: Annotated[str, typer.Option(help="A folder in COCO's or ADE20K's layout, or a tar.")],
    recipe: Annotated[str, typer.Option(help="Name, NAME:SIZE or file; see search recipes.")],
    arch: Annotated[
        list[int] | None, typer.Option(min=1, help="Of a run: id of a network; repeatable.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(help="Weights: a file, a folder, or fresh; default: the run's best."),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Learn from it, too: the folder of a transfer.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Instead of the recipe's length.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Instead of the recipe's length.")
    ] = None,
    seed: Annotated[
        list[int], typer.Option(min=0, max=2**32 - 1, help="Of weights and order; repeatable.")
    ] = [0],  # noqa: B006 - typer reads it once
    devices: Annotated[int, typer.Option(help="That train one network together.", min=1)] = 1,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that make batches; default: 8 for a GPU.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder that a network of no run leaves.")
    ] = None,
    ray_address: RayAddress = None,
) -> None:
    """Train networks as backbones of a detector or segmenter, and judge each once."""
    check_output_folder(out)
    from searchspace.dense import TASK_HEADS
    from supernet.data.dense import open_dense_data
    from supernet.recipes import load_dense_recipe, with_length

    if task not in TASK_HEADS:
        raise ValueError(f"--task is one of {', '.join(TASK_HEADS)}, got {task!r}. Write one.")
    chosen = with_length(load_dense_recipe(recipe), epochs=epochs, steps=steps)
    is_run = (Path(target) / "record.db").exists() or (Path(target) / "record.conninfo").exists()
    _check_target(target, arch, out, ray_address, is_run=is_run)
    chosen.check_task(task)
    folder = Path(target) if is_run else (out or Path("."))
    unpack_to = folder / "transfer-data" if is_run else folder.with_name(f"{folder.name}-data")
    found = open_dense_data(data, task, unpack_to=unpack_to)
    found.check_files()
    for remark in found.remarks:
        make_console().say(remark)
    from search.transferring.queue import TransferPlan, find_dense_teacher

    whom = None if teacher is None else find_dense_teacher(teacher, found)
    if is_run:
        plan = TransferPlan(
            recipe=chosen,
            data=found,
            data_source=str(Path(data).resolve()),
            seeds=seed,
            start=start,
            teacher=whom,
            devices=devices,
            workers=workers,
        )
        _transfer_members(Path(target), arch or [], plan, ray_address)
        return
    for number in seed:
        own = folder if len(seed) == 1 else folder / f"s{number}"
        _transfer_one(target, found, chosen, own, start, whom, number, devices, workers, data)


def _check_target(
    target: str,
    arch: list[int] | None,
    out: Path | None,
    ray_address: str | None,
    *,
    is_run: bool,
) -> None:
    if is_run and (not arch or out is not None):
        raise ValueError(
            "Networks of a run are named by --arch ID and leave their folders in it: "
            f"search transfer {target} --arch 17, without --out."
        )
    if not is_run and (arch or out is None or ray_address is not None):
        raise ValueError(
            f"{target!r} is no folder of a run: its network trains here, without --ray-address and "
            f"--arch (got {arch or 'none'}), and leaves the folder that --out names. Write --out "
            "FOLDER."
        )


def _transfer_members(run: Path, ids: list[int], plan: Any, ray_address: str | None) -> None:
    from search.report import write_report
    from search.retraining.training_queue import FAILED, FULL_DISK
    from search.run_folder import own_run
    from search.transferring.queue import transfer_members

    console = make_console()
    if ray_address is not None:
        from search.cluster import check_devices

        check_devices("cpu", ray_address)
    with own_run(run) as folder:
        stopped = transfer_members(folder, ids, plan, console=console, ray_address=ray_address)
        if not write_report(folder, console):
            stopped = FULL_DISK
        elif folder.report.is_file():  # a run without a front has none
            console.say(f"Report: {folder.report}")
    if stopped:
        console.say(f"Stopped by {stopped}. The same command goes on.")
        raise typer.Exit(1 if stopped in (FAILED, FULL_DISK) else 130)


def _transfer_one(
    target: str,
    data: DenseData,
    recipe: DenseRecipe,
    out: Path,
    start: str | None,
    teacher: DenseTeacher | None,
    seed: int,
    devices: int,
    workers: int | None,
    source: str,
) -> None:
    """Train a network of no run, here."""
    import torch

    from search.terminal import StopSignals
    from search.transferring.alone import say_step, transfer_alone
    from search.transferring.network import TransferOptions
    from search.transferring.queue import load_weights
    from search.transferring.result import result_text
    from search.transferring.target import transfer_target
    from supernet.training import TrainingStopped

    architecture = transfer_target(target)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wanted = None if start in (None, "fresh") else Path(str(start))
    with StopSignals() as stop:
        options = TransferOptions(
            out=out,
            seed=seed,
            data_source=str(Path(source).resolve()),
            device=device,
            threads=None if device == "cuda" else 1,
            on_report=say_step,
            should_stop=lambda: stop.requested is not None,
            start=None if wanted is None else load_weights(wanted, architecture),
            start_name="fresh" if wanted is None else f"from-{wanted.stem}",
            teacher=teacher,
            loader_workers=(8 if device == "cuda" else 0) if workers is None else workers,
        )
        try:
            result = transfer_alone(architecture, data, recipe, options, devices=devices)
        except TrainingStopped as stopped:
            print(f"{stopped} The same command goes on.")
            raise typer.Exit(130) from None
    if result is not None:
        where = f"{result.images} {result.split} images. {out}"
        make_console().say(f"{result_text(result.measured)} of {where}")


def predict(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished transfer.")],
    image: Annotated[list[Path], typer.Argument(help="Image files.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the pictures.")] = None,
    device: Device = "cpu",
) -> None:
    """Draw what a detector or segmenter finds in images."""
    check_device(device)
    check_output_folder(out)
    from search.transferring.predicting import predict_images

    for path in predict_images(folder, image, out or folder / "predictions", device=device):
        make_console().say(str(path))


def show_dense(
    architecture: Architecture, name: str, *, task: str, head: str | None, as_json: bool
) -> None:
    """Print parameters and MACs of a whole detector or segmenter."""
    from search.transferring.costs import dense_costs, dense_table

    found = dense_costs(architecture, name, task=task, head=head)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        make_console().print(dense_table(found))


def eval_dense(
    folder: Path, *, data: str | None, scales: str, flip: bool, device: str, as_json: bool
) -> None:
    """Judge a finished transfer again."""
    from search.transferring.evaluate import evaluate_transfer, judgement_table

    judged = evaluate_transfer(folder, data=data, scales=_scales(scales), flip=flip, device=device)
    if as_json:
        print(json.dumps({**judged.values(), "images": judged.images}, indent=2))
    else:
        make_console().print(judgement_table(judged, folder))


def find_transfer(target: str) -> Path | None:
    """Return the folder of a transfer: itself, or the finished one of RUN:ID.

    None where it is something else, or a network that was retrained as a classifier.

    Raises:
        ValueError: If the network was transferred more than once.
    """
    if is_transfer(Path(target)):
        return Path(target)
    from search.run_folder import run_and_id

    named = run_and_id(target)
    if named is None or list((named[0] / "retrain").glob(f"{named[1]}-*/result.json")):
        return None
    run, number = named
    found = sorted(path.parent for path in (run / "transfer").glob(f"{number}-*/result.json"))
    if len(found) > 1:
        raise ValueError(
            f"Network {number} of {run} was transferred {len(found)} times. Name one of the "
            f"folders instead: {', '.join(map(str, found))}"
        )
    return found[0] if found else None


def is_transfer(folder: Path) -> bool:
    """Tell whether a folder is one of a transfer, finished or not."""
    path = folder / "recipe.yaml"
    return path.is_file() and "\nhead:" in path.read_text(encoding="utf-8")


def _scales(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) <= 0:
        raise ValueError(
            f"--scales are positive numbers with commas, e.g. .5,.75,1,1.25, got {text!r}."
        ) from None
    return found
