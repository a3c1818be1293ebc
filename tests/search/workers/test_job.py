"""What a device is given to work in: precision, as the device has it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from search.run_folder.files import DATA
from search.run_folder.settings import RunSettings
from search.workers.job import Job, make_job, set_up_process
from supernet.data import prepare_data
from supernet.recipes.recipe import dump_recipe, load_recipe


def job(folder: Path, budget: str, recipe: str) -> Job:
    settings = RunSettings(
        data="digits", budget=budget, supernet_recipe=recipe, trial_recipe="quick"
    )
    return make_job(settings, folder, prepare_data("digits", img_size=32, folder=folder / DATA))


def test_a_gpu_works_in_bfloat16_and_a_core_in_float32(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(dump_recipe(load_recipe("supernet")))
    for budget, expected in (("1gpu-hour", "bf16"), ("1cpu-hour", "none")):
        shipped = job(tmp_path, budget, "supernet")
        found = (shipped.supernet_recipe.amp, shipped.trial_recipe.amp, shipped.eval_amp)
        assert found == (expected,) * 3
        # A file says what its owner wants.
        assert job(tmp_path, budget, str(own)).supernet_recipe.amp == "none"


def test_float32_products_take_the_matrix_units_of_a_gpu_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", wanted.append)
    set_up_process(job(tmp_path, "1cpu-hour", "supernet"), 1)
    assert wanted == []
    set_up_process(job(tmp_path, "1gpu-hour", "supernet"), 1)
    assert wanted == ["high"]
