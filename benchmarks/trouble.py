"""Make trouble for runs and retrainings, by seed, and see what becomes of them.

``python benchmarks/trouble.py [--seeds N] [--first S] [--only KIND ...]``

Each seed draws a kind of trouble (`benchmarks/disturbances/kinds.py`), a run (not begun, half done,
done, with a retraining half done or done) and a place, and goes on until the run is done. The
commands are those of a user; devices are local and the clock runs ahead
(`benchmarks/faults/one_process.py`). A seed ends as ``done`` (the trouble was not to be seen),
``resumed`` (the next command went on to the end) or ``message`` (status 2 and one message). It
fails where something outside the run's folder has changed, a number is not that of the undisturbed
run, the budget is passed, a command shows a traceback or hangs.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter as Tally
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "COLUMNS": "160"}

from benchmarks.disturbances.kinds import KINDS
from benchmarks.disturbances.scene import FailedError, Scene
from benchmarks.disturbances.undisturbed import Known, prepare, state_of
from benchmarks.faults import one_process


def main() -> int:
    """Make the trouble of all seeds; print a line for each, and a table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first one")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--keep", type=Path, help="keep the folders of failed seeds here")
    arguments = parser.parse_args()
    one_process.install_time()
    _import_all()
    base = Path(tempfile.mkdtemp(prefix="trouble-")) if arguments.keep is None else arguments.keep
    (base / "known").mkdir(parents=True)
    known = prepare(base / "known")
    print(f"An undisturbed run has {known.events} places for trouble.", flush=True)
    table: Tally[tuple[str, str]] = Tally()
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        kind, how, told = one_seed(seed, arguments.only, known, base)
        table[kind, how] += 1
        print(f"{seed:4} {kind:14} {how:9} {told}", flush=True)
    if arguments.keep is None:
        shutil.rmtree(base)
    ends = ("done", "resumed", "message", "left out", "FAILED")
    print(f"\n{'':14}" + "".join(f"{end:>10}" for end in ends))
    for kind in arguments.only:
        print(f"{kind:14}" + "".join(f"{table[kind, end]:>10}" for end in ends))
    return 1 if any(table[kind, "FAILED"] for kind in arguments.only) else 0


def one_seed(seed: int, kinds: list[str], known: Known, base: Path) -> tuple[str, str, str]:
    """Make one seed's trouble; return its kind, how it ended and what was told."""
    rng = random.Random(f"trouble/{seed}")
    kind = rng.choice(kinds)
    root = base / f"seed-{seed}"
    root.mkdir()
    for name in ("images", "documents"):
        shutil.copytree(base / "known" / name, root / name)
    shutil.copy(base / "known" / "tiny.yaml", root)
    scene = Scene(root, rng)
    before = {name: state_of(root / name) for name in ("images", "documents")}
    try:
        how = KINDS[kind](scene, known)
        for name, state in before.items():
            if state_of(root / name) != state:
                raise FailedError(f"{name} has changed")
        if strangers := {path.name for path in root.iterdir()} - {
            *before,
            "run",
            "disk",
            "tiny.yaml",
        }:
            raise FailedError(f"left outside of the run: {sorted(strangers)}")
    except FailedError as error:
        return kind, "FAILED", f"{', '.join(scene.told)}: {error}"
    except NotImplementedError as error:
        return kind, "left out", str(error)
    except Exception:
        return kind, "FAILED", f"{', '.join(scene.told)}: {traceback.format_exc()[-800:]}"
    shutil.rmtree(root)
    return kind, how, ", ".join(scene.told)


def _import_all() -> None:
    """Have in this process what every command needs, so that a child starts in no time."""
    for name in (
        *("search.run", "search.report.closing", "search.retraining.queue", "tests.local_run"),
        *("search.cli.front_commands", "search.phases.planning", "search.sampling.guided_sampler"),
        *("matplotlib.figure", "plotly.graph_objects", "optuna.storages._rdb.storage", "ray.tune"),
        *("torch.utils.tensorboard", "search.front.query", "search.terminal.listings"),
    ):
        importlib.import_module(name)


if __name__ == "__main__":
    sys.exit(main())
