"""The command line. Every command imports what it needs when it runs, so that help is instant."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from search.cli import (
    dense_commands,
    front_commands,
    latency_commands,
    network_commands,
    run_commands,
    tool_commands,
)
from search.cli.messages import fail, message_of, speak_any_locale
from search.cli.options import Command, GroupedCommand

app = typer.Typer(
    name="search",
    help="Search the mixer design space within a budget of device time; retrain what you choose.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.command(cls=GroupedCommand)(run_commands.run)
for _command in (
    run_commands.plan,
    run_commands.status,
    front_commands.pareto,
    front_commands.select,
    front_commands.compare,
    latency_commands.latency,
    dense_commands.transfer,
    dense_commands.predict,
    network_commands.show,
    network_commands.retrain,
    network_commands.import_,
    network_commands.ladder,
    network_commands.export,
    network_commands.eval_,
    tool_commands.presets,
    tool_commands.spaces,
    tool_commands.recipes,
    tool_commands.bench,
    tool_commands.doctor,
):
    _is_latency = _command is latency_commands.latency
    _class = latency_commands.LatencyCommand if _is_latency else Command
    app.command(_command.__name__.rstrip("_"), cls=_class)(_command)


def main() -> None:
    """Run the command line; wrong input ends with one message and status 2."""
    speak_any_locale()
    script = Path(sys.argv[0]).name
    try:
        app(prog_name=script if script == "mixer-search" else "search")
    except Exception as error:
        message = message_of(error)
        if message is None:
            raise
        fail(message)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
