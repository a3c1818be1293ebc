"""Commands on one network: show, retrain, import, ladder, export and eval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from configs.files import check_output_folder
from search.cli import dense_commands
from search.cli.options import (
    Device,
    ImgSize,
    Json,
    RayAddress,
    Run,
    Track,
    check_device,
    make_console,
)


def show(
    target: Annotated[
        str, typer.Argument(help="A preset, an architecture file, RUN:ID or timm:NAME.")
    ],
    img_size: ImgSize = None,
    task: Annotated[
        str | None, typer.Option(help="As a backbone: instance, detection or semantic.")
    ] = None,
    head: Annotated[str | None, typer.Option(help="e.g. cascade_mask_rcnn, with --task.")] = None,
    json_: Json = False,
) -> None:
    """Show one architecture: its stages, parameters and MACs."""
    if target.startswith("timm:"):
        if task is not None or head is not None:
            raise ValueError(
                f"Whole detectors and segmenters are counted of our networks, got {target} with "
                "--task or --head. Leave these out."
            )
        from search.cli.timm_networks import measure, timm_table

        network = measure(target.removeprefix("timm:"), img_size)
        if json_:
            print(json.dumps(network.to_dict(), indent=2))
        else:
            make_console().print(timm_table(network))
        return
    from search.run_folder import load_target
    from search.terminal import architecture_json, architecture_table

    architecture = load_target(target)
    if head is not None and task is None:
        raise ValueError(f"--head is one of a task: add --task, got --head {head!r} alone.")
    if task is not None and img_size is not None:
        raise ValueError(
            f"As a backbone a network sees the images of its task, got --img-size {img_size}. "
            "Leave it out."
        )
    if task is not None:
        dense_commands.show_dense(architecture, target, task=task, head=head, as_json=json_)
        return
    if img_size is not None:
        architecture = architecture.replace(img_size=img_size)
    if json_:
        print(json.dumps(architecture_json(architecture), indent=2))
    else:
        make_console().print(architecture_table(architecture, name=target))


def retrain(
    run: Run,
    arch: Annotated[
        list[int], typer.Option(min=1, help="Id of a network of the front; repeatable.")
    ],
    recipe: Annotated[
        str | None, typer.Option(help="Name or file of a recipe; default: the run's.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")] = None,
    seed: Annotated[
        list[int],
        typer.Option(min=0, max=2**32 - 1, help="Of weights and data order; repeatable."),
    ] = [0],  # noqa: B006 - typer reads it once
    inherit: Annotated[
        bool, typer.Option("--inherit", help="Start from the supernet's weights.")
    ] = False,
    start: Annotated[
        Path | None, typer.Option(help="Start from this retraining or file of weights.")
    ] = None,
    img_size: Annotated[int | None, typer.Option(min=1, help="Another side of the images.")] = None,
    taps: Annotated[
        str | None, typer.Option(help="Turn windows and kernels of a size into another: 7:12.")
    ] = None,
    token_labels: Annotated[
        Path | None, typer.Option(help="Folder of label maps, for volo_310e.")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="Learn from it, too: RUN:ID, a folder, PRESET:FILE or timm:NAME[:FILE]."),
    ] = None,
    unlabelled: Annotated[
        Path | None,
        typer.Option(help="Folder of images without classes, to learn from --teacher on."),
    ] = None,
    devices: Annotated[int, typer.Option(min=1, help="That train one network together.")] = 1,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that make batches; default: 8 for a GPU.")
    ] = None,
    track: Track = None,
    ray_address: RayAddress = None,
) -> None:
    """Train chosen architectures with the full recipe; judge each once on the test split."""
    from search.report import write_report
    from search.retraining.queue import RetrainPlan, retrain_members
    from search.retraining.training_queue import FAILED, FULL_DISK
    from search.run_folder import own_run
    from search.tracking import check_tracker

    check_tracker(track)
    if ray_address is not None:
        from search.cluster import check_devices

        check_devices("cpu", ray_address)
    with own_run(run) as folder:
        console = make_console()
        wanted = RetrainPlan(
            recipe=recipe,
            epochs=epochs,
            seeds=seed,
            inherit=inherit,
            start=start,
            img_size=img_size,
            taps=_taps(taps),
            token_labels=token_labels,
            teacher=teacher,
            unlabelled=unlabelled,
            devices=devices,
            workers=workers,
        )
        stopped_by = retrain_members(
            folder, arch, wanted, console=console, ray_address=ray_address, track=track
        )
        if stopped_by != FULL_DISK:
            if not write_report(folder, console):
                stopped_by = FULL_DISK
            elif folder.report.is_file():  # a run without a front has none
                console.say(f"Report: {folder.report}")
    if stopped_by:
        console.say(f"Stopped by {stopped_by}. The same command goes on.")
        raise typer.Exit(1 if stopped_by in (FAILED, FULL_DISK) else 130)


def import_(
    checkpoint: Annotated[Path, typer.Argument(help="A published checkpoint file.")],
    arch: Annotated[str, typer.Option(help="The preset (or file) that it was trained as.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
) -> None:
    """Read a published checkpoint of Swin, VOLO or ELSA as one of our networks."""
    check_output_folder(out)
    from search.retraining.import_checkpoint import import_checkpoint

    folder = import_checkpoint(checkpoint, arch, out=out)
    architecture, weights = str(folder / "architecture.json"), str(folder / "model.safetensors")
    make_console().say(
        f"Wrote {weights}. Load it with:\n  import timm, supernet\n"
        f'  timm.create_model("mixer_search", architecture={architecture!r},\n'
        f"                    checkpoint_path={weights!r})"
    )


def ladder(
    target: Annotated[str, typer.Argument(metavar="RUN:ID", help="A network of a run.")],
    step: Annotated[
        list[str] | None,
        typer.Option(
            help="inside, extracted, recalibrated, fine-tuned, retrained; of a graft assembled, "
            "recalibrated, healed, retrained; default: all."
        ),
    ] = None,
    epochs: Annotated[
        int, typer.Option(min=1, help="Of fine-tuning (or healing) and of retraining.")
    ] = 5,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of these trainings.")] = 0,
    device: Device = "cpu",
) -> None:
    """Show the accuracy of a network inside the supernet (or of parts), ..., trained alone."""
    from search.results import wilson_interval
    from search.retraining.ladder import take_steps
    from search.run_folder import open_run, run_and_id

    check_device(device)
    if (named := run_and_id(target)) is None:
        raise ValueError(f"Name a network of a run as RUN:ID, e.g. runs/digits:12, got {target!r}.")
    console = make_console()
    with open_run(named[0]) as run:
        steps = tuple(step) if step else None
        for one in take_steps(run, named[1], steps=steps, epochs=epochs, seed=seed, device=device):
            low, high = wilson_interval(one.accuracy.correct, one.accuracy.total)
            console.say(
                f"{one.step:13} {one.accuracy.top1:6.2f} %  ({low:.1f} to {high:.1f})  {one.about}"
            )


def export(
    target: Annotated[str, typer.Argument(help="RUN:ID, or the folder of a retraining.")],
    format_: Annotated[
        str, typer.Option("--format", help="safetensors, timm, onnx, torch; several with commas.")
    ] = "safetensors",
    out: Annotated[Path | None, typer.Option(help="Folder; default: export/ beside it.")] = None,
    push: Annotated[
        str | None, typer.Option(help="USER/NAME on the Hugging Face hub: upload it there too.")
    ] = None,
) -> None:
    """Write a retrained network for others to load, and check what was written."""
    check_output_folder(out)
    from search.retraining.export import export_retrained

    for written in export_retrained(target, format_.split(","), out, push=push):
        make_console().say(f"{written.path}: {written.checked}")


def eval_(
    target: Annotated[
        str, typer.Argument(help="RUN:ID, or the folder of a retraining or transfer.")
    ],
    data: Annotated[str | None, typer.Option(help="Other images; default: the run's.")] = None,
    real_labels: Annotated[Path | None, typer.Option(help="ImageNet-real's real.json.")] = None,
    scales: Annotated[str, typer.Option(help="Of segmenters: .5,.75,1,1.25,1.5,1.75.")] = "1",
    flip: Annotated[bool, typer.Option("--flip", help="Of segmenters: mirror images too.")] = False,
    device: Device = "cpu",
    json_: Json = False,
) -> None:
    """Measure a retrained network: accuracy on the test split, throughput, latency."""
    import tempfile

    check_device(device)
    if (folder := dense_commands.find_transfer(target)) is not None:
        if real_labels is not None:
            raise ValueError(
                f"--real-labels are of ImageNet's classes, and {target} is of search transfer. "
                "Leave them out."
            )
        dense_commands.eval_dense(
            folder, data=data, scales=scales, flip=flip, device=device, as_json=json_
        )
        return
    if flip or scales != "1":
        raise ValueError(
            f"--scales and --flip are for folders of search transfer --task semantic, got {target}."
            " Leave them out."
        )
    from search.retraining.evaluate import evaluate_retrained, evaluation_table

    with tempfile.TemporaryDirectory() as scratch:
        found = evaluate_retrained(
            target, data=data, real_labels=real_labels, device=device, folder=Path(scratch) / "data"
        )
    if json_:
        print(json.dumps(found.to_json(), indent=2))
    else:
        make_console().print(evaluation_table(found))


def _taps(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    old, colon, new = text.partition(":")
    if not (colon and old.isdecimal() and new.isdecimal()):
        raise ValueError(f"--taps is OLD:NEW, e.g. 7:12, got {text!r}.")
    return int(old), int(new)
