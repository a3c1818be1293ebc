"""Training the weights that all architectures of a space share."""

from supernet.shared_weights.checkpoint import (
    check_supernet,
    load_shared,
    load_supernet,
    save_supernet,
)
from supernet.shared_weights.group import most_devices, recipe_of_group
from supernet.shared_weights.shared_training import Progress, SharedTraining, shared_optimizer
from supernet.shared_weights.strategies import check_strategy
from supernet.shared_weights.trainer import (
    SupernetTrainer,
    check_shared_lesson,
    check_shared_recipe,
)
from supernet.shared_weights.usage import UsedWeights

__all__ = [
    "Progress",
    "SharedTraining",
    "SupernetTrainer",
    "UsedWeights",
    "check_shared_lesson",
    "check_shared_recipe",
    "check_strategy",
    "check_supernet",
    "load_shared",
    "load_supernet",
    "most_devices",
    "recipe_of_group",
    "save_supernet",
    "shared_optimizer",
]
