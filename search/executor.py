"""The cluster: Ray actors for the supernet and for judging, Ray Tune for trials that train.

Ray holds no truth of the run. Trials come from a `TrialSource` and their results go back to it; if
the driver dies, a new one starts a new Tuner over the same record. This is the only module that
imports Ray, and nothing imports it before a run starts.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # search.run has its own
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray import tune
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.tune.search import Searcher

from search.budget import count_cores
from search.workers import Job, JudgeWorker, SupernetWorker, train_alone
from searchspace.architecture import Architecture

logger = logging.getLogger(__name__)

Outcome = Literal["done", "failed", "lost"]
WorkerDiedError = RayActorError


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialTask:
    """A network to train alone: the id of its trial in the record, and what to do."""

    trial_id: int
    architecture: Architecture
    epochs: int
    seed: int


class TrialSource(Protocol):
    """Where the executor gets trials from and brings their results to."""

    def next(self) -> TrialTask | None:
        """Hand out the next trial, which holds a device from now on; None ends the phase."""

    def settle(
        self, task: TrialTask, *, outcome: Outcome, values: dict[str, float], cause: str | None
    ) -> None:
        """Take a trial's result; the device is free from now on."""

    def should_stop(self) -> bool:
        """Tell whether trials that are running must end now."""


class Cluster:
    """A connection to Ray; use it as a context manager.

    Args:
        device: What one worker holds: a core (``cpu``) or a GPU (``gpu``).
        address: Address of a cluster; None starts Ray on this machine.
        max_devices: Use at most so many devices.

    Raises:
        ValueError: If the cluster has no such device.
    """

    def __init__(
        self, *, device: str, address: str | None = None, max_devices: int | None = None
    ) -> None:
        cores = count_cores()
        ray.init(
            address=address,
            num_cpus=None if address else cores,
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
        )
        self.resource = {"cpu": "CPU", "gpu": "GPU"}[device]
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        found = int(resources.get(self.resource, 0))
        if found < 1:
            ray.shutdown()
            raise ValueError(
                f"The budget counts {device} time, and this cluster has no {self.resource}. "
                "Give a cpu budget, or join a cluster that has one with --ray-address."
            )
        self.devices = min(found, max_devices or found)
        self._is_local = address is None

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        ray.shutdown()

    @contextmanager
    def supernet_workers(self, job: Job) -> Iterator[list[Any]]:
        """Hold a `SupernetWorker` on every device."""
        with self._actors(SupernetWorker, job, self.devices) as actors:
            yield actors

    @contextmanager
    def judges(self, job: Job, count: int) -> Iterator[list[Any]]:
        """Hold ``count`` `JudgeWorker` actors, one a device; see `wait_until_ready`."""
        with self._actors(JudgeWorker, job, count) as actors:
            yield actors

    def run_trials(self, job: Job, source: TrialSource, *, name: str) -> None:
        """Train the source's trials with Ray Tune, one a device, until it has no more."""
        _SOURCES[name] = source
        scratch = (job.folder / "ray" / name).resolve()
        shutil.rmtree(scratch, ignore_errors=True)
        trainable = tune.with_resources(
            tune.with_parameters(_train_trial, job=job, threads=self._threads),
            {self.resource.lower(): 1},
        )
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=_Feed(name, self.devices), num_samples=-1, reuse_actors=True
            ),
            run_config=tune.RunConfig(
                name=name, storage_path=str(scratch.parent), stop=_Stop(name), verbose=0
            ),
        )
        try:
            tuner.fit()
        finally:
            _SOURCES.pop(name)
            shutil.rmtree(scratch, ignore_errors=True)
        if name in _PROBLEMS:
            raise _PROBLEMS.pop(name)

    def submit(self, function: Callable[..., Any], *arguments: Any, threads: int) -> Any:
        """Start a function on one device (or ``threads`` cores) and return Ray's reference."""
        needs = {"num_cpus": threads} if self.resource == "CPU" else {"num_gpus": 1}
        return ray.remote(function).options(**needs, max_retries=0).remote(*arguments)

    @property
    def _threads(self) -> int:
        """CPU threads of a worker. On cores there is one worker a core, because many small
        operators synchronise badly over threads, and worse on a busy machine."""
        return 1 if self.resource == "CPU" else 4

    @contextmanager
    def _actors(self, worker: type, job: Job, count: int) -> Iterator[list[Any]]:
        needs = {"num_cpus": 1} if self.resource == "CPU" else {"num_gpus": 1}
        remote: Any = ray.remote(worker).options(**needs)
        actors: list[Any] = [remote.remote(job, threads=self._threads) for _ in range(count)]
        try:
            yield actors
        finally:
            for actor in actors:
                ray.kill(actor)


def call(actor: Any, method: str, *arguments: Any, while_waiting: Callable[[], None]) -> Any:
    """Call an actor's method and wait for it, calling ``while_waiting`` about once a second."""
    return call_all([actor], method, *arguments, while_waiting=while_waiting)[0]


def call_all(
    actors: list[Any], method: str, *arguments: Any, while_waiting: Callable[[], None]
) -> list[Any]:
    """Call the same method of several actors and wait for all of them."""
    pending = [getattr(actor, method).remote(*arguments) for actor in actors]
    waiting = pending
    while waiting:
        done, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=1.0)
        ray.get(done)  # an error of one ends the call; the others may wait for it for ever
        while_waiting()
    return list(ray.get(pending))


def form_group(actors: list[Any], *, while_waiting: Callable[[], None]) -> None:
    """Let supernet workers find each other, so that they train together."""
    if len(actors) > 1:
        address = call(actors[0], "address", while_waiting=while_waiting)
        world = len(actors)
        pending = [actor.join.remote(address, rank, world) for rank, actor in enumerate(actors)]
        ray.get(pending)


def take_finished(pending: list[Any]) -> list[tuple[Any, Any, str | None]]:
    """Wait up to a second; return (reference, result, None) or (reference, None, cause)."""
    finished: list[tuple[Any, Any, str | None]] = []
    for reference in ray.wait(pending, num_returns=1, timeout=1.0)[0]:
        try:
            finished.append((reference, ray.get(reference), None))
        except (RayTaskError, RayError) as error:
            finished.append((reference, None, _last_line(str(error))))
    return finished


def wait_until_ready(actors: list[Any], *, while_waiting: Callable[[], None]) -> None:
    """Wait until every actor has answered; work is bound only to actors that did."""
    for actor in actors:
        call(actor, "ping", while_waiting=while_waiting)


def judge_stream(
    actors: list[Any],
    ask: Callable[[], Architecture | None],
    tell: Callable[[Architecture, Outcome, dict[str, float], str | None], None],
    while_waiting: Callable[[], None],
) -> None:
    """Keep every judge busy with what ``ask`` gives until it gives None, then finish the rest.

    Two architectures are queued at each judge, so that it never waits for the proposal. A judge
    that dies is not used again; what it held is told as lost.
    """
    load = dict.fromkeys(range(len(actors)), 0)
    pending: dict[Any, tuple[int, Architecture]] = {}
    asking = True
    while asking or pending:
        while asking and load and min(load.values()) < 2:
            architecture = ask()
            if architecture is None:
                asking = False
                break
            index = min(load, key=lambda i: load[i])
            load[index] += 1
            pending[actors[index].judge.remote(architecture)] = (index, architecture)
        if not load and not pending:
            raise RuntimeError("All judges died; see the logs of Ray.")
        done, _ = ray.wait(list(pending), num_returns=1, timeout=1.0) if pending else ([], [])
        for reference in done:
            index, architecture = pending.pop(reference)
            if index in load:
                load[index] -= 1
            try:
                tell(architecture, "done", ray.get(reference), None)
            except RayTaskError as error:
                tell(architecture, "failed", {}, _last_line(str(error)))
            except RayActorError as error:
                load.pop(index, None)
                tell(architecture, "lost", {}, _last_line(str(error)))
        while_waiting()


# Tune pickles searchers and stoppers when a Tuner is built, so they hold a name and look up here.
_SOURCES: dict[str, TrialSource] = {}
_PROBLEMS: dict[str, Exception] = {}


class _Feed(Searcher):
    """Feeds a `TrialSource` to Tune, as many at a time as there are devices."""

    def __init__(self, name: str, slots: int) -> None:
        super().__init__()
        self._name, self._slots = name, slots
        self._running: dict[str, TrialTask] = {}

    def suggest(self, trial_id: str) -> Any:
        if len(self._running) >= self._slots:
            return None
        if self._name in _PROBLEMS:
            return Searcher.FINISHED
        task = _SOURCES[self._name].next()
        if task is None:
            return Searcher.FINISHED
        self._running[trial_id] = task
        return {"task": task}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        task = self._running.pop(trial_id, None)
        if task is None:
            return
        report = json.loads((result or {}).get("report", "{}"))
        outcome: Outcome = "lost"
        cause: str | None = "its worker died or was stopped"
        if not error and report:
            outcome, cause = report["outcome"], report.get("cause")
        try:
            _SOURCES[self._name].settle(
                task, outcome=outcome, values=report.get("values", {}), cause=cause
            )
        except Exception as problem:
            # Tune would log it and go on as if the result were recorded: see `run_trials`.
            _PROBLEMS[self._name] = problem
            raise

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the record is the truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: a new Tuner is started instead."""


class _Stop(tune.Stopper):
    """Ends all trials when the source says so."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self.stop_all()

    def stop_all(self) -> bool:
        source = _SOURCES.get(self._name)
        return source is None or source.should_stop()


def _train_trial(config: dict[str, Any], *, job: Job, threads: int) -> None:
    task: TrialTask = config["task"]
    try:
        values = train_alone(
            job,
            task.architecture,
            epochs=task.epochs,
            seed=task.seed,
            threads=threads,
            checkpoint=checkpoint_folder(job.folder, task.trial_id),
            on_epoch=lambda epoch: tune.report({"epoch": epoch}),
        )
    except (ValueError, RuntimeError, ArithmeticError, OSError, MemoryError) as error:
        logger.error("Trial %d failed:\n%s", task.trial_id, traceback.format_exc())
        cause = f"{type(error).__name__}: {_last_line(str(error))}"
        _report({"outcome": "failed", "cause": cause})
    else:
        _report({"outcome": "done", "values": values})


def _report(report: dict[str, Any]) -> None:
    # As text: Tune would flatten a nested result.
    tune.report({"report": json.dumps(report)})


def checkpoint_folder(run_folder: Path, trial_id: int) -> Path:
    """Name the folder where a trial keeps its checkpoint until it is done."""
    return run_folder / "trials" / str(trial_id)


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"
