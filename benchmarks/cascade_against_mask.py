"""Is Cascade Mask R-CNN above Mask R-CNN on the nuclei, by AP75 of masks?

The same small backbone, images, steps and optimiser (`cells_instance`); the cascade has its three
stages, IoUs, weights and losses from `cascade_mask_rcnn_1x`, at the width of the small heads.
Both are judged once on the validation images. Killed at any moment, the same command goes on.

    python benchmarks/cascade_against_mask.py OUT --data ../shared/data/nuclei_det_seg.tar
    python benchmarks/cascade_against_mask.py OUT --table
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from search.retraining.out_folder import RESULT_FILE
from search.run_folder.targets import load_target
from search.transferring.network import TransferOptions, transfer
from supernet.data.dense import open_dense_data
from supernet.recipes.dense_recipe import DenseRecipe, load_dense_recipe, with_length

NETWORK = Path(__file__).parents[1] / "examples" / "backbones" / "cells_dw.json"
COLUMNS = ("ap_mask", "ap_mask50", "ap_mask75", "ap_box", "ap_box50", "ap_box75")


def recipes(steps: int) -> dict[str, DenseRecipe]:
    """Return Mask R-CNN and Cascade Mask R-CNN, alike in all else."""
    small, large = load_dense_recipe("cells_instance"), load_dense_recipe("cascade_mask_rcnn_1x")
    assert small.regions is not None
    assert large.regions is not None
    assert small.detection_shape is not None
    assert large.detection_shape is not None
    taken = ("stages", "box_loss", "box_weight")
    regions = small.regions.model_copy(update={n: getattr(large.regions, n) for n in taken})
    shape = small.detection_shape.model_copy(update={"box_convs": large.detection_shape.box_convs})
    cascade = small.model_copy(
        update={
            "name": "cells_cascade",
            "head": "cascade_mask_rcnn",
            "regions": regions,
            "detection_shape": shape,
        }
    )
    checked = DenseRecipe.model_validate(cascade.model_dump())
    return {
        "mask": with_length(small, steps=steps),
        "cascade": with_length(checked, steps=steps),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Train both, or print what there is."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args(arguments)
    chosen = recipes(given.steps)
    if not given.table:
        torch.set_num_threads(1)
        given.out.mkdir(parents=True, exist_ok=True)
        data = open_dense_data(given.data, "instance", unpack_to=given.out / "data")
        network = load_target(str(NETWORK))
        for name, recipe in chosen.items():
            transfer(network, data, recipe, TransferOptions(out=given.out / name, threads=1))
    print(f"| head | {' | '.join(COLUMNS)} |\n|---|{'---:|' * len(COLUMNS)}")
    for name in chosen:
        path = given.out / name / RESULT_FILE
        values = json.loads(path.read_text())["values"] if path.is_file() else {}
        cells = [f"{values[c]:.1f}" if c in values else "not there" for c in COLUMNS]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
