"""``search run``, ``plan`` and ``status``: one run, from its budget to its end."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from configs.files import check_output, check_output_folder
from search.cli.config_file import apply_config
from search.cli.options import (
    CLUSTER,
    GRAFTING,
    JUDGING,
    LATENCY,
    LIMITS,
    RECIPE_HELP,
    TRAINING,
    BudgetText,
    Data,
    ImgSize,
    Limit,
    Recipe,
    Run,
    Seed,
    Share,
    Space,
    Strategy,
    Task,
    Teacher,
    Track,
    is_given,
    make_console,
)

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from search.run_folder import BuildsTeacher, RunFolder, RunSettings, TeacherFiles

# What may be given with --resume; all else is decided when a run begins.
RESUMABLE = {"budget", "out", "resume", "sampler", "ray_address", "track"}


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
        typer.Option(
            help="top1 (of --task: miou, ap_box, ap_mask) and some of macs, params, latency, "
            "memory.  [default: top1,macs]"
        ),
    ] = None,
    max_macs: Limit = None,
    max_params: Limit = None,
    seed: Seed = 0,
    task: Task = "classification",
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            rich_help_panel=GRAFTING,
            help="Start from this trained network and replace its blocks: a checkpoint, a folder, "
            "RUN:ID.",
        ),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=GRAFTING, help="The preset (or file) that a checkpoint was trained as."
        ),
    ] = None,
    unlabelled: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=GRAFTING,
            help="Folder of images without classes, to learn from --from on as well.",
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(help="Run whose supernet's weights backbones begin with, for --task."),
    ] = None,
    strategy: Annotated[
        str,
        typer.Option(
            rich_help_panel=JUDGING,
            help="By a supernet, by short trainings (proxy), or zero-cost scores; of a graft by "
            "itself.",
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
    latency_of: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=LATENCY,
            help="eager, compiled, cuda-graph, onnxruntime, openvino or tensorrt.  "
            "[default: eager; cuda-graph on GPUs]",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, rich_help_panel=LATENCY, help="Images at a time.  [default: 1]"),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(rich_help_panel=LATENCY, help="fp32, bf16, fp16 or int8.  [default: fp32]"),
    ] = None,
    latency_table: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=LATENCY,
            help="Measure nothing: a file of `search latency`, of any device.",
        ),
    ] = None,
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
        typer.Option(rich_help_panel=TRAINING, help=RECIPE_HELP),
    ] = None,
    teacher: Teacher = None,
    track: Track = None,
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
    from search.tracking import check_tracker

    check_tracker(track)
    begun = None
    if resume:
        _refuse_given(context)
        if out is None:
            raise ValueError("--resume needs the folder of the run: add --out RUN.")
        other = sampler if is_given(context, "sampler") else None
        opened = resume_run(out, budget, sampler=other)
    else:
        if budget is None:
            raise ValueError("A run needs a budget: add e.g. --budget 10cpu-minutes.")
        if arch is not None and from_ is None:
            raise ValueError(
                f"--arch {arch} is of the checkpoint of --from, which is missing. Add it."
            )
        if from_ is not None:
            strategy = _graft_strategy(context, strategy)
        grafted = context.with_resource(_teacher_of(from_, arch))
        settings = RunSettings(
            space=space or "",
            data=data,
            budget=budget,
            task=task,
            graft_from=from_ or "",
            graft_arch=arch or "",
            teacher="" if grafted is None else str(grafted.folder),
            taught_by=teacher or "",
            unlabelled=str(unlabelled or ""),
            start=str(start.resolve()) if start else "",
            sampler=sampler,
            strategy=strategy,
            supernet_strategy=supernet_strategy,
            projections=projections,
            kernels=kernels,
            retrain_recipe=recipe or "",
            objectives=() if objectives is None else parse_objectives(objectives),
            latency_of=latency_of or "",
            precision=precision or "",
            batch=batch,
            latency_table=str(latency_table or ""),
            shares=_shares(share),
            limits=_limits(
                macs=max_macs, params=max_params, latency_ms=max_latency, memory_mib=max_memory
            ),
            img_size=_size_of(grafted, img_size),
            seed=seed,
            storage=storage or "",
            command=shlex.join(["search", *sys.argv[1:]]),
        )
        begun = settings
        mentor = _look_for(teacher, settings)
        if ray_address is not None or settings.parsed_budget.device == "gpu":
            from search.cluster import check_devices

            check_devices(settings.parsed_budget.device, ray_address)
        out = out or _default_folder(data)
        check_output_folder(out)
        opened = create_run(out, settings, database=record, teacher=mentor)
        make_console().say(f"Reading {data} ...")
    _work(opened, out, ray_address, track, begun=begun)


def _work(
    opened: AbstractContextManager[RunFolder],
    out: Path,
    ray_address: str | None,
    track: str | None,
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
            if "latency_ms" in folder.settings.objectives:
                console.say(folder.settings.describe_latency("this run's devices"))
            stopped_by = run_search(folder, console, ray_address=ray_address, track=track)
            if stopped_by != NO_DATABASE:
                if stopped_by != FULL_DISK and not write_report(folder, console):
                    stopped_by = FULL_DISK
                has_front = print_closing(folder, console, is_stopped=bool(stopped_by))
    except KeyboardInterrupt:
        print(visible(interrupted), file=sys.stderr)
        raise typer.Exit(130) from None
    if stopped_by:
        console.say(f"Stopped by {stopped_by}. Go on with: {go_on}")
        raise typer.Exit(130)
    if not has_front:
        raise typer.Exit(1)


def plan(
    budget: BudgetText,
    space: Space = None,
    data: Data = "digits",
    img_size: ImgSize = None,
    recipe: Recipe = None,
    teacher: Teacher = None,
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
        taught_by=teacher or "",
        storage=storage or "",
    )
    mentor = _look_for(teacher, settings)
    check_output(save_times)
    source = TimesFrom(ray_address=ray_address, times=times, profile=device, storage=storage)
    console = make_console()
    made = plan_here(settings, devices=devices, times_from=source, say=console.say, teacher=mentor)
    counted = settings.parsed_budget.device
    console.print(plan_table(made.plan, counted, twice=made.twice, times=made.times))
    if save_times is not None:
        write_times(save_times, made.times)


def status(run: Run) -> None:
    """Show the phase of a run, what is spent and left, and the best network so far."""
    from search.run_folder import open_run
    from search.terminal import status_table

    with open_run(run) as folder:
        make_console().print(status_table(folder))


def _refuse_given(context: typer.Context) -> None:
    """Refuse options that a resumed run would ignore."""
    for option in context.command.params:
        if option.name not in RESUMABLE and is_given(context, str(option.name)):
            raise ValueError(
                f"A run keeps what it was begun with: leave {option.opts[0]} out with --resume, "
                "or begin another run."
            )


@contextmanager
def _teacher_of(text: str | None, arch: str | None) -> Iterator[TeacherFiles | None]:
    """Find what a graft begins with, and lay it where the run takes it from."""
    if text is None:
        yield None
        return
    import tempfile

    from search.retraining.graft_source import find_source
    from search.run_folder import read_teacher

    with tempfile.TemporaryDirectory(prefix="search-graft-") as folder:
        find_source(text, arch).write(Path(folder))
        yield read_teacher(Path(folder))


def _look_for(text: str | None, settings: RunSettings) -> BuildsTeacher | None:
    """Look for a teacher before images are read, which may take long."""
    if text is None:
        return None
    if not settings.classifies:
        from search.transferring.queue import look_for_dense_teacher

        return look_for_dense_teacher(text)
    from search.retraining.teachers import look_for_teacher

    return look_for_teacher(text)


def _graft_strategy(context: typer.Context, strategy: str) -> str:
    if is_given(context, "strategy") and strategy != "graft":
        raise ValueError(
            f"--from begins a graft, which has its own strategy, got --strategy {strategy}. Leave "
            "one of them out."
        )
    return "graft"


def _size_of(grafted: TeacherFiles | None, img_size: int | None) -> int | None:
    """Return the side of the images: that of the network that is grafted, where there is one."""
    if grafted is None:
        return img_size
    own = grafted.architecture.img_size
    if img_size not in (None, own):
        raise ValueError(
            f"A graft keeps the size of its network, {own} pixels, got --img-size {img_size}. "
            "Leave it out."
        )
    return own


def _limits(**given: str | float | None) -> dict[str, float]:
    """Read the limits that were given, by the name of the cost."""
    from searchspace.quantity import parse_quantity

    return {
        name: parse_quantity(limit) if isinstance(limit, str) else limit
        for name, limit in given.items()
        if limit is not None
    }


def _shares(texts: list[str]) -> dict[str, float]:
    from search.run_folder import parse_shares

    return parse_shares(texts)


def _default_folder(data: str) -> Path:
    name = Path(data).name.split(".")[0].split(":")[0] or "run"
    return Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{name}"
