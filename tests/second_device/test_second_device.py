"""Nothing that a GPU will run lies half on the processor: shown on a device that is no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.second_device.backend import build

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(1200)
def test_what_a_gpu_runs_runs_on_a_second_device(tmp_path: Path) -> None:
    try:
        library = build(tmp_path)
    except LookupError as error:
        pytest.skip(str(error))
    script = Path(__file__).with_name("on_it.py")
    command = [sys.executable, "-m", "pytest", str(script), "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-p", "tests.search.workers.conftest", "-p", "no:xdist"],
        cwd=ROOT,
        env=os.environ | {"SECOND_DEVICE": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
