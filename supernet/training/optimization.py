"""The optimiser and the learning-rate schedule of a recipe, both timm's."""

from __future__ import annotations

from fnmatch import fnmatchcase

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from supernet.recipes import Recipe


def build_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Build the recipe's optimiser, without weight decay on what `undecayed` names."""
    return create_optimizer_v2(
        param_groups_weight_decay(
            network, recipe.weight_decay, no_weight_decay_list=undecayed(network, recipe)
        ),
        opt=recipe.optimizer,
        lr=recipe.peak_lr(recipe.batch_size),
        betas=recipe.betas,
        eps=recipe.eps,
    )


def undecayed(network: nn.Module, recipe: Recipe) -> list[str]:
    """Name the parameters without weight decay: 1-D ones, biases, and what the recipe adds.

    A bias is what is named so (``proj.bias``, ``logit_bias``): shared biases have a row for each
    tap or head, and are no less biases for having two dimensions. ``table_bias``, the table of
    relative positions, is none: papers differ on it, so recipes name it or not.
    """
    return [
        name
        for name, parameter in network.named_parameters()
        if parameter.ndim <= 1
        or (name.endswith("bias") and not name.endswith("table_bias"))
        or any(fnmatchcase(name, pattern) for pattern in recipe.no_weight_decay)
    ]


def build_scheduler(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps_in_epoch: int
) -> Scheduler:
    """Build the recipe's cosine with warm-up; it sets the first step's learning rate at once."""
    factor = recipe.lr_factor(recipe.batch_size)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=recipe.epochs,
        cooldown_epochs=recipe.cooldown_epochs,
        # timm computes with fractions as well, though it says int.
        warmup_epochs=recipe.warmup_epochs,  # type: ignore[arg-type]
        warmup_lr=recipe.warmup_lr * factor,
        min_lr=recipe.min_lr * factor,
        step_on_epochs=recipe.schedule == "epoch",
        updates_per_epoch=steps_in_epoch,
    )
    return scheduler
