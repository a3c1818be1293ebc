"""Whether a recipe goes with what a network is to learn from: a teacher, label maps, no classes."""

from __future__ import annotations

from supernet.recipes import Recipe


def check_unlabelled(recipe: Recipe, *, given: bool, is_taught: bool) -> None:
    """Refuse images without classes where there is nothing to learn on them."""
    if not given:
        return
    if not is_taught:
        raise ValueError(
            "What is learned on images without classes is what a teacher says about them. Add "
            "--teacher, or leave --unlabelled out."
        )
    settings = recipe.distillation
    assert settings is not None  # `check_teacher` has seen to it.
    if not (settings.weight or settings.tokens or settings.features or settings.labels_from):
        raise ValueError(
            f"The teacher counts for nothing in {recipe.name}, so that there is nothing to learn "
            "on images without classes. Give its distillation a weight, or leave --unlabelled out."
        )


def check_teacher(recipe: Recipe, *, given: bool) -> None:
    """Refuse a teacher where a recipe does not say how to learn from one, or learns from maps."""
    if not given:
        return
    if recipe.distillation is None:
        raise ValueError(
            f"A teacher needs a recipe that says what its logits count for, and {recipe.name} has "
            "no distillation. Add e.g. distillation: {weight: 0.1, temperature: 3.0} to a copy."
        )
    if recipe.compile and (recipe.distillation.tokens or recipe.distillation.features):
        raise ValueError(
            f"{recipe.name} learns from what a network makes on the way, which hooks note, and "
            "compile leaves hooks out. Write compile: false, or tokens: 0 and features: 0."
        )
    if recipe.token_labels is not None:
        raise ValueError(
            f"{recipe.name} learns from a teacher's label maps already (token_labels). Leave the "
            "teacher out, or write token_labels: null."
        )


def check_token_labels(recipe: Recipe, *, given: bool) -> None:
    """Refuse label maps that a recipe has no use for, and a recipe that lacks them."""
    if (recipe.token_labels is None) == given:
        raise ValueError(
            "A recipe with token_labels needs the label maps of its images, and only such a one: "
            f"{recipe.name} has {'none' if recipe.token_labels is None else 'token_labels'}. Give "
            "the folder of the maps (--token-labels), or leave it out."
        )
