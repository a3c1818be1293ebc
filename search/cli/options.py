"""The options that several commands have, and how their help is grouped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from search.terminal import PlainConsole

GRAFTING, JUDGING, LATENCY, LIMITS, TRAINING, CLUSTER = (
    "Starting from a trained network",
    "How networks are judged",
    "Whose latency",
    "Limits that need measuring",
    "Images and retraining",
    "Several machines",
)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]
Space = Annotated[
    str | None,
    typer.Option(
        help="Name or YAML file of a search space; default: micro, or digits for --data digits."
    ),
]
Data = Annotated[str, typer.Option(help="digits, an image folder, a tar of one, or a timm name.")]
BudgetText = Annotated[str, typer.Option("--budget", help="Device time, e.g. 50gpu-days.")]
ImgSize = Annotated[
    int | None, typer.Option(min=1, help="Side of the images; default: the space's.")
]
# As `search.run_folder.settings` has them.
RECIPE_HELP = (
    "Of the full retraining; default: micro, or digits for --data digits; from 160 pixels on "
    "swin_300e:tiny."
)
Recipe = Annotated[str | None, typer.Option(help=RECIPE_HELP)]
Strategy = Annotated[
    str,
    typer.Option(help="Judge by a supernet, by short trainings (proxy), or zero-cost scores."),
]
Task = Annotated[
    str,
    typer.Option(help="classification; or backbones for semantic, detection or instance."),
]
Share = Annotated[
    list[str], typer.Option(help="Fix a phase's share of the budget, e.g. supernet=.5; repeatable.")
]
Limit = Annotated[str | None, typer.Option(help="Refuse larger networks, e.g. 5G or 2.5M.")]
RayAddress = Annotated[str | None, typer.Option(help="Ray cluster to join; default: this machine.")]
TAUGHT = (
    "Let all networks learn from it, too: timm:NAME[:FILE], PRESET:FILE, RUN:ID or a folder; with "
    "--task the folder of a transfer."
)
Teacher = Annotated[str | None, typer.Option(rich_help_panel=TRAINING, help=TAUGHT)]
Track = Annotated[
    str | None,
    typer.Option(rich_help_panel=TRAINING, help="Send curves to mlflow or wandb, too."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of everything random.")]
DeviceName = Literal["cpu", "cuda"]
Device = Annotated[DeviceName, typer.Option(help="To measure on.")]
Latency = Annotated[
    bool, typer.Option("--latency", help="Measure the latency of one image on this machine.")
]


class Command(TyperCommand):
    """A command whose messages about a value say the value; typer leaves it out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read what was typed; see the class."""
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            from pydantic import ValidationError

            cause = error.__cause__
            if isinstance(cause, ValidationError):
                value = cause.errors()[0]["input"]
                error.message = f"{error.message.rstrip('.')}, got {value!r}."
            raise


class GroupedCommand(Command):
    """One whose help shows its options in sections, the one without a name first."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each ``rich_help_panel``."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                panel = getattr(parameter, "rich_help_panel", None) or "Options"
                sections.setdefault(panel, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def is_given(context: typer.Context, name: str) -> bool:
    """Tell whether an option was typed, or stands in a file of options."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def check_device(device: DeviceName) -> None:
    """Refuse a device that torch has not.

    Raises:
        ValueError: Then.
    """
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError(
                "--device cuda needs a GPU that torch can use, and there is none here. "
                "Write --device cpu."
            )


def make_console(*, stderr: bool = False) -> PlainConsole:
    """Make a console for text that users named."""
    from search.terminal import PlainConsole

    return PlainConsole(stderr=stderr)
