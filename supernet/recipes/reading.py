"""How the file of a recipe is read: whole, checked, and with the size that was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from configs import config_path
from configs.reading import read_yaml
from searchspace.spec_schema import suggest

if TYPE_CHECKING:
    from supernet.recipes.dense_recipe import DenseRecipe
    from supernet.recipes.recipe import Recipe

AnyRecipe = TypeVar("AnyRecipe", "Recipe", "DenseRecipe")


def read_recipe(model: type[AnyRecipe], folder: str, name_or_path: str) -> AnyRecipe:
    """Read a shipped recipe by its name, or a user's own file by its path.

    Args:
        model: What the file is of.
        folder: Of the shipped files, below ``configs``.
        name_or_path: ``swin_300e``, ``mine.yaml``, or either with a size: ``swin_300e:base``.

    Raises:
        ValueError: If there is no such recipe or size, or the file is not a complete and valid one.
    """
    plain, colon, size = name_or_path.rpartition(":")
    path = config_path(folder, plain if colon else name_or_path)
    values = _read_mapping(path)
    try:
        recipe = model.model_validate(values)
        sized = {known: _of_size(model, recipe, known) for known in recipe.sizes}
    except ValidationError as error:
        raise ValueError(f"{path}: {_explain(error, model)}") from error
    if colon and size not in sized:
        raise ValueError(
            f"The recipe {plain} has no size {size!r}; its sizes: {', '.join(sized) or 'none'}. "
            "Choose one of them, or leave it out."
        )
    return sized[size] if colon else recipe


def write_recipe(recipe: BaseModel) -> str:
    """Write a recipe as the text of a file that `read_recipe` reads."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def _of_size(model: type[AnyRecipe], recipe: AnyRecipe, size: str) -> AnyRecipe:
    """Return what a size changes put into the recipe, which then has sizes no more."""
    own = {"name": f"{recipe.name}-{size}", "sizes": {}}
    return model.model_validate({**recipe.model_dump(), **recipe.sizes[size], **own})


def _read_mapping(path: Path) -> Mapping[object, object]:
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise ValueError(
            f"{path}: a recipe is a mapping of settings, got {data!r:.60}. "
            "Start from a copy of a shipped recipe."
        )
    return data


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Say the first thing that pydantic found in our words."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    match first["type"]:
        case "extra_forbidden":
            return f"{place}: unknown key {place!r}. {suggest(place, model.model_fields)}"
        case "missing" if isinstance(first["loc"][-1], str):
            return (
                f"{place}: the key {place!r} is missing, and a recipe is complete. "
                "Add it; the shipped recipes have examples."
            )
        case "value_error":
            return str(first["ctx"]["error"])
        case _:
            return f"{place}: {first['msg']}, got {first['input']!r}. Correct the value."
