"""Write the pages of docs/reference that the code knows: the command line, recipes, spaces.

python scripts/generate_reference.py            # write them
python scripts/generate_reference.py --check    # say whether they are up to date
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import typer  # noqa: E402
from pydantic import BaseModel  # noqa: E402
from typer.main import get_command  # noqa: E402

from search.cli.app import app  # noqa: E402
from searchspace.mixers import MIXER_KINDS  # noqa: E402
from searchspace.spec_schema import SpaceEntry, StageEntry  # noqa: E402
from supernet.recipes.recipe import Distillation, Recipe, TokenLabels  # noqa: E402

FOLDER = ROOT / "docs" / "reference"
NOTE = "<!-- Written by scripts/generate_reference.py; change the code, not this page. -->\n"


def main() -> int:
    """Write or check the pages; 1 where one is out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    only_check = parser.parse_args().check
    old = [name for name, text in pages().items() if read(name) != text]
    for name in old:
        print(f"docs/reference/{name} is out of date" if only_check else f"docs/reference/{name}")
        if not only_check:
            (FOLDER / name).write_text(pages()[name], encoding="utf-8")
    return int(only_check and bool(old))


def read(name: str) -> str:
    """Return a page as it stands, empty if there is none."""
    path = FOLDER / name
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def pages() -> dict[str, str]:
    """Return the pages by file name."""
    return {
        "cli.md": NOTE + "\n".join(command_line()) + "\n",
        "recipes.md": NOTE + "\n".join(recipe_page()) + "\n",
        "spaces.md": NOTE + "\n".join(space_page()) + "\n",
    }


def command_line() -> Iterator[str]:
    """Yield the lines of the page about commands."""
    group: Any = get_command(app)
    yield "# Command line"
    yield ""
    yield "`search` and `mixer-search` are the same program. Its exit status:"
    yield "0 done, 1 something failed, 2 the input is wrong, 130 interrupted and resumable."
    context = typer.Context(group, info_name="search")
    for name, command in group.commands.items():
        if command.hidden:
            continue
        yield from ("", f"## search {name}", "", *paragraphs(command.help or ""), "")
        child = typer.Context(command, info_name=name, parent=context)
        yield from table(
            ("option", "value", "default", "meaning"),
            (option_row(parameter, child) for parameter in command.params),
        )


def option_row(parameter: Any, context: Any) -> tuple[str, str, str, str]:
    """Describe one option or argument."""
    is_option = parameter.param_type_name == "option"
    name = ", ".join(f"`{one}`" for one in parameter.opts) if is_option else f"`{parameter.name}`"
    kind = "" if getattr(parameter, "is_flag", False) else display(parameter, context)
    default = parameter.default
    if parameter.required:
        shown = "required"
    elif callable(default) or default is False or default is None or default in ("", (), []):
        shown = ""
    else:
        shown = f"`{default}`"
    return name, kind, shown, getattr(parameter, "help", None) or ""


def display(parameter: Any, context: Any) -> str:
    """Describe the values of an option in words."""
    names = {"str": "text", "int": "whole number", "float": "number"}
    kind = str(parameter.display_type(context)).strip("<>[]").removesuffix(" range")
    many = kind.startswith("list")
    kind = kind.removeprefix("list").strip("<>[]")
    return ("several of: " if many else "") + names.get(kind, kind)


def recipe_page() -> Iterator[str]:
    """Yield the lines of the page about recipes."""
    yield "# Recipes"
    yield ""
    yield "A recipe is a complete YAML file: no key has a default but `distillation` and what"
    yield "stands in it. `search recipes` lists those in `configs/recipes`."
    yield ""
    yield from table(("key", "value", "meaning"), model_rows(Recipe))
    yield from ("", "## token_labels", "")
    yield from table(("key", "value", "meaning"), model_rows(TokenLabels))
    yield from ("", "## distillation", "")
    yield from table(("key", "value", "meaning"), model_rows(Distillation))


def space_page() -> Iterator[str]:
    """Yield the lines of the page about spaces."""
    yield "# Spaces"
    yield ""
    yield "A space is a YAML file; see [Writing a space](../guide/writing-a-space.md)."
    for title, model in (("The file", SpaceEntry), ("An entry of `stages`", StageEntry)):
        yield from ("", f"## {title}", "")
        rows = ((f"`{key}`", value, default(field)) for key, value, field in model_fields(model))
        yield from table(("key", "value", "default"), rows)
    yield from ("", "## Settings of mixers", "")
    yield "A setting without a default must be given."
    for kind, mixer in MIXER_KINDS.items():
        yield from ("", f"### {kind}", "", *paragraphs((mixer.__doc__ or "").split("\n\n")[0]), "")
        names = ", ".join(f"`{field.name}`" for field in fields(mixer))
        yield f"Settings: {names}." if names else "It has no settings."


def model_rows(model: type[BaseModel]) -> Iterator[tuple[str, str, str]]:
    """Yield key, type and description of a model's fields."""
    for key, value, field in model_fields(model):
        yield f"`{key}`", value, field.description or ""


def model_fields(model: type[BaseModel]) -> Iterator[tuple[str, str, Any]]:
    """Yield key, type in words, and pydantic's field."""
    schema = model.model_json_schema()["properties"]
    for key, field in model.model_fields.items():
        yield key, type_in_words(schema[key]), field


def type_in_words(schema: dict[str, Any]) -> str:
    """Describe a JSON schema in a few words."""
    if "anyOf" in schema:
        return " or ".join(type_in_words(part) for part in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "$ref" in schema:
        return "mapping"
    names = {
        "array": "list",
        "object": "mapping",
        "integer": "whole number",
        "string": "text",
        "boolean": "true or false",
    }
    words = names.get(schema.get("type", ""), schema.get("type", "any"))
    bounds = (("minimum", "at least"), ("exclusiveMinimum", "above"), ("maximum", "at most"))
    limits = [f"{word} {schema[key]:g}" for key, word in bounds if key in schema]
    if "exclusiveMaximum" in schema:
        limits.append(f"below {schema['exclusiveMaximum']:g}")
    return " ".join([words, ", ".join(limits)]).strip()


def default(field: Any) -> str:
    """Show a field's default."""
    return "required" if field.is_required() else f"`{field.default}`"


def paragraphs(text: str) -> list[str]:
    """Split a docstring into lines without indentation."""
    return [line.strip() for line in text.strip().splitlines()]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        cells = (cell.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;") for cell in row)
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
