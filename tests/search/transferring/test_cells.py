"""Real images, the shipped recipes: minutes of training that must be worth something."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from search.run_folder.targets import load_target
from search.transferring.network import TransferOptions, transfer
from supernet.data.dense import open_dense_data
from supernet.recipes.dense_recipe import load_dense_recipe

ROOT = Path(__file__).parents[3]
DATA = ROOT.parent / "shared" / "data"


def reached(tmp_path: Path, network: str, recipe: str, data: str) -> dict[str, float]:
    if not (DATA / data).is_file():
        pytest.skip("the real images (../shared/data) are not on this machine")
    chosen = load_dense_recipe(recipe)
    found = open_dense_data(str(DATA / data), chosen.task, unpack_to=tmp_path)
    target = load_target(str(ROOT / "examples" / "backbones" / f"{network}.json"))
    threads = torch.get_num_threads()
    options = TransferOptions(out=tmp_path / "out", threads=1)
    result = transfer(target, found, chosen, options)
    torch.set_num_threads(threads)
    assert result is not None
    return result.measured.to_json()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_nuclei_are_told_from_the_background(tmp_path: Path) -> None:
    values = reached(tmp_path, "cells_window", "cells_semantic", "nuclei_det_seg.tar")
    assert values["miou"] >= 60


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("network", ["cells_elsa", "cells_dw"])
def test_blood_cells_are_found(tmp_path: Path, network: str) -> None:
    values = reached(tmp_path, network, "cells_detection", "bccd_det.tar")
    assert values["ap_box50"] >= 55


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_masks_of_nuclei_are_found(tmp_path: Path) -> None:
    values = reached(tmp_path, "cells_dw", "cells_instance", "nuclei_det_seg.tar")
    assert values["ap_mask50"] >= 40
