"""Processor seconds of the commands that should answer at once, each in a process of its own.

Run with ``python benchmarks/bench_commands.py``. Prints the median and the largest of some runs,
and which of the heavy libraries a command loads. The run that is looked at is that of the tests.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.tiny_run import write_run

ROOT = Path(__file__).parents[1]
HEAVY = ("matplotlib", "optuna", "pandas", "plotly", "ray", "sklearn", "timm", "torch")
COMMANDS = (
    "status run",
    "pareto run",
    "pareto run --json",
    "pareto run --csv front.csv",
    "select run",
    "compare elsa_swin_t swin_t",
    "show elsa_swin_t",
    "show run:1",
    "presets",
    "spaces",
    "recipes",
)
# What a process says last: the heavy libraries that it loaded.
_SCRIPT = (
    "import atexit, json, sys\n"
    f"atexit.register(lambda: print(json.dumps([n for n in {HEAVY} if n in sys.modules]), "
    "file=sys.stderr))\n"
    "from search.cli.app import main\nmain()"
)


def main() -> None:
    """Print a line for each command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    print(f"Processor seconds, {repeats} runs each")
    print(f"{'command':28} {'median':>7} {'largest':>8}  heavy libraries")
    with tempfile.TemporaryDirectory() as folder:
        write_run(Path(folder) / "run")
        for command in COMMANDS:
            measured = [_run(command.split(), Path(folder)) for _ in range(repeats)]
            seconds = [taken for taken, _ in measured]
            median, largest = statistics.median(seconds), max(seconds)
            heavy = ", ".join(measured[0][1]) or "none"
            print(f"{command:28} {median:7.2f} {largest:8.2f}  {heavy}")


def _run(words: list[str], folder: Path) -> tuple[float, list[str]]:
    """Run a command and return its processor seconds and the heavy libraries that it loaded."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, *words],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, json.loads(done.stderr.splitlines()[-1])


if __name__ == "__main__":
    main()
