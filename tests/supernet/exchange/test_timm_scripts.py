"""timm's own train.py and validate.py, from its repository, on networks of ours.

timm's package has no scripts: TIMM_REPOSITORY names a checkout of its repository.
"""

from __future__ import annotations

import csv
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from searchspace.spec_file import load_space

REPOSITORY = os.environ.get("TIMM_REPOSITORY", "")
LINE = re.compile(r'python -c "(import supernet, runpy; [^"]+)"')
GUIDE = Path(__file__).parents[3] / "docs" / "guide" / "retraining.md"
OPTIONS = ("--num-classes", 2, "--workers", 0, "--device", "cpu", "--batch-size", 4)


def images(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        for name in ("ant", "bee"):
            (folder / split / name).mkdir(parents=True)
            for index in range(6):
                pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return folder


def found(folder: Path) -> tuple[str, ...]:
    architecture = load_space("digits").replace(num_classes=2).sample(random.Random(0))
    (folder / "architecture.json").write_text(json.dumps(architecture.to_dict()))
    return ("--model", "mixer_search", "--model-kwargs", "architecture=architecture.json")


def in_guide(script: str) -> str:
    """Return what the guide tells python to run for one of timm's scripts."""
    lines = [line for line in LINE.findall(GUIDE.read_text()) if f"'{script}'" in line]
    assert len(lines) == 1, script
    return str(lines[0])


def call(script: str, folder: Path, *options: object) -> None:
    line = in_guide(script).replace(f"'{script}'", repr(str(Path(REPOSITORY).resolve() / script)))
    command = [sys.executable, "-c", line, *map(str, (*options, *OPTIONS))]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(
    not (Path(REPOSITORY) / "train.py").is_file() or not REPOSITORY,
    reason="TIMM_REPOSITORY does not name a checkout of timm's repository",
)
@pytest.mark.parametrize("is_found", [True, False], ids=["a found network", "a preset"])
def test_timms_scripts_train_and_evaluate_by_the_guides_lines(
    is_found: bool, tmp_path: Path
) -> None:
    data, size = images(tmp_path / "images"), ("--img-size", 32)
    model = found(tmp_path) if is_found else ("--model", "elsa_swin_t")
    options = ("--data-dir", data, "--epochs", 1, "--output", "out", "--experiment", "one", *size)
    call("train.py", tmp_path, *model, *options)
    trained = tmp_path / "out" / "one"
    with (trained / "summary.csv").open() as file:
        (row,) = csv.DictReader(file)
    weights = ("--checkpoint", trained / "last.pth.tar", "--results-file", "result.csv")
    call("validate.py", tmp_path, *model, "--data-dir", data / "validation", *weights, *size)
    with (tmp_path / "result.csv").open() as file:
        (result,) = csv.DictReader(file)
    assert float(result["top1"]) == pytest.approx(float(row["eval_top1"]), abs=0.01)


def test_the_guide_has_one_line_for_each_script() -> None:
    for script in ("train.py", "validate.py"):
        assert in_guide(script).startswith("import supernet")
