"""The phases of a run in virtual time: the engine's own rules, on simulated devices."""

from __future__ import annotations

import heapq
import itertools
import math
from dataclasses import dataclass

from benchmarks.simulation.devices import NODE_SIZE, Simulation, take_devices
from benchmarks.simulation.job import (
    JUDGE_SECONDS,
    STEPS_PER_EPOCH,
    TOGETHER,
    macs_of,
    step_model,
    values_of,
)
from search.plan import PHASES, Plan
from search.record import Measured
from search.record.record import Record
from search.results.fidelity import SUPERNET
from search.scheduling.judging import Judging
from search.scheduling.tasks import Judgement, TrialTask
from search.scheduling.trials import TrialRunner

START_SECONDS = 40.0
COMPILE_SECONDS = 30.0
NOISE = 0.2
RAISE_SHARE, HANG_SHARE = 0.01, 0.002
# With --quick, so many are judged.
QUICK_JUDGED = 3_000
LOOK_SECONDS = 60.0


def train_supernet(sim: Simulation, record: Record, plan: Plan) -> None:
    """Hold all devices until the share is used; a failure costs a restart of the group."""
    sim.repair()
    while record.spent(PHASES) < plan.spent_by_end[SUPERNET]:
        devices = sim.devices - len(sim.broken) * NODE_SIZE
        attempt = record.start_attempt(SUPERNET, devices=devices)
        left = (plan.spent_by_end[SUPERNET] - record.spent(PHASES)) / devices
        end = min(sim.now + left, sim.next_failure)
        started = sim.now
        sim.advance(end, devices)
        sim.useful += max(end - started - START_SECONDS - COMPILE_SECONDS, 0.0) * devices
        failed = end == sim.next_failure
        if failed:
            sim.fail_node()
            sim.useful -= 15.0 * devices  # half the time between two checkpoints
        record.finish_attempt(attempt, outcome="interrupted" if failed else "done")
        sim.repair()


def run_judges(sim: Simulation, judging: Judging, record: Record, phase: str) -> None:
    """Keep a judge on every device busy, two judgements queued at each."""
    free: list[tuple[float, int]] = []  # when a judge has an answer
    attempts: dict[int, int] = {}
    holding: dict[int, list] = {}

    def recruit() -> None:
        for device in range(sim.devices):
            if device not in attempts and device // NODE_SIZE not in sim.broken:
                attempts[device] = record.start_attempt(phase, devices=1)
                holding[device] = []
                heapq.heappush(free, (sim.now + START_SECONDS, device))

    recruit()
    asking = True
    while any(holding.values()) or (asking and free):
        at, device = free[0]
        event = min(at, sim.next_failure, sim.next_repair())
        sim.advance(max(event, sim.now), len(attempts))
        if event == sim.next_failure:
            node = sim.fail_node()
            dead = [d for d in attempts if d // NODE_SIZE == node]
            lost = [a for d in dead for a in holding.pop(d)]
            for d in dead:
                record.finish_attempt(attempts.pop(d), outcome="lost", cause="node failed")
            free = [entry for entry in free if entry[1] not in dead]
            heapq.heapify(free)
            if lost:
                judging.tell(
                    [
                        Judgement(
                            architecture=a, outcome="lost", measured=None, cause="node failed"
                        )
                        for a in lost
                    ]
                )
            continue
        if event == sim.next_repair():
            sim.repair()
            recruit()
            continue
        heapq.heappop(free)
        if holding[device]:
            (architecture,) = holding[device]
            holding[device] = []
            sim.useful += JUDGE_SECONDS * sim.pace(device)
            judging.tell(
                [
                    Judgement(
                        architecture=architecture,
                        outcome="done",
                        measured=values_of(sim.rng, architecture, 5.0)
                        | Measured(seconds=JUDGE_SECONDS * sim.pace(device)),
                    )
                ]
            )
        asked = judging.ask(1) if asking else []
        asking = bool(asked)
        if asked:
            holding[device] = asked
            seconds = JUDGE_SECONDS * sim.pace(device) * sim.rng.lognormvariate(0, 0.1)
            heapq.heappush(free, (sim.now + seconds, device))
    for attempt in attempts.values():
        record.finish_attempt(attempt, outcome="done")


def hold_judges(
    sim: Simulation, judging: Judging, record: Record, phase: str, until: float
) -> None:
    """Hold all devices until the share is used; have some results at its beginning (--quick)."""
    with record.together():
        asked = judging.ask(QUICK_JUDGED) if phase == "search" else []
        while asked:
            values = [values_of(sim.rng, a, 5.0) | Measured(seconds=JUDGE_SECONDS) for a in asked]
            judging.tell(
                [
                    Judgement(architecture=a, outcome="done", measured=v)
                    for a, v in zip(asked, values, strict=True)
                ]
            )
            more = len(record.trials(fidelity=SUPERNET)) < QUICK_JUDGED
            asked = judging.ask(QUICK_JUDGED) if more else []
    attempt = record.start_attempt(phase, devices=sim.devices)
    seconds = max(until - record.spent(PHASES), 0.0) / sim.devices
    sim.useful += max(seconds - START_SECONDS, 0.0) * sim.devices
    sim.advance(sim.now + seconds, sim.devices)
    record.finish_attempt(attempt, outcome="done")


def run_trials(sim: Simulation, runner: TrialRunner, record: Record, plan: Plan) -> None:
    """Keep trials on all devices; fail nodes, end what hangs or exceeds the budget."""
    order = itertools.count()
    running: dict[int, _SimulatedTrial] = {}  # by trial
    events: list[tuple[float, int, int, _SimulatedTrial]] = []  # when, order, trial
    progress: dict[int, int] = {}  # trial: epochs that lie in its checkpoint
    free = {d for d in range(sim.devices) if d // NODE_SIZE not in sim.broken}
    more, looked = True, sim.now

    def end(trial_id: int) -> _SimulatedTrial:
        trial = running.pop(trial_id)
        free.update(d for d in trial.devices if d // NODE_SIZE not in sim.broken)
        return trial

    while True:
        while more and free:
            most = sim.devices - NODE_SIZE * len(sim.broken)
            wanted = runner.wanted(most)
            if wanted is None or wanted > len(free):
                break
            task = runner.next(most)
            if task is None:
                more = bool(running)
                break
            done, devices = progress.get(task.trial_id, 0), take_devices(free, task.devices)
            trial = _SimulatedTrial.begin(sim, task, done, devices)
            running[task.trial_id] = trial
            runner.started(task)
            when = sim.now + START_SECONDS
            heapq.heappush(events, (when, next(order), task.trial_id, trial))
        if not running:
            return
        held = sum(len(trial.devices) for trial in running.values())
        # The executor looks at the budget about once a second, and at what hangs here every minute.
        left = max(plan.last_call_seconds - record.spent(PHASES), 0.0) / held + 1.0
        look = looked + LOOK_SECONDS
        reported = events[0][0] if events else math.inf
        event = min(reported, sim.next_failure, sim.next_repair(), sim.now + left, look)
        sim.advance(event, held)
        if runner.should_stop():
            for trial in running.values():
                runner.settle(trial.task, outcome="lost", measured=None, cause="stopped")
            return
        if event == sim.next_failure:
            node = sim.fail_node()
            free.difference_update(range(node * NODE_SIZE, (node + 1) * NODE_SIZE))
            for trial_id in [i for i, t in running.items() if t.is_on(node)]:
                trial = end(trial_id)
                progress[trial_id] = trial.epochs
                sim.useful += trial.useful_seconds
                runner.settle(trial.task, outcome="lost", measured=None, cause="node failed")
            events = [entry for entry in events if running.get(entry[2]) is entry[3]]
            heapq.heapify(events)
            more = True
        elif event == sim.next_repair():
            back = [n for n, until in sim.broken.items() if until <= sim.now]
            sim.repair()
            free.update(n * NODE_SIZE + i for n in back for i in range(NODE_SIZE))
            more = True
        elif event == look:
            looked = sim.now
            for trial_id, trial in list(running.items()):
                cause = runner.overdue(trial.task)
                if cause is not None:
                    end(trial_id)
                    runner.settle(trial.task, outcome="failed", measured=None, cause=cause)
                    more = True
            events = [entry for entry in events if running.get(entry[2]) is entry[3]]
            heapq.heapify(events)
        elif event == reported:
            _, _, trial_id, trial = heapq.heappop(events)
            is_ready, trial.is_ready = trial.is_ready, True
            trial.epochs += is_ready
            if trial.epochs < trial.task.epochs:
                runner.heard(trial.task)
                again = sim.now + trial.next_seconds()
                heapq.heappush(events, (again, next(order), trial_id, trial))
                continue
            end(trial_id)
            if sim.rng.random() < RAISE_SHARE:
                runner.settle(
                    trial.task, outcome="failed", measured=None, cause="KeyError: made up"
                )
            else:
                sim.useful += trial.useful_seconds
                values = values_of(sim.rng, trial.task.architecture, 20.0 / trial.epochs)
                runner.settle(trial.task, outcome="done", measured=values, cause=None)
            more = True


@dataclass(slots=True)
class _SimulatedTrial:
    """A trial on its devices.

    Attributes:
        epochs: That are done.
        resumed: Of these, those that were done before this attempt.
        epoch_seconds: Of an epoch by the clock.
        hangs_after: Epochs after which it hangs.
        is_ready: Whether its workers have started.
    """

    task: TrialTask
    devices: set[int]
    epochs: int
    resumed: int
    epoch_seconds: float
    hangs_after: float
    is_ready: bool = False

    @classmethod
    def begin(
        cls, sim: Simulation, task: TrialTask, done: int, devices: set[int]
    ) -> _SimulatedTrial:
        cost = step_model()(macs_of(task)) * STEPS_PER_EPOCH * task.images / len(devices)
        cost *= max(sim.pace(device) for device in devices)
        cost *= TOGETHER if len(devices) > 1 else 1.0
        hangs = sim.rng.random() < HANG_SHARE
        return cls(
            task=task,
            devices=devices,
            epochs=done,
            resumed=done,
            epoch_seconds=cost * sim.rng.lognormvariate(0, NOISE),
            hangs_after=sim.rng.randrange(done, task.epochs) if hangs else math.inf,
        )

    @property
    def useful_seconds(self) -> float:
        """Device-seconds of the epochs of this attempt."""
        return (self.epochs - self.resumed) * self.epoch_seconds * len(self.devices)

    def is_on(self, node: int) -> bool:
        """Tell whether it holds a device of a node."""
        return any(device // NODE_SIZE == node for device in self.devices)

    def next_seconds(self) -> float:
        """Return the seconds until its next epoch is done."""
        if self.epochs >= self.hangs_after:
            return math.inf
        compiling = COMPILE_SECONDS if self.epochs == self.resumed else 0.0
        return self.epoch_seconds + compiling
