"""The command line. Every command imports what it needs when it runs, so that help is instant."""

from __future__ import annotations

import json
import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search import front_commands

if TYPE_CHECKING:
    from rich.console import Console

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
Objectives = Annotated[str, typer.Option(help="top1 and costs to weigh, comma-separated.")]
Limit = Annotated[str | None, typer.Option(help="Refuse larger networks, e.g. 5G.")]
Recipe = Annotated[
    str | None, typer.Option(help="Of the full retraining; default: micro, or digits for them.")
]
RayAddress = Annotated[str | None, typer.Option(help="Ray cluster to join; default: this machine.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def run(
    budget: Annotated[
        str | None, typer.Option(help="Device time to spend, e.g. 10cpu-minutes, 50gpu-days.")
    ] = None,
    space: Space = None,
    data: Data = "digits",
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default: runs/...")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    sampler: Annotated[str, typer.Option(help="nsga2, nsga3, tpe or random.")] = "nsga2",
    strategy: Annotated[str, typer.Option(help="Supernet training: sandwich or uniform.")] = (
        "sandwich"
    ),
    objectives: Objectives = "top1,macs",
    max_macs: Limit = None,
    max_params: Limit = None,
    img_size: ImgSize = None,
    recipe: Recipe = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    ray_address: RayAddress = None,
) -> None:
    """Search within a budget and end with a Pareto front."""
    from search.outcome import print_outcome, write_report
    from search.run_folder import create_run, resume_run
    from search.settings import RunSettings

    console = _console()
    if resume:
        if out is None:
            raise ValueError("--resume needs the folder of the run: add --out RUN.")
        opened = resume_run(out, budget)
    else:
        if budget is None:
            raise ValueError("A run needs a budget: add e.g. --budget 10cpu-minutes.")
        settings = RunSettings(
            space=space or "",
            data=data,
            budget=budget,
            sampler=sampler,
            strategy=strategy,
            retrain_recipe=recipe or "",
            objectives=tuple(objectives.split(",")),
            limits=_limits(max_macs, max_params),
            img_size=img_size,
            seed=seed,
            command=shlex.join(["search", *sys.argv[1:]]),
        )
        out = out or _default_folder(data)
        opened = create_run(out, settings)
    if not resume:
        console.print(f"Reading {data} ...", highlight=False, soft_wrap=True)
    with opened as folder:
        from search.run import run_search

        console.print(f"Run folder: {out}", highlight=False, soft_wrap=True)
        stopped_by = run_search(folder, console, ray_address=ray_address)
        write_report(folder)
        print_outcome(folder, console)
    if stopped_by:
        console.print(f"Stopped by {stopped_by}. Go on with: search run --resume --out {out}")
        raise typer.Exit(130)


@app.command()
def plan(
    budget: BudgetText,
    space: Space = None,
    data: Data = "digits",
    img_size: ImgSize = None,
    recipe: Recipe = None,
    devices: Annotated[int | None, typer.Option(help="Devices; default: this machine's.")] = None,
) -> None:
    """Measure this machine for a few seconds and say what a budget would buy."""
    from search.listings import plan_table
    from search.planning import plan_here
    from search.settings import RunSettings

    settings = RunSettings(
        space=space or "", data=data, budget=budget, img_size=img_size, retrain_recipe=recipe or ""
    )
    made = plan_here(settings, devices=devices)
    _console().print(plan_table(made, settings.parsed_budget.device))


@app.command()
def status(run: Run) -> None:
    """Show the phase of a run, what is spent and left, and the best network so far."""
    from search.listings import status_table
    from search.run_folder import open_run

    with open_run(run) as folder:
        _console().print(status_table(folder))


for _command in (front_commands.pareto, front_commands.select, front_commands.compare):
    app.command()(_command)


@app.command()
def show(
    target: Annotated[str, typer.Argument(help="A preset, an architecture file, or RUN:ID.")],
    img_size: ImgSize = None,
    json_: Json = False,
) -> None:
    """Show one architecture: its stages, parameters and MACs."""
    from search.tables import architecture_json, architecture_table
    from search.targets import load_target

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
    ray_address: RayAddress = None,
) -> None:
    """Train chosen architectures with the full recipe; judge each once on the test split."""
    from search.outcome import write_report
    from search.retraining import retrain_members
    from search.run_folder import open_run

    with open_run(run) as folder:
        console = _console()
        stopped_by = retrain_members(
            folder,
            arch,
            recipe=recipe,
            epochs=epochs,
            seeds=seed,
            console=console,
            ray_address=ray_address,
        )
        write_report(folder)
        console.print(f"Report: {folder.report}", highlight=False)
    if stopped_by:
        console.print(f"Stopped by {stopped_by}. The same command goes on.")
        raise typer.Exit(130)


@app.command()
def presets() -> None:
    """List the architectures that have a name."""
    from search.listings import presets_table

    _console().print(presets_table())


@app.command()
def spaces() -> None:
    """List the search spaces that come with the tool."""
    from search.listings import spaces_table

    _console().print(spaces_table())


@app.command()
def recipes() -> None:
    """List the training recipes that come with the tool."""
    from search.listings import recipes_table

    _console().print(recipes_table())


@app.command()
def doctor(
    data: Annotated[str | None, typer.Option(help="A data source to check as well.")] = None,
) -> None:
    """Check the installation, the devices, Ray, the kernels and, if named, the data."""
    from search.doctor import check_all

    if not check_all(_console(), data=data):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; wrong input ends with one message and status 2."""
    try:
        app()
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)


def _console() -> Console:
    from rich.console import Console

    return Console()


def _limits(max_macs: str | None, max_params: str | None) -> dict[str, float]:
    from searchspace.quantity import parse_quantity

    given = {"macs": max_macs, "params": max_params}
    return {name: parse_quantity(text) for name, text in given.items() if text is not None}


def _default_folder(data: str) -> Path:
    name = Path(data).name.split(".")[0].split(":")[0] or "run"
    return Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{name}"


if __name__ == "__main__":
    main()
