"""Lists of what comes with the tool: presets, spaces, recipes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import yaml
from rich.table import Table

from configs import config_names, config_path
from search.terminal.tables import format_count
from searchspace.cost import count
from searchspace.presets import PRESETS, preset, preset_about


def presets_table() -> Table:
    """List the presets with their parameters and MACs."""
    rows = []
    for name in PRESETS:
        cost = count(preset(name))
        rows.append((name, format_count(cost.params), format_count(cost.macs), preset_about(name)))
    return _table("Presets", ("name", "params", "MACs", "about"), rows)


def spaces_table() -> Table:
    """List the search spaces with their sizes."""
    from searchspace.spec_file import load_space  # its checks take long to load

    rows = []
    for name in config_names("spaces"):
        space = load_space(name)
        rows.append((name, str(space.img_size), f"{space.size():.2g}", space.about))
    return _table("Search spaces", ("name", "pixels", "networks", "about"), rows)


def recipes_table() -> Table:
    """List the recipes; the shipped files are sound, so their fields need no check by timm."""
    rows = []
    # libyaml, where it is there, reads ours ten times as fast; others' files are bounded.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for name in config_names("recipes"):
        text = config_path("recipes", name).read_text(encoding="utf-8")
        recipe = cast(Mapping[str, Any], yaml.load(text, Loader=loader))
        epochs = recipe["epochs"] + recipe["cooldown_epochs"]
        rows.append((name, str(epochs), str(recipe["about"])))
    for name in config_names("recipes/dense"):
        text = config_path("recipes/dense", name).read_text(encoding="utf-8")
        dense = cast(Mapping[str, object], yaml.load(text, Loader=loader))
        length = str(dense["epochs"] or f"{dense['steps']} steps")
        rows.append((name, length, f"{dense['about']} (--task {dense['task']})"))
    return _table("Recipes", ("name", "epochs", "about"), rows)


def _table(title: str, columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
