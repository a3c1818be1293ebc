"""Commands that only look at what is there answer at once: they load no heavy library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_run import write_run

ROOT = Path(__file__).parents[3]
# Each takes from a tenth of a second to some seconds to import.
HEAVY = (
    "PIL",
    "matplotlib",
    "optuna",
    "pandas",
    "plotly",
    "psycopg",
    "ray",
    "scipy.stats",
    "sklearn",
    "timm",
    "torch",
    "torchvision",
)
# The front's chances are integrals of beta distributions, so scipy.special is needed for these.
WITH_CHANCES = {"pareto", "select"}
# The listings take at most half a second; what a run is read with takes as long.
LISTINGS = {"presets", "spaces", "recipes", "--help"}
COMMANDS = (
    "status run",
    "pareto run",
    "pareto run --near --sort sure",
    "pareto run --json",
    "pareto run --csv front.csv",
    "select run",
    "select run --json",
    "select run --args",
    "compare elsa_swin_t swin_t",
    "compare run:3 run:7 --json",
    "show elsa_swin_t",
    "show run:1 --json",
    "show network.json",
    "presets",
    "spaces",
    "recipes",
    "--help",
    "run --help",
)
SCRIPT = """
import atexit, json, sys
def tell():
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
atexit.register(tell)
from search.cli.app import main
main()
"""


def run_in_a_process(words: list[str], folder: Path) -> set[str]:
    """Run a command and return the names of the modules that its process loaded."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("light")
    write_run(folder / "run")
    shown = subprocess.run(
        [sys.executable, "-m", "search", "show", "swin_t", "--json"],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=True,
    )
    (folder / "network.json").write_bytes(shown.stdout)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_looks_loads_no_heavy_library(command: str, folder: Path) -> None:
    words = command.split()

    loaded = run_in_a_process(words, folder)

    assert loaded.isdisjoint(HEAVY)
    assert words[0] in WITH_CHANCES or "scipy" not in loaded
    assert command not in LISTINGS or loaded.isdisjoint({"numpy", "search.run_folder"})


def test_the_files_of_a_front_are_written_without_them(folder: Path) -> None:
    run_in_a_process(["pareto", "run", "--csv", "front.csv"], folder)

    assert (folder / "front.csv").read_text(encoding="utf-8").startswith("id,")
