"""What a person sees in a terminal."""

from search.terminal.console import PlainConsole, shell_command, visible
from search.terminal.listings import presets_table, recipes_table, spaces_table
from search.terminal.progress import ProgressView, StopSignals, clock_text
from search.terminal.run_tables import plan_table, status_table, what_more_buys
from search.terminal.tables import (
    architecture_json,
    architecture_table,
    describe_stages,
    format_chance,
    format_count,
    format_forecast,
    format_interval,
    format_measured,
    front_table,
)

__all__ = [
    "PlainConsole",
    "ProgressView",
    "StopSignals",
    "architecture_json",
    "architecture_table",
    "clock_text",
    "describe_stages",
    "format_chance",
    "format_count",
    "format_forecast",
    "format_interval",
    "format_measured",
    "front_table",
    "plan_table",
    "presets_table",
    "recipes_table",
    "shell_command",
    "spaces_table",
    "status_table",
    "visible",
    "what_more_buys",
]
