"""The commands about a front: `pareto`, `select` and `compare`. They import when they run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from configs.files import check_output, writing
from search.cli.options import (
    Device,
    Json,
    Latency,
    Run,
    check_device,
    is_given,
    make_console,
)

if TYPE_CHECKING:
    from search.front import FrontQuery

Objectives = Annotated[
    str | None,
    typer.Option(help="What the front weighs: top1, macs, params, latency_ms; default: the run's."),
]
Fidelity = Annotated[
    str | None, typer.Option(help="supernet, train-<n>e, ...; default: the highest with a front.")
]
MaxMacs = Annotated[str | None, typer.Option(help="Only networks up to this, e.g. 5G.")]
MaxParams = Annotated[str | None, typer.Option(help="Only networks up to this, e.g. 30M.")]
# What says which networks to show, and in which order.
_QUERY = ("objectives", "fidelity", "sort", "max_macs", "max_params", "knee", "near")


def pareto(
    context: typer.Context,
    run: Run,
    objectives: Objectives = None,
    fidelity: Fidelity = None,
    sort: Annotated[str, typer.Option(help="id, top1, macs, params, latency_ms or sure.")] = "macs",
    max_macs: MaxMacs = None,
    max_params: MaxParams = None,
    knee: Annotated[bool, typer.Option("--knee", help="Only the most balanced member.")] = False,
    near: Annotated[
        bool, typer.Option("--near", help="Also those that only noise keeps off the front.")
    ] = False,
    limit: Annotated[
        list[str],
        typer.Option(
            help="Of a graft: choose new networks within macs=2G, params=20M, latency=3ms; "
            "repeatable."
        ),
    ] = [],  # noqa: B006 - typer reads it once
    latency_table: Annotated[
        Path | None, typer.Option(help="Whose latency --limit means; default: the run's table.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh until the run ends or Ctrl-C.")
    ] = False,
    latency: Latency = False,
    device: Device = "cpu",
    json_: Json = False,
    csv: Annotated[Path | None, typer.Option(help="Write a CSV file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the HTML report.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write a picture.")] = None,
) -> None:
    """Show the Pareto front of a run."""
    from search.front import choose_rows, front_view, judged_by, measure_latencies, write_csv
    from search.results import to_json
    from search.run_folder import open_run

    if limit or latency_table is not None:
        _refuse_given(
            context,
            besides=("run", "limit", "latency_table", "json_"),
            because="is of networks that were judged, and --limit chooses new ones",
        )
        _retarget(run, limit, latency_table, as_json=json_)
        return
    query = _query(objectives, fidelity, max_macs, max_params, sort=sort, knee=knee, near=near)
    check_device(device)
    for path in (csv, html, png):
        check_output(path)
    if watch:
        _refuse_given(
            context,
            besides=("run", "watch", *_QUERY),
            because="is done once, and --watch shows the front again and again",
        )
        _watch(run, query)
        return
    with open_run(run, write=latency) as folder:
        if latency:
            measure_latencies(folder, query, device=device)
        if csv or html or png or json_:
            found = judged_by(folder, query)
            rows = choose_rows(
                found, query, objectives=query.objectives or folder.settings.objectives
            )
        if csv:
            with writing(csv):
                write_csv(csv, rows)
        if html or png:
            from search.report import export_front

            export_front(folder, found=found, html=html, png=png)
        if json_:
            print(json.dumps([to_json(row) for row in rows], indent=2))
        else:
            make_console().print(front_view(folder, query))


def _refuse_given(context: typer.Context, *, besides: Sequence[str], because: str) -> None:
    """Refuse options that would be ignored.

    Raises:
        ValueError: If any was typed besides those that are named.
    """
    for option in context.command.params:
        if option.name not in besides and is_given(context, str(option.name)):
            raise ValueError(f"{option.opts[0]} {because}. Leave one of them out.")


def _retarget(run: Path, limits: list[str], latency_table: Path | None, *, as_json: bool) -> None:
    """Choose new members of a graft, and say how they are healed."""
    from search.front import (
        caveat,
        parse_limits,
        retarget,
        retargeted_json,
        retargeted_table,
        training_command,
    )
    from search.run_folder import own_run

    if not limits:
        raise ValueError(
            f"--latency-table {latency_table} says whose latency --limit means. Add e.g. --limit "
            "latency=3ms."
        )
    with own_run(run) as folder:
        found = retarget(folder, parse_limits(limits), latency_table)
        if as_json:
            print(json.dumps([retargeted_json(one) for one in found], indent=2))
            return
        console = make_console()
        console.print(retargeted_table(found))
        console.say(
            f"{caveat(folder)}\n\nNext:\n  {training_command(folder, '--arch', found[0].id)}"
        )


def compare(
    targets: Annotated[
        list[str], typer.Argument(help="Two or more of: RUN:ID, a preset, an architecture file.")
    ],
    img_size: Annotated[
        int | None,
        typer.Option(min=1, help="Count costs at this image size; default: each its own."),
    ] = None,
    latency: Latency = False,
    device: Device = "cpu",
    json_: Json = False,
) -> None:
    """Show architectures side by side: mixers, parameters, MACs and latency of each stage."""
    from search.front import compare_json, compare_table, load_compared, with_latencies

    check_device(device)
    if len(targets) < 2:
        raise ValueError(f"Compare two or more architectures, got only {targets[0]!r}.")
    compared = [load_compared(target, img_size=img_size) for target in targets]
    if latency:
        compared = with_latencies(compared, device)
    if json_:
        print(json.dumps(compare_json(compared), indent=2))
    else:
        make_console().print(compare_table(compared))


def select(
    run: Run,
    top: Annotated[int, typer.Option(min=1, help="How many networks.")] = 4,
    budget: Annotated[
        str | None, typer.Option(help="Device time for all retrainings, e.g. 2gpu-days.")
    ] = None,
    objectives: Objectives = None,
    fidelity: Fidelity = None,
    max_macs: MaxMacs = None,
    max_params: MaxParams = None,
    args: Annotated[
        bool, typer.Option("--args", help="Print only the arguments for search retrain.")
    ] = False,
    json_: Json = False,
) -> None:
    """Name the networks that are worth retraining, and say why.

    search retrain RUN $(search select RUN --top 4 --args)
    """
    import math

    from search.budget import parse_budget
    from search.front import (
        choice_json,
        judged_by,
        retrain_cost,
        select_members,
        select_table,
        training_command,
        without_teacher,
    )
    from search.run_folder import open_run
    from search.terminal import shell_command

    query = _query(objectives, fidelity, max_macs, max_params)
    given = parse_budget(budget) if budget else None
    with open_run(run) as folder:
        device = folder.settings.parsed_budget.device
        if given is not None and given.device != device:
            raise ValueError(
                f"What a retraining costs is known in {device} time, as the run counts, got "
                f"--budget {budget}. Write it in {device}-hours or the like."
            )
        found = judged_by(folder, query)
        new = without_teacher(folder, found)
        choices = select_members(
            new,
            objectives=query.objectives or folder.settings.objectives,
            top=top,
            budget_seconds=given.amount_seconds if given else math.inf,
            cost_of=retrain_cost(folder.state.plan),
            best="the most accurate" + ", but for the teacher" * (len(new) < len(found)),
        )
        words = [word for choice in choices for word in ("--arch", choice.candidate.id)]
        next_command = training_command(folder, *words)
    if json_:
        print(json.dumps([choice_json(choice) for choice in choices], indent=2))
    elif args:
        print(shell_command(*words))
    else:
        console = make_console()
        console.print(select_table(choices, device))
        console.say(f"\nNext:\n  {next_command}")


def _query(
    objectives: str | None,
    fidelity: str | None,
    max_macs: str | None,
    max_params: str | None,
    *,
    sort: str = "macs",
    knee: bool = False,
    near: bool = False,
) -> FrontQuery:
    from search.front import FrontQuery
    from search.results import parse_objectives
    from searchspace.quantity import parse_quantity

    given = {"macs": max_macs, "params": max_params}
    return FrontQuery(
        objectives=parse_objectives(objectives) if objectives else (),
        fidelity=fidelity,
        limits={name: parse_quantity(text) for name, text in given.items() if text is not None},
        sort=sort,
        only_knee=knee,
        with_near=near,
    )


def _watch(run: Path, query: FrontQuery) -> None:
    from search.front import watch

    console = make_console()
    try:
        console.say(watch(run, query, console))
    except KeyboardInterrupt:
        # The usual way to stop looking; the run goes on.
        return
