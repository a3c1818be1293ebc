"""The optimiser and the learning-rate schedule of a recipe, both timm's."""

from __future__ import annotations

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from supernet.recipe import Recipe


def build_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Build the recipe's optimiser; biases and 1-D parameters have no weight decay.

    A bias is what is named so (``proj.bias``, ``table_bias``): shared biases have a row for each
    head, and are no less biases for having two dimensions.
    """
    biases = [name for name, _ in network.named_parameters() if name.endswith("bias")]
    return create_optimizer_v2(
        param_groups_weight_decay(network, recipe.weight_decay, no_weight_decay_list=biases),
        opt=recipe.optimizer,
        lr=recipe.peak_lr(recipe.batch_size),
        betas=recipe.betas,
    )


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
