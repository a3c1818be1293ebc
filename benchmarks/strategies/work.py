"""The work of a study: the searches of its arms and the retrainings, what is left of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

from benchmarks.strategies.found import is_begun, is_done, to_retrain
from benchmarks.strategies.rows import write_results
from benchmarks.strategies.study import AFTERNOON, ARMS, SINGLE, Member, Study
from search.retraining.network import RetrainOptions, retrain
from searchspace.architecture import Architecture, describe
from supernet.data import open_data
from supernet.recipes import load_recipe, with_epochs

ROOT = Path(__file__).parents[2]


def run_study(study: Study, path: Path) -> None:
    """Do what is left to do, one seed after the other; write the results after every command."""
    for seed in study.here():
        for arm in ARMS:
            _search(study, arm, seed)
            write_results(study, path)
        for _ in _retrain(study, to_retrain(study, seed), seed):
            write_results(study, path)


def _search(study: Study, arm: str, seed: int) -> None:
    """Make a run, or go on with it, unless it is done."""
    folder = study.folder(arm, seed)
    if arm == SINGLE or is_done(folder, arm):
        return
    if arm not in AFTERNOON and is_begun(folder):
        _command("run", "--resume", "--out", folder)
        return
    # What was left before the record was complete, e.g. while images were decoded; a script of an
    # afternoon cannot go on.
    shutil.rmtree(folder, ignore_errors=True)
    what: tuple[str | int, ...] = ("--data", study.data, "--img-size", study.img_size)
    what += ("--space", study.space, "--seed", seed, "--budget", study.budget)
    if arm in AFTERNOON:
        how = ("--sampler", arm, "--epochs", study.trial_epochs, "--cores", study.cores)
        _command("afternoon", *how, *what, "--out", folder)
    else:
        _command("run", *ARMS[arm], *what, "--recipe", study.recipe, "--out", folder)


def _command(*words: object) -> None:
    """Run a command of the program that lies beside this script, with all that it prints."""
    texts = [str(word) for word in words]
    script = ROOT / "benchmarks" / "afternoon.py"
    is_script = texts[0] == "afternoon"
    # A budget is time, so how busy the machine was belongs to the log.
    print(
        f"{datetime.now(UTC):%H:%M:%S}, load {os.getloadavg()[0]:.1f} $ search", *texts, flush=True
    )
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    program = [str(script), *texts[1:]] if is_script else ["-m", "search", *texts]
    command = [sys.executable, *program]
    with subprocess.Popen(command, env=environment) as process:
        try:
            status = process.wait()
        except BaseException:
            process.terminate()
            raise
    if status:
        what = f"search {' '.join(texts)}"
        raise SystemExit(f"{what} ended with status {status}. Started again, the study goes on.")


def _retrain(study: Study, members: Sequence[Member], seed: int) -> Iterator[None]:
    """Retrain networks with a seed, a process on each core; yield whenever one is done."""
    tasks = [(study, member.architecture, seed) for member in members]
    print(f"{datetime.now(UTC):%H:%M:%S}: {len(tasks)} networks are retrained", flush=True)
    with get_context("spawn").Pool(study.cores) as pool:
        for said in pool.imap_unordered(_retrain_here, tasks):
            load = os.getloadavg()[0]
            print(f"{datetime.now(UTC):%H:%M:%S}, load {load:.1f}: {said}", flush=True)
            yield


def _retrain_here(task: tuple[Study, Architecture, int]) -> str:
    study, architecture, seed = task
    out = study.retrained(architecture.key, seed)
    recipe = with_epochs(load_recipe(study.recipe), study.epochs)
    options = RetrainOptions(out=out, seed=seed, threads=1)
    result = retrain(architecture, open_data(study.images), recipe, options)
    what = f"{architecture.key} with seed {seed}, {describe(architecture)}"
    return f"{what}: {result.accuracy.top1:.2f} % after {result.seconds:.0f} s"
