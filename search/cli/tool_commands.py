"""Commands about the tool itself: presets, spaces, recipes, bench and doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.cli.options import make_console


def presets() -> None:
    """List the architectures that have a name."""
    from search.terminal import presets_table

    make_console().print(presets_table())


def spaces() -> None:
    """List the search spaces that come with the tool."""
    from search.terminal import spaces_table

    make_console().print(spaces_table())


def recipes() -> None:
    """List the training recipes that come with the tool."""
    from search.terminal import recipes_table

    make_console().print(recipes_table())


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


def doctor(
    data: Annotated[str | None, typer.Option(help="A data source to check as well.")] = None,
    storage: Annotated[str | None, typer.Option(help="A storage to check as well.")] = None,
) -> None:
    """Check the installation, devices, Ray, kernels and, if named, the data and the storage."""
    from search.cli.doctor import check_all

    if not check_all(make_console(), data=data, storage=storage):
        raise typer.Exit(1)
