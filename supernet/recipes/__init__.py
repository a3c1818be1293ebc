"""Recipes: everything that decides how a network is trained. No torch."""

from supernet.recipes.dense_recipe import (
    DenseRecipe,
    Photometric,
    Proposals,
    Regions,
    TrainImages,
    dense_in_shards,
    dump_dense_recipe,
    load_dense_recipe,
    with_length,
)
from supernet.recipes.recipe import (
    Distillation,
    Recipe,
    TokenLabels,
    dump_recipe,
    in_shards,
    load_recipe,
    with_epochs,
)

__all__ = [
    "DenseRecipe",
    "Distillation",
    "Photometric",
    "Proposals",
    "Recipe",
    "Regions",
    "TokenLabels",
    "TrainImages",
    "dense_in_shards",
    "dump_dense_recipe",
    "dump_recipe",
    "in_shards",
    "load_dense_recipe",
    "load_recipe",
    "with_epochs",
    "with_length",
]
