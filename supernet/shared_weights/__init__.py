"""Training the weights that all architectures of a space share."""

from supernet.shared_weights.calibration import calibration_images, recalibrate, recalibrated
from supernet.shared_weights.checkpoint import check_supernet, load_supernet
from supernet.shared_weights.group import most_devices, recipe_of_group
from supernet.shared_weights.strategies import check_strategy
from supernet.shared_weights.trainer import Progress, SupernetTrainer

__all__ = [
    "Progress",
    "SupernetTrainer",
    "calibration_images",
    "check_strategy",
    "check_supernet",
    "load_supernet",
    "most_devices",
    "recalibrate",
    "recalibrated",
    "recipe_of_group",
]
