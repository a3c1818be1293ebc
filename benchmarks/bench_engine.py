"""What the engine itself costs: evaluations a second, and the driver's time for each.

``python benchmarks/bench_engine.py driver`` measures the driver alone, without Ray, with 0 and with
10,000 recorded trials. ``python benchmarks/bench_engine.py rates --workers 2 --workers 8`` measures
evaluations a second of warm judges and of one Ray Tune trial each, for objectives of 1 ms and
100 ms, on fake GPUs of this machine.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from dataclasses import replace

from search.plan import Plan, PlanInputs, make_plan
from search.record import Measured
from search.record.record import Record
from search.results.fidelity import SUPERNET, trained_alone
from search.run_folder.settings import RunSettings
from search.scheduling.judging import Judging
from search.scheduling.promotion import Promotions
from search.scheduling.tasks import Judgement
from search.scheduling.trials import Choice, TrialRunner
from searchspace.architecture import Architecture
from searchspace.cost import count
from searchspace.spec_file import load_space

SPACE = load_space("micro").replace(num_classes=10)
# Bounds on what is measured: evaluations, and seconds for each part of it.
MOST_JUDGED, LEAST_TRAINED, LIMIT_SECONDS = 2000, 24, 600.0
VALUES = Measured(top1=50.0, correct=500.0, total=1000.0, seconds=0.001)


def plan_for(budget: float, devices: int) -> Plan:
    """Make a plan whose trials have three rungs."""
    plan = make_plan(
        PlanInputs(
            budget_seconds=budget,
            devices=devices,
            measured_seconds=1.0,
            supernet_step=0.1,
            trial_step_seconds=[(1_000_000, 0.001), (9_000_000, 0.001)],
            judge_seconds=0.001,
            steps_per_epoch=1,
            max_epochs=9,
            retrain_steps=100,
        )
    )
    assert plan.rungs == (1, 3, 9), plan.rungs
    return plan


def judging_of(record: Record, sampler: str, workers: int) -> Judging:
    """Make a judging that never runs out of budget."""
    return Judging(
        record=record,
        space=SPACE,
        settings=RunSettings(data="digits", budget="1gpu-day", sampler=sampler),
        phase="search",
        first=[],
        limit_seconds=1e12,
        judge_seconds=0.001,
        count_judges=lambda: workers,
        interrupted=lambda: False,
    )


def runner_of(
    record: Record,
    folder: Path,
    *,
    workers: int,
    number: int,
    until: float = math.inf,
    on_event: Callable[[str], None] = lambda text: None,
) -> TrialRunner:
    """Make a runner that promotes ``number`` trials, or as many as begin before ``until``."""
    plan = plan_for(1e9, workers)
    epochs = {trained_alone(rung): rung for rung in plan.rungs}
    promotions = Promotions(
        record.trials(), base=SUPERNET, rungs=list(epochs), objectives=("top1", "macs")
    )
    left = itertools.count(1)

    def choose() -> Choice | None:
        goes_on = next(left) <= number and time.perf_counter() < until
        chosen = promotions.next() if goes_on else None
        return chosen and Choice(architecture=chosen[0], epochs=epochs[chosen[1]])

    return TrialRunner(
        record=record,
        plan=plan,
        folder=folder,
        phase="promote",
        seed=0,
        choose=choose,
        limit_seconds=1e12,
        interrupted=lambda: False,
        on_event=on_event,
        on_end=promotions.note,
    )


def fill(record: Record, number: int) -> None:
    """Record judged networks."""
    rng = random.Random(1)
    with record.together():
        for _ in range(number):
            architecture = SPACE.sample(rng)
            cost = count(architecture)
            key = record.add_architecture(architecture, params=cost.params, macs=cost.macs)
            trial = record.add_trial(key, fidelity=SUPERNET, seed=0, origin="search")
            if record.trial(trial).state == "waiting":
                attempt = record.start_attempt("search", devices=0, trial_id=trial)
                values = replace(VALUES, top1=rng.uniform(10, 90))
                record.finish_attempt(attempt, outcome="done", measured=values)


@contextmanager
def record_with(number: int) -> Iterator[tuple[Record, Path]]:
    """Make a record that holds some judged networks."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Record.create(Path(folder) / "record.db") as record,
    ):
        fill(record, number)
        yield record, Path(folder)


def measure_driver(sampler: str) -> None:
    """Print the driver's processor time for each judgement and each trial, without any device."""
    for known in (100, 10_000):
        with record_with(known) as (record, folder):
            started = time.process_time()
            judging = judging_of(record, sampler, 8)
            setup = time.process_time() - started
            for batch in (1, 16):
                rounds = 64 // batch

                def judge(judging: Judging = judging, batch: int = batch) -> None:
                    judging.tell(
                        [
                            Judgement(architecture=a, outcome="done", measured=VALUES)
                            for a in judging.ask(batch)
                        ]
                    )

                each = 1000 * seconds(judge, rounds) / batch
                print(f"{known:6,} known, {sampler}, batches of {batch:2}: {each:.2f} ms each")
            runner = runner_of(record, folder, workers=8, number=64)

            def train(runner: TrialRunner = runner) -> None:
                task = runner.next()
                assert task is not None
                runner.settle(task, outcome="done", measured=VALUES, cause=None)

            print(f"{known:6,} known, a trial: {1000 * seconds(train, 60):.2f} ms")
            spent = 1000 * seconds(lambda record=record: record.spent(), 200)
            print(f"{known:6,} known, the ledger's sum: {spent:.3f} ms; start {setup:.2f} s")


def seconds(work: Callable[[], object], rounds: int) -> float:
    """Return the mean processor seconds of ``work``; a busy machine does not change them."""
    started = time.process_time()
    for _ in range(rounds):
        work()
    return (time.process_time() - started) / rounds


class Sleeper:
    """A judge whose objective takes ``job`` seconds; its process needs neither torch nor data."""

    def __init__(self, job: float, *, threads: int) -> None:
        self.job = job

    def judge(self, architectures: list[object], by: str) -> list[tuple[Measured, None]]:
        """Judge a batch."""
        return [(self._judge(), None) for _ in architectures]

    def _judge(self) -> Measured:
        time.sleep(self.job)
        # The process stands in for a value that nothing here needs.
        return replace(VALUES, seconds=self.job, memory_mib=os.getpid())


def train_sleeping(job: float, task: object, threads: int, on_epoch: object) -> Measured:
    """Train for ``job`` seconds."""
    time.sleep(job)
    return VALUES


def measure_rates(workers: int, seconds_each: float) -> None:
    """Print evaluations a second on warm judges and by Ray Tune, with real Ray."""
    import ray
    from ray.cluster_utils import Cluster as Nodes

    from search.cluster.connection import Cluster

    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": workers})
    try:
        with Cluster(device="gpu", address=nodes.address) as cluster:
            say(f"{workers} workers, {1000 * seconds_each:.0f} ms, {machine()}:")
            with record_with(100) as (record, _):
                judged = rate_of_judges(cluster, record, workers, seconds_each)
            with record_with(500) as (record, folder):
                trained = rate_of_trials(cluster, record, folder, workers, seconds_each)
            say(f"  judgements come {judged / trained:.0f} times as fast as trials")
    finally:
        ray.shutdown()
        nodes.shutdown()


def rate_of_judges(cluster: Any, record: Record, workers: int, seconds_each: float) -> float:
    """Print and return judgements a second, once all judges are warm."""
    from search.cluster.crew import JudgeCrew, hold_judges

    judging = judging_of(record, "random", workers)
    crew = JudgeCrew(
        cluster,
        Sleeper,
        job=seconds_each,
        record=record,
        phase="search",
        most=workers,
        pace_seconds=seconds_each,
    )
    with hold_judges(crew):
        started = time.perf_counter()
        crew.stream(_UntilWarm(judging, workers), lambda: None)
        say(f"  {workers} judges answer after {time.perf_counter() - started:.0f} s, {machine()}")
        source = _First(judging, max(20 * workers, min(MOST_JUDGED, int(5 / seconds_each))))
        started, cpu = time.perf_counter(), time.process_time()
        crew.stream(source, lambda: None)
        took, cpu = time.perf_counter() - started, time.process_time() - cpu
    number = source.asked
    say(
        f"  {number:,} judgements in {took:.1f} s: {number / took:.1f}/s, "
        f"driver {1000 * cpu / number:.2f} ms each"
    )
    return number / took


def rate_of_trials(
    cluster: Any, record: Record, folder: Path, workers: int, seconds_each: float
) -> float:
    """Print trials a second of Ray Tune in all, and return the rate once all actors are warm."""
    from search.cluster.tune_trials import run_trials
    from search.scheduling.tasks import Work

    work = Work(
        make_job=dict, supernet_worker=dict, judge_worker=Sleeper, train_alone=train_sleeping
    )
    ends: list[float] = []
    started, cpu = time.perf_counter(), time.process_time()
    runner = runner_of(
        record,
        folder,
        workers=workers,
        number=max(4 * workers, LEAST_TRAINED),
        until=started + LIMIT_SECONDS,
        on_event=lambda text: ends.append(time.perf_counter()),
    )
    run_trials(cluster, work, job=seconds_each, folder=folder, source=runner, name="promote")
    took, cpu = time.perf_counter() - started, time.process_time() - cpu
    # The first of each worker waits until Tune has started its actor.
    warm = (len(ends) - workers) / max(ends[-1] - ends[workers - 1], 1e-9)
    say(
        f"  {len(ends)} trials in {took:.1f} s: {len(ends) / took:.2f}/s with starting and ending "
        f"the actors, {warm:.2f}/s once {workers} have ended, "
        f"driver {1000 * cpu / len(ends):.1f} ms each"
    )
    return warm


def machine() -> str:
    """Say what else goes on: the load of the last minute, and the memory that is left."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) / 2**20
    return f"load {os.getloadavg()[0]:.1f}, {free:.1f} GiB of memory free"


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


class _First:
    """A judging that ends after so many, or when its time is up.

    Attributes:
        asked: How many it has handed out.
    """

    def __init__(self, judging: Judging, number: int) -> None:
        self._judging, self._number, self.asked = judging, number, 0
        self._until = time.perf_counter() + LIMIT_SECONDS
        self.tell, self.should_stop, self.by = judging.tell, judging.should_stop, judging.by

    def ask(self, count: int) -> list[Architecture]:
        """Hand out up to ``count``, and not more than are left."""
        left = self._number - self.asked if time.perf_counter() < self._until else 0
        batch = self._judging.ask(min(count, left)) if left else []
        self.asked += len(batch)
        return batch


class _UntilWarm:
    """A judging that ends when so many processes have answered."""

    def __init__(self, judging: Judging, workers: int) -> None:
        self._judging, self._workers = judging, workers
        self._processes: set[float] = set()
        self._until = time.perf_counter() + LIMIT_SECONDS
        self.should_stop, self.by = judging.should_stop, judging.by

    def ask(self, count: int) -> list[Architecture]:
        """Hand out one: those that are warm leave the processor to those that start."""
        if len(self._processes) == self._workers:
            return []
        if time.perf_counter() > self._until:
            raise RuntimeError(f"{len(self._processes)} judges answer in {LIMIT_SECONDS:.0f} s")
        time.sleep(0.1)
        return self._judging.ask(1)

    def tell(self, judgements: Sequence[Judgement]) -> None:
        """Take note of who has answered."""
        self._processes |= {one.measured.memory_mib for one in judgements if one.measured}
        self._judging.tell(judgements)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["driver", "rates"])
    parser.add_argument("--sampler", default="random")
    parser.add_argument("--workers", type=int, action="append")
    parser.add_argument("--ms", type=float, action="append", help="Of the objective: 1 and 100.")
    options = parser.parse_args()
    if options.what == "driver":
        measure_driver(options.sampler)
    else:
        for workers in options.workers or [2, 8, 64]:
            for milliseconds in options.ms or [1.0, 100.0]:
                measure_rates(workers, milliseconds / 1000)
