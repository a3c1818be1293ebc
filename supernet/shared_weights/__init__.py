"""Training the weights that all architectures of a space share."""

from supernet.shared_weights.calibration import calibration_images, recalibrate, recalibrated
from supernet.shared_weights.checkpoint import (
    check_supernet,
    load_shared,
    load_supernet,
    load_training,
    save_supernet,
)
from supernet.shared_weights.group import most_devices, recipe_of_group
from supernet.shared_weights.shared_adamw import SharedAdamW
from supernet.shared_weights.strategies import check_strategy, strategy_named
from supernet.shared_weights.trainer import (
    MAX_BAD_STEPS,
    Progress,
    Snapshot,
    SupernetTrainer,
    apply_gradients,
    check_shared_lesson,
    shared_optimizer,
)
from supernet.shared_weights.usage import UsedWeights

__all__ = [
    "MAX_BAD_STEPS",
    "Progress",
    "SharedAdamW",
    "Snapshot",
    "SupernetTrainer",
    "UsedWeights",
    "apply_gradients",
    "calibration_images",
    "check_shared_lesson",
    "check_strategy",
    "check_supernet",
    "load_shared",
    "load_supernet",
    "load_training",
    "most_devices",
    "recalibrate",
    "recalibrated",
    "recipe_of_group",
    "save_supernet",
    "shared_optimizer",
    "strategy_named",
]
