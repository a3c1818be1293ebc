"""The maker of trouble works on today's tree; its 200 seeds are run by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(900)
def test_trouble_can_be_made_and_comes_to_a_good_end() -> None:
    # A process of its own: it replaces the clocks and the devices before it imports the program.
    # The undisturbed runs come first, so a method that its devices lack is noticed.
    command = [sys.executable, "benchmarks/trouble.py", "--seeds", "1", "--only", "links"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout.partition("\n\n")[0]
    assert " links " in done.stdout
