"""Kill a real run with a small budget again and again, and see that it ends with a result.

``python benchmarks/kills.py [--kills N] [--budget SECONDS] [--seed S] [--folder F]``

The run is ``search run`` on the digits, with Ray and all cores of this machine. A kill comes when a
random part of the budget is charged, or up to ten seconds after that: kill -9 of the driver alone,
as the kernel does when memory is short, or of all its processes, as when a machine stops. Each time
the run is resumed at once. In the end everything must be there: exit status 0, a front, and a
ledger within 1 % of the budget.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil

from search.plan import PHASES
from search.record.record import Record

ROOT = Path(__file__).parents[1]
# Ray's processes of a driver that was killed take a moment to find that out.
LIMIT_SECONDS = 1800.0


def command(*words: str) -> list[str]:
    """Return a command of the program."""
    return [sys.executable, "-m", "search", *words]


def start(folder: Path, log: Path, *words: str) -> subprocess.Popen[bytes]:
    """Start a driver whose words are written to a log."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with log.open("ab") as file:
        return subprocess.Popen(
            command("run", *words, "--out", str(folder)), env=environment, stdout=file, stderr=file
        )


def spent_of(folder: Path) -> float:
    """Return the device-seconds that are charged until now, 0 before there is a record."""
    with suppress(ValueError), Record.open(folder / "record.db", read_only=True) as record:
        return record.spent(PHASES)
    return 0.0


def wait_for(driver: subprocess.Popen[bytes], folder: Path, seconds: float) -> bool:
    """Wait until so much is charged; return False if the driver has ended before."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while driver.poll() is None:
        if spent_of(folder) >= seconds:
            return True
        if time.monotonic() > deadline:
            raise SystemExit(f"{seconds:.0f} device-seconds were not reached.")
        time.sleep(0.2)
    return False


def kill(driver: subprocess.Popen[bytes], *, everything: bool) -> None:
    """Kill -9 a driver, or it and all that it has started."""
    processes: list[Any] = [driver]
    if everything:
        processes += psutil.Process(driver.pid).children(recursive=True)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    driver.wait()


def main() -> int:
    """Print a line for each kill, and what the run ended with."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--budget", type=float, default=200.0, help="device-seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="of the run and its log; kept")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    base = options.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    base.mkdir(parents=True, exist_ok=True)
    folder, log = base / "run", base / "log.txt"
    points = sorted(rng.uniform(0, options.budget) for _ in range(options.kills))
    words: tuple[str, ...] = ("--budget", f"{options.budget:g}cpu-seconds")
    for number, point in enumerate(points, 1):
        driver = start(folder, log, *words)
        words = ("--resume",)
        if not wait_for(driver, folder, point):
            print(f"FAILED: ended with {driver.returncode} before kill {number}; see {log}")
            return 1
        time.sleep(rng.uniform(0, 10))
        everything = rng.random() < 0.5
        kill(driver, everything=everything)
        who = "all processes" if everything else "the driver"
        print(f"kill {number:2} of {who:13} at {spent_of(folder):6.1f} s", flush=True)
    status = start(folder, log, *words).wait()
    return report(folder, options.budget, status)


def report(folder: Path, budget: float, status: int) -> int:
    """Print what the run ended with; return 0 if that is as it must be."""
    share = spent_of(folder) / budget
    told = subprocess.run(
        command("pareto", str(folder), "--json"), cwd=ROOT, capture_output=True, check=False
    )
    front = json.loads(told.stdout) if told.returncode == 0 else []
    print(f"status {status}, {share:.1%} of the budget charged, {len(front)} networks on the front")
    return 0 if status == 0 and abs(share - 1) <= 0.01 and front else 1


if __name__ == "__main__":
    sys.exit(main())
