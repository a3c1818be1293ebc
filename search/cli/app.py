"""The command line. Every command imports what it needs when it runs, so that help is instant."""

from __future__ import annotations

import json
import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from configs.files import check_output, check_output_folder
from search.cli import dense_commands, front_commands
from search.cli import latency_commands as latency_command
from search.cli.config_file import apply_config
from search.cli.messages import fail, message_of, speak_any_locale
from search.cli.options import (
    CLUSTER,
    JUDGING,
    LIMITS,
    TRAINING,
    BudgetText,
    Command,
    Data,
    Device,
    GroupedCommand,
    ImgSize,
    Json,
    Limit,
    RayAddress,
    Recipe,
    Run,
    Seed,
    Share,
    Space,
    Strategy,
    Task,
    check_device,
    make_console,
)

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from search.run_folder import RunFolder, RunSettings

app = typer.Typer(
    name="search",
    help="Search the mixer design space within a budget of device time; retrain what you choose.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# What may be given with --resume; all else is decided when a run begins.
RESUMABLE = {"budget", "out", "resume", "sampler", "ray_address"}


@app.command(cls=GroupedCommand)
def run(
    context: typer.Context,
    budget: Annotated[
        str | None, typer.Option(help="Device time to spend, e.g. 10cpu-minutes, 50gpu-days.")
    ] = None,
    data: Data = "digits",
    space: Space = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default: runs/...")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    config: Annotated[
        str | None,
        typer.Option(
            callback=apply_config,
            is_eager=True,
            help="Options in a YAML file, or the name of a shipped one; what is typed here wins.",
        ),
    ] = None,
    objectives: Annotated[
        str | None,
        typer.Option(help="top1 (of --task: miou, ap_box, ap_mask) and some of macs, params, ..."),
    ] = None,
    max_macs: Limit = None,
    max_params: Limit = None,
    seed: Seed = 0,
    task: Task = "classification",
    start: Annotated[
        Path | None,
        typer.Option(help="Run whose supernet's weights backbones begin with, for --task."),
    ] = None,
    strategy: Annotated[
        str,
        typer.Option(
            rich_help_panel=JUDGING,
            help="By a supernet, by short trainings (proxy), or zero-cost scores.",
        ),
    ] = "supernet",
    sampler: Annotated[
        str,
        typer.Option(rich_help_panel=JUDGING, help="guided, nsga2, nsga3, tpe, gp or random."),
    ] = "guided",
    share: Annotated[
        list[str],
        typer.Option(
            rich_help_panel=JUDGING,
            help="Fix a phase's share of the budget, e.g. supernet=.5; repeatable.",
        ),
    ] = [],  # noqa: B006 - typer reads it once
    supernet_strategy: Annotated[
        str,
        typer.Option(
            rich_help_panel=JUDGING,
            help="How the supernet is trained: uniform, fair or sandwich.",
        ),
    ] = "uniform",
    projections: Annotated[
        str,
        typer.Option(
            rich_help_panel=JUDGING,
            help="Of a block's mixers in the supernet: unshared or shared.",
        ),
    ] = "unshared",
    kernels: Annotated[
        str,
        typer.Option(
            rich_help_panel=JUDGING,
            help="Small depth-wise kernels in it: centred or transformed.",
        ),
    ] = "centred",
    max_latency: Annotated[
        float | None,
        typer.Option(rich_help_panel=LIMITS, help="Milliseconds; slower networks are on no front."),
    ] = None,
    max_memory: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=LIMITS,
            help="MiB of weights and one image; others are on no front.",
        ),
    ] = None,
    img_size: Annotated[
        int | None,
        typer.Option(
            min=1, rich_help_panel=TRAINING, help="Side of the images; default: the space's."
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=TRAINING,
            help="Of the full retraining; default: micro, or digits for them.",
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=CLUSTER,
            help="Folder or s3://... to share files through; default: the run's folder.",
        ),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(rich_help_panel=CLUSTER, help="Ray cluster to join; default: this machine."),
    ] = None,
    record: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=CLUSTER,
            help="Keep the record at postgresql://user@host/db; default: in the folder.",
        ),
    ] = None,
) -> None:
    """Search within a budget and end with a Pareto front."""
    from search.results import parse_objectives
    from search.run_folder import RunSettings, create_run, resume_run

    begun = None
    if resume:
        _refuse_given(context)
        if out is None:
            raise ValueError("--resume needs the folder of the run: add --out RUN.")
        other = sampler if _is_given(context, "sampler") else None
        opened = resume_run(out, budget, sampler=other)
    else:
        if budget is None:
            raise ValueError("A run needs a budget: add e.g. --budget 10cpu-minutes.")
        settings = RunSettings(
            space=space or "",
            data=data,
            budget=budget,
            task=task,
            start=str(start.resolve()) if start else "",
            sampler=sampler,
            strategy=strategy,
            supernet_strategy=supernet_strategy,
            projections=projections,
            kernels=kernels,
            retrain_recipe=recipe or "",
            objectives=parse_objectives(objectives) if objectives else (),
            shares=_shares(share),
            limits=_limits(
                macs=max_macs, params=max_params, latency_ms=max_latency, memory_mib=max_memory
            ),
            img_size=img_size,
            seed=seed,
            storage=storage or "",
            command=shlex.join(["search", *sys.argv[1:]]),
        )
        begun = settings
        if ray_address is not None or settings.parsed_budget.device == "gpu":
            from search.cluster import check_devices

            check_devices(settings.parsed_budget.device, ray_address)
        out = out or _default_folder(data)
        check_output_folder(out)
        opened = create_run(out, settings, database=record)
        make_console().say(f"Reading {data} ...")
    _work(opened, out, ray_address, begun=begun)


def _work(
    opened: AbstractContextManager[RunFolder],
    out: Path,
    ray_address: str | None,
    *,
    begun: RunSettings | None,
) -> None:
    """Work on a run until it is done or stopped, and say how it ended."""
    from search.cli.config_file import keep_options
    from search.report import print_closing, write_report
    from search.terminal import shell_command, visible

    console = make_console()
    go_on = shell_command("search", "run", "--resume", "--out", out)
    interrupted = "Interrupted before the run began. The same command begins it."
    stopped_by, has_front = None, False
    try:
        with opened as folder:
            from search.run import FULL_DISK, NO_DATABASE, run_search

            interrupted = f"Interrupted. Go on with: {go_on}"
            if begun is not None:
                keep_options(folder.folder, begun)
            console.say(f"Run folder: {out}")
            stopped_by = run_search(folder, console, ray_address=ray_address)
            if stopped_by != NO_DATABASE:
                if stopped_by != FULL_DISK:
                    write_report(folder)
                has_front = print_closing(folder, console)
    except KeyboardInterrupt:
        print(visible(interrupted), file=sys.stderr)
        raise typer.Exit(130) from None
    if stopped_by:
        console.say(f"Stopped by {stopped_by}. Go on with: {go_on}")
        raise typer.Exit(130)
    if not has_front:
        raise typer.Exit(1)


@app.command(cls=Command)
def plan(
    budget: BudgetText,
    space: Space = None,
    data: Data = "digits",
    img_size: ImgSize = None,
    recipe: Recipe = None,
    task: Task = "classification",
    strategy: Strategy = "supernet",
    share: Share = [],  # noqa: B006 - typer reads it once
    devices: Annotated[
        int | None, typer.Option(min=1, help="Devices; default: this machine's or the cluster's.")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Measure one device of this Ray cluster instead.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="That its nodes read images from; default: this folder.")
    ] = None,
    times: Annotated[
        Path | None, typer.Option(help="Measure nothing: times of a run's folder, or a file.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Measure nothing: estimates for h100, a100, rtx4090 or cpu.")
    ] = None,
    save_times: Annotated[
        Path | None, typer.Option(help="Write the times to this file, for --times elsewhere.")
    ] = None,
) -> None:
    """Measure a device for a few seconds and say what a budget would buy."""
    from search.phases.planning import TimesFrom, plan_here
    from search.phases.step_times import write_times
    from search.run_folder import RunSettings
    from search.terminal import plan_table

    settings = RunSettings(
        space=space or "",
        data=data,
        budget=budget,
        task=task,
        strategy=strategy,
        shares=_shares(share),
        img_size=img_size,
        retrain_recipe=recipe or "",
        storage=storage or "",
    )
    check_output(save_times)
    source = TimesFrom(ray_address=ray_address, times=times, profile=device, storage=storage)
    console = make_console()
    made = plan_here(settings, devices=devices, times_from=source, say=console.say)
    counted = settings.parsed_budget.device
    console.print(plan_table(made.plan, counted, twice=made.twice, times=made.times))
    if save_times is not None:
        write_times(save_times, made.times)


@app.command(cls=Command)
def status(run: Run) -> None:
    """Show the phase of a run, what is spent and left, and the best network so far."""
    from search.run_folder import open_run
    from search.terminal import status_table

    with open_run(run) as folder:
        make_console().print(status_table(folder))


for _command in (
    front_commands.pareto,
    front_commands.select,
    front_commands.compare,
    latency_command.latency,
    dense_commands.transfer,
    dense_commands.predict,
):
    app.command(cls=Command)(_command)


@app.command(cls=Command)
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
    if task is not None:
        dense_commands.show_dense(architecture, target, task=task, head=head, as_json=json_)
        return
    if img_size is not None:
        architecture = architecture.replace(img_size=img_size)
    if json_:
        print(json.dumps(architecture_json(architecture), indent=2))
    else:
        make_console().print(architecture_table(architecture, name=target))


@app.command(cls=Command)
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
    devices: Annotated[int, typer.Option(min=1, help="That train one network together.")] = 1,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that make batches; default: 8 for a GPU.")
    ] = None,
    ray_address: RayAddress = None,
) -> None:
    """Train chosen architectures with the full recipe; judge each once on the test split."""
    from search.report import write_report
    from search.retraining.queue import FAILED, FULL_DISK, RetrainPlan, retrain_members
    from search.run_folder import own_run

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
            devices=devices,
            workers=workers,
        )
        stopped_by = retrain_members(folder, arch, wanted, console=console, ray_address=ray_address)
        if stopped_by != FULL_DISK:
            write_report(folder)
            console.say(f"Report: {folder.report}")
    if stopped_by:
        console.say(f"Stopped by {stopped_by}. The same command goes on.")
        raise typer.Exit(1 if stopped_by in (FAILED, FULL_DISK) else 130)


@app.command(name="import", cls=Command)
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


@app.command(cls=Command)
def ladder(
    target: Annotated[str, typer.Argument(metavar="RUN:ID", help="A network of a run.")],
    step: Annotated[
        list[str] | None,
        typer.Option(help="inside, extracted, recalibrated, fine-tuned, retrained; default: all."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Of fine-tuning and of retraining.")] = 5,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of these trainings.")] = 0,
    device: Device = "cpu",
) -> None:
    """Show the accuracy of a network inside the supernet, extracted, ..., trained alone."""
    from search.results import wilson_interval
    from search.retraining.ladder import STEPS, take_steps
    from search.run_folder import open_run, run_and_id

    check_device(device)
    if (named := run_and_id(target)) is None:
        raise ValueError(f"Name a network of a run as RUN:ID, e.g. runs/digits:12, got {target!r}.")
    console = make_console()
    with open_run(named[0]) as run:
        steps = tuple(step or STEPS)
        for one in take_steps(run, named[1], steps=steps, epochs=epochs, seed=seed, device=device):
            low, high = wilson_interval(one.accuracy.correct, one.accuracy.total)
            console.say(
                f"{one.step:13} {one.accuracy.top1:6.2f} %  ({low:.1f} to {high:.1f})  {one.about}"
            )


@app.command(cls=Command)
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


@app.command("eval", cls=Command)
def eval_(
    target: Annotated[str, typer.Argument(help="RUN:ID, or the folder of a retraining.")],
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
    if dense_commands.is_transfer(Path(target)):
        dense_commands.eval_dense(
            Path(target), data=data, scales=scales, flip=flip, device=device, as_json=json_
        )
        return
    if flip or scales != "1":
        raise ValueError(
            f"--scales and --flip are for folders of search transfer --task semantic, got {target}."
            " Leave them out."
        )
    from search.retraining.evaluate import evaluate_retrained, evaluation_table

    with tempfile.TemporaryDirectory() as folder:
        found = evaluate_retrained(
            target, data=data, real_labels=real_labels, device=device, folder=Path(folder) / "data"
        )
    if json_:
        print(json.dumps(found.to_json(), indent=2))
    else:
        make_console().print(evaluation_table(found))


@app.command(cls=Command)
def presets() -> None:
    """List the architectures that have a name."""
    from search.terminal import presets_table

    make_console().print(presets_table())


@app.command(cls=Command)
def spaces() -> None:
    """List the search spaces that come with the tool."""
    from search.terminal import spaces_table

    make_console().print(spaces_table())


@app.command(cls=Command)
def recipes() -> None:
    """List the training recipes that come with the tool."""
    from search.terminal import recipes_table

    make_console().print(recipes_table())


@app.command(cls=Command)
def bench(
    problem: Annotated[
        str | None, typer.Option(help="A name; an unknown one lists all there are.")
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(help="The file of a published table, if not in ../shared/bench."),
    ] = None,
    samplers: Annotated[str | None, typer.Option(help="Comma-separated; default: all.")] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each.", min=1)] = 10,
    evaluations: Annotated[int, typer.Option(help="Of each run.", min=4)] = 400,
) -> None:
    """Measure samplers on a problem whose evaluations cost nothing."""
    from search.bench import print_table

    names = None if samplers is None else tuple(samplers.split(","))
    print_table(
        problem, table=table, searchers=names, seeds=seeds, evaluations=evaluations, line=print
    )


@app.command(cls=Command)
def doctor(
    data: Annotated[str | None, typer.Option(help="A data source to check as well.")] = None,
    storage: Annotated[str | None, typer.Option(help="A storage to check as well.")] = None,
) -> None:
    """Check the installation, devices, Ray, kernels and, if named, the data and the storage."""
    from search.cli.doctor import check_all

    if not check_all(make_console(), data=data, storage=storage):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; wrong input ends with one message and status 2."""
    speak_any_locale()
    script = Path(sys.argv[0]).name
    try:
        app(prog_name=script if script == "mixer-search" else "search")
    except (ValueError, OSError) as error:
        message = message_of(error)
        if message is None:
            raise
        fail(message)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)


def _refuse_given(context: typer.Context) -> None:
    """Refuse options that a resumed run would ignore."""
    for option in context.command.params:
        if option.name not in RESUMABLE and _is_given(context, str(option.name)):
            raise ValueError(
                f"A run keeps what it was begun with: leave {option.opts[0]} out with --resume, "
                "or begin another run."
            )


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _limits(**given: str | float | None) -> dict[str, float]:
    """Read the limits that were given, by the name of the cost."""
    from searchspace.quantity import parse_quantity

    return {
        name: parse_quantity(limit) if isinstance(limit, str) else limit
        for name, limit in given.items()
        if limit is not None
    }


def _taps(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    old, colon, new = text.partition(":")
    if not (colon and old.isdecimal() and new.isdecimal()):
        raise ValueError(f"--taps is OLD:NEW, e.g. 7:12, got {text!r}.")
    return int(old), int(new)


def _shares(texts: list[str]) -> dict[str, float]:
    from search.run_folder import parse_shares

    return parse_shares(texts)


def _default_folder(data: str) -> Path:
    name = Path(data).name.split(".")[0].split(":")[0] or "run"
    return Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{name}"


if __name__ == "__main__":
    main()
