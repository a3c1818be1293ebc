"""Problems made of published tables, which are read where they lie and not part of the project."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from configs.files import read_object, reading

Matrix = NDArray[np.float64]

MACRO_SOURCE = (
    "The table is data/nas-bench-macro_cifar10.json of https://github.com/xiusu/NAS-Bench-Macro "
    "(Apache-2.0): all 6,561 networks of an 8-layer space, trained on CIFAR-10. Download it and "
    "pass its path: search bench --table nas-bench-macro_cifar10.json"
)
ACCEL_SOURCE = (
    "The table is condensed from https://github.com/afzalxo/Accel-NASBench (Apache-2.0): the "
    "columns arch (28 digits), val_top1 and a100_images_per_s. Pass its path: "
    "search bench --problem accel-nasbench --table accel-nasbench_imagenet.csv"
)
# Of each of 7 blocks: expansion, kernel, layers, squeeze-and-excitation.
ACCEL_DIGITS = (("1", "4", "6"), ("3", "5"), ("1", "2", "3"), ("0", "1")) * 7
TREES = 24


def read_macro(path: Path) -> tuple[dict[str, Matrix], dict[str, Matrix]]:
    """Read NAS-Bench-Macro: by network, mean error of three seeds and FLOPs; and of one seed.

    Raises:
        ValueError: If the file is missing or not that table.
    """
    table = read_object(path, "the table", remedy=MACRO_SOURCE)
    with reading(
        path, "the table", remedy=MACRO_SOURCE, errors=(LookupError, TypeError, AttributeError)
    ):
        entries = cast(dict[str, Any], table)
        mean = {
            key: np.array([100.0 - entry["mean_acc"], float(entry["flops"])])
            for key, entry in entries.items()
        }
        first = {
            key: np.array([100.0 - entry["test_acc"][0], float(entry["flops"])])
            for key, entry in entries.items()
        }
    if len(mean) != 3**8 or any(len(key) != 8 for key in mean):
        raise ValueError(f"{path} holds {len(mean)} networks, not 6,561. {MACRO_SOURCE}")
    return mean, first


def fit_accel(path: Path) -> Callable[[Sequence[str]], Matrix]:
    """Fit forests to Accel-NASBench: error on ImageNet and microseconds an image.

    Returns:
        What predicts the losses of networks, of shape (networks, 2), for the whole space.

    Raises:
        ValueError: If the file is missing or not that table.
    """
    from sklearn.ensemble import RandomForestRegressor

    errors = (LookupError, TypeError)
    with reading(path, "the table", remedy=ACCEL_SOURCE, errors=errors):
        with path.open(newline="", encoding="utf-8") as file:
            table = list(csv.DictReader(file))
        rows = _one_hot([entry["arch"] for entry in table])
        losses = np.array(
            [[100 - float(e["val_top1"]), 1e6 / float(e["a100_images_per_s"])] for e in table]
        )
        forests = [
            RandomForestRegressor(TREES, max_features=0.3, random_state=0).fit(rows, column)
            for column in losses.T
        ]

    def predict(networks: Sequence[str]) -> Matrix:
        rows = _one_hot(networks)
        return np.column_stack([forest.predict(rows) for forest in forests])

    return predict


def _one_hot(networks: Sequence[str]) -> NDArray[np.float32]:
    digits = np.array([list(network) for network in networks])
    columns = [digits[:, [place]] == list(options) for place, options in enumerate(ACCEL_DIGITS)]
    return np.concatenate(columns, axis=1).astype(np.float32)
