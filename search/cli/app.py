"""The command line. Every command imports what it needs when it runs, so that help is instant."""

from __future__ import annotations

import json
import shlex
import sys
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search.cli import front_commands
from search.cli import latency_commands as latency_command

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rich.console import Console

    from search.run_folder.folder import RunFolder

app = typer.Typer(
    name="search",
    help="Search the mixer design space within a budget of device time; retrain what you choose.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]
Space = Annotated[
    str | None,
    typer.Option(help="Name or YAML file of a search space; default: micro, or digits for them."),
]
Data = Annotated[str, typer.Option(help="digits, an image folder, a tar of one, or a timm name.")]
BudgetText = Annotated[str, typer.Option("--budget", help="Device time, e.g. 50gpu-days.")]
ImgSize = Annotated[int | None, typer.Option(help="Side of the images; default: the space's.")]
Objectives = Annotated[
    str, typer.Option(help="top1 and some of macs, params, latency, memory, with commas.")
]
Strategy = Annotated[
    str,
    typer.Option(help="Judge by a supernet, by short trainings (proxy), or zero-cost scores."),
]
Share = Annotated[
    list[str], typer.Option(help="Fix a phase's share of the budget, e.g. supernet=.5; repeatable.")
]
MaxMemory = Annotated[
    float | None, typer.Option(help="MiB of weights and one image; others are on no front.")
]
MaxLatency = Annotated[
    float | None, typer.Option(help="Milliseconds; slower networks are on no front.")
]
Limit = Annotated[str | None, typer.Option(help="Refuse larger networks, e.g. 5G.")]
Recipe = Annotated[
    str | None, typer.Option(help="Of the full retraining; default: micro, or digits for them.")
]
Storage = Annotated[
    str | None,
    typer.Option(help="Folder or s3://... to share files through; default: the run's folder."),
]
RayAddress = Annotated[str | None, typer.Option(help="Ray cluster to join; default: this machine.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


# What may be given with --resume; all else is decided when a run begins.
RESUMABLE = {"budget", "out", "resume", "sampler", "ray_address"}


@app.command()
def run(
    context: typer.Context,
    budget: Annotated[
        str | None, typer.Option(help="Device time to spend, e.g. 10cpu-minutes, 50gpu-days.")
    ] = None,
    space: Space = None,
    data: Data = "digits",
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default: runs/...")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    sampler: Annotated[
        str, typer.Option(help="guided, nsga2, nsga3, tpe, gp or random.")
    ] = "guided",
    strategy: Strategy = "supernet",
    supernet_strategy: Annotated[
        str, typer.Option(help="How it is trained: uniform, fair or sandwich.")
    ] = "uniform",
    projections: Annotated[
        str, typer.Option(help="Of a block's mixers in the supernet: unshared or shared.")
    ] = "unshared",
    kernels: Annotated[
        str, typer.Option(help="Small depth-wise kernels in it: centred or transformed.")
    ] = "centred",
    objectives: Objectives = "top1,macs",
    max_macs: Limit = None,
    max_params: Limit = None,
    max_latency: MaxLatency = None,
    max_memory: MaxMemory = None,
    img_size: ImgSize = None,
    recipe: Recipe = None,
    share: Share = [],  # noqa: B006 - typer reads it once
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    storage: Storage = None,
    ray_address: RayAddress = None,
    record: Annotated[
        str | None,
        typer.Option(help="Keep the record at postgresql://user@host/db; default: in the folder."),
    ] = None,
) -> None:
    """Search within a budget and end with a Pareto front."""
    from search.results.objectives import parse_objectives
    from search.run_folder.folder import create_run, resume_run
    from search.run_folder.settings import RunSettings

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
            sampler=sampler,
            strategy=strategy,
            supernet_strategy=supernet_strategy,
            projections=projections,
            kernels=kernels,
            retrain_recipe=recipe or "",
            objectives=parse_objectives(objectives),
            shares=_shares(share),
            limits=_limits(
                macs=max_macs, params=max_params, latency_ms=max_latency, memory_mib=max_memory
            ),
            img_size=img_size,
            seed=seed,
            storage=storage or "",
            command=shlex.join(["search", *sys.argv[1:]]),
        )
        if ray_address is not None or settings.parsed_budget.device == "gpu":
            from search.cluster.connection import check_devices

            check_devices(settings.parsed_budget.device, ray_address)
        out = out or _default_folder(data)
        opened = create_run(out, settings, database=record)
        _console().print(f"Reading {data} ...", highlight=False, soft_wrap=True)
    _work(opened, out, ray_address)


def _work(opened: AbstractContextManager[RunFolder], out: Path, ray_address: str | None) -> None:
    """Work on a run until it is done or stopped, and say how it ended."""
    from search.report.outcome import print_outcome, write_report

    console = _console()
    go_on = f"search run --resume --out {shlex.quote(str(out))}"
    interrupted = "Interrupted before the run began. The same command begins it."
    stopped_by, has_front = None, False
    try:
        with opened as folder:
            from search.run import FULL_DISK, NO_DATABASE, run_search

            interrupted = f"Interrupted. Go on with: {go_on}"
            console.print(f"Run folder: {out}", highlight=False, soft_wrap=True)
            stopped_by = run_search(folder, console, ray_address=ray_address)
            if stopped_by != NO_DATABASE:
                if stopped_by != FULL_DISK:
                    write_report(folder)
                has_front = print_outcome(folder, console)
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        raise typer.Exit(130) from None
    if stopped_by:
        console.print(
            f"Stopped by {stopped_by}. Go on with: {go_on}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(130)
    if not has_front:
        raise typer.Exit(1)


@app.command()
def plan(
    budget: BudgetText,
    space: Space = None,
    data: Data = "digits",
    img_size: ImgSize = None,
    recipe: Recipe = None,
    strategy: Strategy = "supernet",
    share: Share = [],  # noqa: B006 - typer reads it once
    devices: Annotated[int | None, typer.Option(help="Devices; default: this machine's.")] = None,
) -> None:
    """Measure this machine for a few seconds and say what a budget would buy."""
    from search.phases.planning import plan_here
    from search.run_folder.settings import RunSettings
    from search.terminal.listings import plan_table

    settings = RunSettings(
        space=space or "",
        data=data,
        budget=budget,
        strategy=strategy,
        shares=_shares(share),
        img_size=img_size,
        retrain_recipe=recipe or "",
    )
    console = _console()
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    made, twice = plan_here(settings, devices=devices, say=say)
    console.print(plan_table(made, settings.parsed_budget.device, twice=twice))


@app.command()
def status(run: Run) -> None:
    """Show the phase of a run, what is spent and left, and the best network so far."""
    from search.run_folder.folder import open_run
    from search.terminal.listings import status_table

    with open_run(run) as folder:
        _console().print(status_table(folder))


for _command in (
    front_commands.pareto,
    front_commands.select,
    front_commands.compare,
    latency_command.latency,
):
    app.command()(_command)


@app.command()
def show(
    target: Annotated[
        str, typer.Argument(help="A preset, an architecture file, RUN:ID or timm:NAME.")
    ],
    img_size: ImgSize = None,
    json_: Json = False,
) -> None:
    """Show one architecture: its stages, parameters and MACs."""
    if target.startswith("timm:"):
        from search.cli.timm_networks import measure, timm_table

        network = measure(target.removeprefix("timm:"), img_size)
        if json_:
            print(json.dumps(network.to_dict(), indent=2))
        else:
            _console().print(timm_table(network))
        return
    from search.run_folder.targets import load_target
    from search.terminal.tables import architecture_json, architecture_table

    architecture = load_target(target)
    if img_size is not None:
        architecture = architecture.replace(img_size=img_size)
    if json_:
        print(json.dumps(architecture_json(architecture), indent=2))
    else:
        _console().print(architecture_table(architecture, name=target))


@app.command()
def retrain(
    run: Run,
    arch: Annotated[list[int], typer.Option(help="Id of a network of the front; repeatable.")],
    recipe: Annotated[
        str | None, typer.Option(help="Name or file of a recipe; default: the run's.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    seed: Annotated[list[int], typer.Option(help="Of weights and data order; repeatable.")] = [0],  # noqa: B006 - typer reads it once
    inherit: Annotated[
        bool, typer.Option("--inherit", help="Start from the supernet's weights.")
    ] = False,
    start: Annotated[
        Path | None, typer.Option(help="Start from this retraining or file of weights.")
    ] = None,
    img_size: Annotated[int | None, typer.Option(help="Another side of the images.")] = None,
    taps: Annotated[
        str | None, typer.Option(help="Turn windows and kernels of a size into another: 7:12.")
    ] = None,
    token_labels: Annotated[
        Path | None, typer.Option(help="Folder of label maps, for volo_310e.")
    ] = None,
    devices: Annotated[int, typer.Option(help="That train one network together.")] = 1,
    workers: Annotated[
        int | None, typer.Option(help="Processes that make batches; default: 8 for a GPU.")
    ] = None,
    ray_address: RayAddress = None,
) -> None:
    """Train chosen architectures with the full recipe; judge each once on the test split."""
    from search.report.outcome import write_report
    from search.retraining.queue import FAILED, FULL_DISK, RetrainPlan, retrain_members
    from search.run_folder.folder import own_run

    with own_run(run) as folder:
        console = _console()
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
            console.print(f"Report: {folder.report}", highlight=False)
    if stopped_by:
        console.print(f"Stopped by {stopped_by}. The same command goes on.")
        raise typer.Exit(1 if stopped_by in (FAILED, FULL_DISK) else 130)


@app.command(name="import")
def import_(
    checkpoint: Annotated[Path, typer.Argument(help="A published checkpoint file.")],
    arch: Annotated[str, typer.Option(help="The preset (or file) that it was trained as.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
) -> None:
    """Read a published checkpoint of Swin, VOLO or ELSA as one of our networks."""
    from search.retraining.import_checkpoint import import_checkpoint

    folder = import_checkpoint(checkpoint, arch, out=out)
    console = _console()
    console.print(f"Wrote {folder / 'model.safetensors'}. Load it with:", highlight=False)
    console.print(
        "  import timm, supernet\n"
        f'  timm.create_model("mixer_search", architecture="{folder / "architecture.json"}",\n'
        f'                    checkpoint_path="{folder / "model.safetensors"}")',
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def ladder(
    target: Annotated[str, typer.Argument(metavar="RUN:ID", help="A network of a run.")],
    step: Annotated[
        list[str] | None,
        typer.Option(help="inside, extracted, recalibrated, fine-tuned, retrained; default: all."),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Of fine-tuning and of retraining.")] = 5,
    seed: Annotated[int, typer.Option(help="Of these trainings.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Show the accuracy of a network inside the supernet, extracted, ..., trained alone."""
    from search.run_folder.folder import open_run
    from search.trust.ladder import STEPS, climb
    from supernet.training.intervals import wilson_interval

    folder, colon, number = target.rpartition(":")
    if not colon or not number.isdecimal():
        raise ValueError(f"Name a network of a run as RUN:ID, e.g. runs/digits:12, got {target!r}.")
    console = _console()
    with open_run(Path(folder)) as run:
        steps = tuple(step or STEPS)
        for rung in climb(run, int(number), steps=steps, epochs=epochs, seed=seed, device=device):
            low, high = wilson_interval(rung.accuracy.correct, rung.accuracy.total)
            console.print(
                f"{rung.step:13} {rung.accuracy.top1:6.2f} %  ({low:.1f} to {high:.1f})  "
                f"{rung.about}",
                highlight=False,
                soft_wrap=True,
            )


@app.command()
def export(
    target: Annotated[str, typer.Argument(help="RUN:ID, or the folder of a retraining.")],
    format_: Annotated[
        str, typer.Option("--format", help="safetensors, timm, onnx, torch; several with commas.")
    ] = "safetensors",
    out: Annotated[Path | None, typer.Option(help="Folder; default: export/ beside it.")] = None,
) -> None:
    """Write a retrained network for others to load, and check what was written."""
    from search.retraining.export import export_retrained

    for written in export_retrained(target, format_.split(","), out):
        _console().print(f"{written.path}: {written.checked}", highlight=False, soft_wrap=True)


@app.command("eval")
def eval_(
    target: Annotated[str, typer.Argument(help="RUN:ID, or the folder of a retraining.")],
    data: Annotated[str | None, typer.Option(help="Other images; default: the run's.")] = None,
    real_labels: Annotated[Path | None, typer.Option(help="ImageNet-real's real.json.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json_: Json = False,
) -> None:
    """Measure a retrained network: accuracy on the test split, throughput, latency."""
    import tempfile

    from search.retraining.evaluate import evaluate_retrained, evaluation_table

    with tempfile.TemporaryDirectory() as folder:
        found = evaluate_retrained(
            target, data=data, real_labels=real_labels, device=device, folder=Path(folder) / "data"
        )
    if json_:
        print(json.dumps(found.to_json(), indent=2))
    else:
        _console().print(evaluation_table(found))


@app.command()
def presets() -> None:
    """List the architectures that have a name."""
    from search.terminal.listings import presets_table

    _console().print(presets_table())


@app.command()
def spaces() -> None:
    """List the search spaces that come with the tool."""
    from search.terminal.listings import spaces_table

    _console().print(spaces_table())


@app.command()
def recipes() -> None:
    """List the training recipes that come with the tool."""
    from search.terminal.listings import recipes_table

    _console().print(recipes_table())


@app.command()
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
    from search.bench.searchers import print_table

    names = None if samplers is None else tuple(samplers.split(","))
    print_table(
        problem, table=table, searchers=names, seeds=seeds, evaluations=evaluations, line=print
    )


@app.command()
def doctor(
    data: Annotated[str | None, typer.Option(help="A data source to check as well.")] = None,
    storage: Annotated[str | None, typer.Option(help="A storage to check as well.")] = None,
) -> None:
    """Check the installation, devices, Ray, kernels and, if named, the data and the storage."""
    from search.cli.doctor import check_all

    if not check_all(_console(), data=data, storage=storage):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; wrong input ends with one message and status 2."""
    try:
        app(prog_name="search")
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
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


def _console() -> Console:
    from rich.console import Console

    return Console()


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
    from search.run_folder.settings import parse_shares

    return parse_shares(texts)


def _default_folder(data: str) -> Path:
    name = Path(data).name.split(".")[0].split(":")[0] or "run"
    return Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{name}"


if __name__ == "__main__":
    main()
