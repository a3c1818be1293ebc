"""Which strategy finds the better front with the same budget? Runs for hours; resumable.

    nohup python benchmarks/compare_strategies.py --data cifar10_25k.tar.xz > study.log 2>&1 &
    python benchmarks/compare_strategies.py --table       # of what is there
    python benchmarks/compare_strategies.py --table --csv CSV   # of a finished study
    python benchmarks/compare_strategies.py --first-seed 2 --seeds 3 --csv CSV ...   # adds seed 2

For every seed each arm has the same budget, images, space and objectives (top1 and macs):

- ``supernet``: ``search run`` with the program's defaults; shared weights judge proposals.
- ``proxy``: ``search run --strategy proxy``; every network is trained alone.
- ``nsga2``, ``tpe``: what one would write in an afternoon (``benchmarks/afternoon.py``): Ray Tune
  with Optuna's samplers as they are, each trial trains alone for ``--trial-epochs``.
- ``random``: the same script with random networks.
- ``single``: no search, and no budget: windows, neighbourhood attention, inhomogeneous and
  depth-wise convolution (3, 5, 7) and ELSA everywhere, as far as the space has them, at three sizes
  from its smallest stages to its largest. All of them are retrained, which no other arm is given.

The front of a run is what ``search pareto`` shows; that of the script is among its finished trials.
At most ``--members`` of a front, evenly by their rank in MACs and with both ends, are retrained
from fresh weights with the same recipe and epochs on train and search together; the test split is
read once for each. The seed of the retraining is that of the run: arms are paired by it. A network
that several arms of a seed have is retrained once for it.

A front's hypervolume is that of its retrained members in the box between (0 %, the cheapest network
of the space) and (the error of chance, the dearest), in percent: once over MACs, once over their
logarithm, in which twice the cost is as far for small networks as for large ones. A run that judged
nothing within its budget has 0. Intervals are 95 % intervals of the mean over seeds by Student's t;
differences are paired by seed. Other columns are in ``runs.csv``: device-seconds until the front of
the run's own judgements was within 1 % of its final hypervolume, and the horizon's tau.

Killed and started again with the same options, it goes on. Seeds are finished one after the other.
A command that is under way when only this script is killed (kill -9) goes on alone, and the next
start is refused until it has ended.

A study may be spread over days and machines: with ``--csv`` and ``--first-seed`` further seeds are
added to a table that is there. The ``study.json`` beside it says with which settings; others are
refused.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.strategies.rows import read_rows
from benchmarks.strategies.study import RECIPE, SPACE, Study
from benchmarks.strategies.tables import tables
from benchmarks.strategies.work import run_study
from search.budget import count_cores
from searchspace.spec_file import load_space


def main(words: list[str] | None = None) -> None:
    """Run or continue the study, or print the table of what is there."""
    parser = _parser()
    arguments = parser.parse_args(words)
    path = arguments.csv or arguments.out / "strategies.csv"
    if not arguments.table:
        if arguments.data is None:
            parser.error("a study needs the images: add --data cifar10_25k.tar.xz")
        try:
            study = _study(arguments)
            _prepare(study, path)
        except ValueError as error:
            parser.error(str(error))
        # A stop from outside ends the command that is under way as Ctrl-C does.
        signal.signal(signal.SIGTERM, _stop)
        run_study(study, path)
    if not path.is_file():
        parser.error(f"there are no results at {path} yet; name another --out or --csv")
    print(tables(read_rows(path)))


def _stop(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="CIFAR-10 as a folder or a tar, e.g. cifar10_25k.tar.xz")
    parser.add_argument("--budget", default="60cpu-minutes", help="of each run")
    parser.add_argument("--space", default=SPACE, help="that is searched")
    parser.add_argument("--recipe", default=RECIPE, help="of the retrainings")
    parser.add_argument("--img-size", type=int, help="side in pixels; default: the space's")
    parser.add_argument("--trial-epochs", type=int, default=4, help="of the afternoon's trials")
    parser.add_argument("--sizes", type=int, default=3, help="of each single mixer")
    parser.add_argument("--epochs", type=int, default=20, help="of each retraining")
    parser.add_argument("--members", type=int, default=4, help="the most retrained of a front")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0, help="rows of others are kept")
    parser.add_argument("--cores", type=int, help="to use; default: all that this process may use")
    parser.add_argument("--out", type=Path, default=Path("runs/strategies"))
    parser.add_argument("--csv", type=Path, help="of the results; default: strategies.csv in --out")
    parser.add_argument("--table", action="store_true", help="only print the table of --csv")
    return parser


def _study(arguments: argparse.Namespace) -> Study:
    names = (
        *("data", "space", "recipe", "budget", "img_size", "epochs", "trial_epochs"),
        *("members", "sizes", "seeds", "first_seed", "out"),
    )
    values: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    if values["img_size"] is None:
        values["img_size"] = load_space(values["space"]).img_size
    cores = count_cores() if arguments.cores is None else arguments.cores
    return Study(**values, cores=cores)


def _prepare(study: Study, results: Path) -> None:
    """Take the cores, and check that a study that goes on is the same one."""
    allowed = sorted(os.sched_getaffinity(0))
    if study.cores > len(allowed):
        raise ValueError(
            f"This process may use {len(allowed)} cores, got --cores {study.cores}. Ask for fewer."
        )
    os.sched_setaffinity(0, allowed[: study.cores])
    # Seeds may be added to a study that has begun.
    study.prepare()
    fixed = {**asdict(study), "data": Path(study.data).name}
    free = ("out", "seeds", "first_seed")
    fixed = {name: value for name, value in fixed.items() if name not in free}
    about = {
        "settings": fixed,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {study.cores} used",
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }
    # The runs and the table may be of different days: neither goes on with other settings.
    places = [folder / "study.json" for folder in dict.fromkeys((study.out, results.parent))]
    for path in places:
        if path.is_file() and json.loads(path.read_text())["settings"] != fixed:
            raise ValueError(
                f"{path.parent} holds a study with other settings, see {path}. Choose another "
                "--out or --csv."
            )
    if results.is_file() and not places[-1].is_file():
        raise ValueError(
            f"No {places[-1]} says with which settings {results} was made. Choose another --csv."
        )
    for path in places:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name("study.json.partial")
            partial.write_text(json.dumps(about, indent=2) + "\n")
            partial.replace(path)


if __name__ == "__main__":
    main()
