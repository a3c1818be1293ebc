"""What the engine itself costs: evaluations a second, and the driver's time for each.

``python benchmarks/bench_engine.py driver`` measures the driver alone, without Ray, with 0 and with
10,000 recorded trials. ``python benchmarks/bench_engine.py rates --workers 2 --workers 8`` measures
evaluations a second of warm judges and of one Ray Tune trial each, for objectives of 1 ms and
100 ms, on fake GPUs of this machine.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from search.judging import Judging
from search.plan import Plan, make_plan
from search.promotion import Promotions
from search.record import Record
from search.results import SUPERNET
from search.settings import RunSettings
from search.trials import Choice, TrialRunner, fidelity_of
from search.work import Judgement
from searchspace.architecture import Architecture
from searchspace.cost import count
from searchspace.spec_file import load_space

SPACE = load_space("micro").replace(num_classes=10)
VALUES = {"top1": 50.0, "correct": 500.0, "total": 1000.0, "seconds": 0.001}


def plan_for(budget: float, devices: int) -> Plan:
    """Make a plan whose trials have three rungs."""
    plan = make_plan(
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


def runner_of(record: Record, folder: Path, *, workers: int, number: int) -> TrialRunner:
    """Make a runner that promotes ``number`` trials."""
    plan = plan_for(1e9, workers)
    epochs = {fidelity_of(rung): rung for rung in plan.rungs}
    promotions = Promotions(
        record.trials(), base=SUPERNET, rungs=list(epochs), objectives=("top1", "macs")
    )
    left = itertools.count(1)

    def choose() -> Choice | None:
        chosen = promotions.next() if next(left) <= number else None
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
        on_event=lambda text: None,
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
                values = VALUES | {"top1": rng.uniform(10, 90)}
                record.finish_attempt(attempt, outcome="done", values=values)


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
                            Judgement(architecture=a, outcome="done", values=VALUES)
                            for a in judging.ask(batch)
                        ]
                    )

                each = 1000 * seconds(judge, rounds) / batch
                print(f"{known:6,} known, {sampler}, batches of {batch:2}: {each:.2f} ms each")
            runner = runner_of(record, folder, workers=8, number=64)

            def train(runner: TrialRunner = runner) -> None:
                task = runner.next()
                assert task is not None
                runner.settle(task, outcome="done", values=dict(VALUES), cause=None)

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
    """A judge whose objective takes ``job`` seconds."""

    def __init__(self, job: float, *, threads: int) -> None:
        self.job = job

    def judge(self, architectures: list[object], by: str) -> list[tuple[dict[str, float], None]]:
        """Judge a batch."""
        return [(self._judge(), None) for _ in architectures]

    def _judge(self) -> dict[str, float]:
        time.sleep(self.job)
        return VALUES | {"seconds": self.job}


def train_sleeping(job: float, task: object, threads: int, on_epoch: object) -> dict[str, float]:
    """Train for ``job`` seconds."""
    time.sleep(job)
    return dict(VALUES)


def measure_rates(workers: int, seconds_each: float) -> None:
    """Print evaluations a second on warm judges and by Ray Tune, with real Ray."""
    import ray
    from ray.cluster_utils import Cluster as Nodes

    from search.crew import JudgeCrew, hold_judges
    from search.executor import Cluster
    from search.tune_trials import run_trials
    from search.work import Work

    number = max(20 * workers, int(3 * workers / max(seconds_each, 0.02)))
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": workers})
    try:
        with (
            Cluster(device="gpu", address=nodes.address) as cluster,
            record_with(100) as (record, folder),
        ):
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
                crew.stream(_First(judging, workers), lambda: None)  # until all are warm
                started, cpu = time.perf_counter(), time.process_time()
                crew.stream(_First(judging, number), lambda: None)
                took, cpu = time.perf_counter() - started, time.process_time() - cpu
            print(
                f"{workers:3} judges, {1000 * seconds_each:.0f} ms: {number / took:8.1f}/s, "
                f"driver {1000 * cpu / number:.2f} ms each",
                flush=True,
            )
            work = Work(
                make_job=dict,
                supernet_worker=dict,
                judge_worker=Sleeper,
                train_alone=train_sleeping,
            )
            number = 4 * workers
            runner = runner_of(record, folder, workers=workers, number=number)
            started, cpu = time.perf_counter(), time.process_time()
            run_trials(
                cluster, work, job=seconds_each, folder=folder, source=runner, name="promote"
            )
            took, cpu = time.perf_counter() - started, time.process_time() - cpu
            print(
                f"{workers:3} trials, {1000 * seconds_each:.0f} ms: {number / took:8.1f}/s, "
                f"driver {1000 * cpu / number:.2f} ms each",
                flush=True,
            )
    finally:
        ray.shutdown()
        nodes.shutdown()


class _First:
    """A judging that ends after so many."""

    def __init__(self, judging: Judging, number: int) -> None:
        self._judging, self._left = judging, number
        self.tell, self.should_stop, self.by = judging.tell, judging.should_stop, judging.by

    def ask(self, count: int) -> list[Architecture]:
        """Hand out up to ``count``, and not more than are left."""
        batch = self._judging.ask(min(count, self._left)) if self._left else []
        self._left -= len(batch)
        return batch


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["driver", "rates"])
    parser.add_argument("--sampler", default="random")
    parser.add_argument("--workers", type=int, action="append")
    options = parser.parse_args()
    if options.what == "driver":
        measure_driver(options.sampler)
    else:
        for workers in options.workers or [2, 8, 64]:
            for seconds_each in (0.001, 0.1):
                measure_rates(workers, seconds_each)
