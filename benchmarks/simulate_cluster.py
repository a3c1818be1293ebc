"""Drive the engine with a virtual clock: hundreds of devices, thousands of gpu-days, failing nodes.

``python benchmarks/simulate_cluster.py [--devices 512] [--gpu-days 50] [--failures 6.5]
[--slower 3.5] [--mixed] [--quick]``

The record, the plan and its revision, `Judging`, `TrialRunner`, `TrialCosts` and `Promotions` are
the engine's own; Ray and the devices are simulated, event by event. Nodes of 8 devices fail at
``--failures`` per 1,000 node-days (6.5 is what Kokolis et al. 2024 report for Meta's RSC-1,
https://arxiv.org/abs/2410.21680) and come back after an hour; 1 % of trials raise, 0.2 % hang. A
trial takes what the plan's model says, times log-normal noise (sigma 0.2) and times ``--slower``
(1.15), which the plan does not know: images that are fed too slowly. It goes on after a failure
from its last epoch. Several devices that train one network together take one node where one has so
many free, go at the pace of the slowest, and lose 5 % to each other's gradients. A worker starts
for 40 s, and compiles kernels for another 30 s at its first step. One node of 32 straggles at half
the pace, and with ``--mixed`` every second node has devices of 0.6 of the pace; the supernet goes
at the pace of its slowest device. The images are ImageNet's, the rates those that are estimated for
an H100: 1,500 images/s in the supernet, 1,700 alone.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from search.plan import PHASES, Plan, PlanInputs, StepModel, make_plan, revise_plan, supernet_batch
from search.record import Measured
from search.record.record import Record
from search.results.fidelity import SUPERNET, rung_fidelities
from search.run_folder.settings import RunSettings
from search.scheduling.judging import Judging
from search.scheduling.promotion import Promotions
from search.scheduling.tasks import Judgement, TrialTask
from search.scheduling.trials import Choice, TrialCosts, TrialRunner
from searchspace.spec_file import load_space

DAY = 86_400.0
NODE_SIZE = 8
REPAIR_SECONDS = 3600.0
START_SECONDS = 40.0
COMPILE_SECONDS = 30.0
SLOWER = 1.15
STRAGGLER_EVERY, STRAGGLER = 32, 2.0
MIXED = 1 / 0.6
NOISE = 0.2
# Devices that may train one network together, and what they lose then: no plan knows.
TRIAL_DEVICES, TOGETHER = 8, 1.05
RAISE_SHARE, HANG_SHARE = 0.01, 0.002
# ImageNet after its search split is held out; a step of 64 images alone takes 19 to 56 ms.
TRAIN_IMAGES = 1_255_544
STEPS = ((1_000_000_000, 0.019), (4_500_000_000, 0.056))
STEPS_PER_EPOCH = TRAIN_IMAGES // 64
SUPERNET_RATE = 1500.0
# 25,623 images at 6,000 a second, and the network's own statistics.
JUDGE_SECONDS = 6.0
LOOK_SECONDS = 60.0
# With --quick, so many are judged.
QUICK_JUDGED = 3_000


@dataclass(slots=True)
class Simulation:
    """A cluster in virtual time.

    Attributes:
        now: Seconds.
        useful: Device-seconds that ended in a result (or in the supernet's weights).
        held: Device-seconds held, added up here, without the record.
    """

    devices: int
    failures: float
    rng: random.Random
    now: float = 0.0
    useful: float = 0.0
    held: float = 0.0
    alive: float = 0.0
    num_failures: int = 0
    broken: dict[int, float] = field(default_factory=dict)  # node: until when
    next_failure: float = 0.0
    slower: float = SLOWER
    mixed: bool = False

    def pace(self, device: int) -> float:
        """Return how many times longer than planned work takes on a device."""
        node = device // NODE_SIZE
        straggles = node % STRAGGLER_EVERY == STRAGGLER_EVERY - 1
        return (
            self.slower
            * (STRAGGLER if straggles else 1.0)
            * (MIXED if self.mixed and node % 2 else 1.0)
        )

    def __post_init__(self) -> None:
        self.next_failure = self.draw_failure()

    @property
    def nodes(self) -> int:
        """Nodes of the cluster."""
        return max(self.devices // NODE_SIZE, 1)

    def clock(self) -> float:
        """Virtual seconds, for the record and the runner."""
        return self.now

    def draw_failure(self) -> float:
        """Return when the next node fails; the nodes fail independently."""
        rate = self.failures / 1000 / DAY * self.nodes
        return self.now + (self.rng.expovariate(rate) if rate else math.inf)

    def advance(self, to: float, held: float) -> None:
        """Let time pass while so many devices are held."""
        self.held += (to - self.now) * held
        self.alive += (to - self.now) * (self.devices - len(self.broken) * NODE_SIZE)
        self.now = to

    def fail_node(self) -> int:
        """Break a node that works; return it."""
        standing = [n for n in range(self.nodes) if n not in self.broken]
        if len(standing) == 1:  # the last one does not fail
            self.next_failure = self.draw_failure()
            return -1
        node = self.rng.choice(standing)
        self.broken[node] = self.now + REPAIR_SECONDS
        self.next_failure, self.num_failures = self.draw_failure(), self.num_failures + 1
        return node

    def repair(self) -> None:
        """Bring back the nodes whose time has come."""
        self.broken = {node: until for node, until in self.broken.items() if until > self.now}

    def next_repair(self) -> float:
        """Return when the next node comes back."""
        return min(self.broken.values(), default=math.inf)


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


def take_devices(free: set[int], count: int) -> set[int]:
    """Take devices of the node that has fewest left then, or of several where none has so many."""
    nodes: dict[int, list[int]] = {}
    for device in sorted(free):
        nodes.setdefault(device // NODE_SIZE, []).append(device)
    fitting = [devices for devices in nodes.values() if len(devices) >= count]
    chosen = min(fitting, key=len) if fitting else sorted(free)
    taken = set(chosen[:count])
    free -= taken
    return taken


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


_MACS: dict[str, int] = {}


def macs_of(task: TrialTask) -> int:
    """Count MACs, scaled from the small space to the job's sizes."""
    from searchspace.cost import count

    key = task.architecture.key
    if key not in _MACS:
        _MACS[key] = count(task.architecture).macs
    return _MACS[key]


@cache
def step_points() -> tuple[tuple[int, float], ...]:
    """Return (MACs, seconds of a step alone) of the small space, with the job's seconds."""
    from searchspace.cost import count

    space = load_space("micro").replace(num_classes=10)
    ends = (space.extreme("macs", largest=largest) for largest in (False, True))
    return tuple((count(a).macs, s) for a, (_, s) in zip(ends, STEPS, strict=True))


@cache
def step_model() -> StepModel:
    """Return what steps really take on a device at the planned pace."""
    return StepModel(step_points())


def plan_for(
    devices: int, gpu_days: float, *, pace: float = 1.0, trial_devices: int = TRIAL_DEVICES
) -> Plan:
    """Plan the job, for trainings that are so many times slower than measured."""
    batch = supernet_batch(devices)
    return make_plan(
        PlanInputs(
            budget_seconds=gpu_days * DAY,
            devices=devices,
            measured_seconds=devices * 120.0,
            supernet_step=batch / SUPERNET_RATE,
            trial_step_seconds=tuple((macs, s * pace) for macs, s in step_points()),
            judge_seconds=JUDGE_SECONDS,
            steps_per_epoch=STEPS_PER_EPOCH,
            max_epochs=37,
            retrain_steps=STEPS_PER_EPOCH * 300,
            train_images=TRAIN_IMAGES,
            supernet_batch=batch,
            longest_epochs=300,
            most_trial_devices=trial_devices,
        )
    )


def values_of(rng: random.Random, architecture: object, noise: float) -> Measured:
    """Make up an accuracy."""
    top1 = min(max(rng.gauss(70, noise), 0.0), 100.0)
    return Measured(top1=top1, correct=round(top1 * 500), total=50_000)


def simulate(
    devices: int,
    gpu_days: float,
    *,
    failures: float,
    seed: int,
    sampler: str,
    quiet: bool = False,
    slower: float = SLOWER,
    mixed: bool = False,
    quick: bool = False,
) -> tuple[float, float, float, float]:
    """Run one budget to its end and print what came out.

    Returns:
        Device-seconds asked for, charged and held; and of a judgement on every device.
    """
    space = load_space("micro").replace(num_classes=10)
    plan = plan_for(devices, gpu_days)
    sim = Simulation(
        devices=devices, failures=failures, rng=random.Random(seed), slower=slower, mixed=mixed
    )
    settings = RunSettings(data="digits", budget=f"{gpu_days}gpu-days", sampler=sampler, seed=seed)
    lengths: dict[str, PhaseLength] = {}
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as out,
        Record.create(Path(out) / "record.db", clock=sim.clock) as record,
    ):

        def revise(after: str) -> Plan:
            done = record.trials(state="done")
            judged = [t.measured.seconds for t in done if t.fidelity == SUPERNET]
            middle = sum(macs for macs, _ in plan.step_seconds) // 2
            return revise_plan(
                plan,
                after=after,
                spent=record.spent_by_phase(),
                trial_seconds=TrialCosts(plan, done).predict(middle, plan.trial_epochs),
                judge_seconds=sum(judged) / len(judged) if judged else None,
            )

        def judge(phase: str) -> None:
            judging = Judging(
                record=record,
                space=space,
                settings=settings,
                phase=phase,
                first=[],
                limit_seconds=plan.spent_by_end[phase],
                judge_seconds=plan.judge_seconds,
                count_judges=lambda: devices,
                interrupted=lambda: False,
            )
            if quick:
                hold_judges(sim, judging, record, phase, plan.spent_by_end[phase])
            else:
                run_judges(sim, judging, record, phase)

        def train(
            phase: str, choose: object, on_end: object = None, *, probes: bool = False
        ) -> float | None:
            runner = TrialRunner(
                record=record,
                plan=plan,
                folder=Path(out),
                phase=phase,
                seed=seed,
                choose=choose,  # type: ignore[arg-type]
                limit_seconds=plan.spent_by_end[phase],
                interrupted=lambda: False,
                on_event=lambda text: None,
                on_end=on_end,  # type: ignore[arg-type]
                clock=sim.clock,
                start_seconds=START_SECONDS,
                probes=probes,
            )
            run_trials(sim, runner, record, plan)
            return runner.off_pace

        def train_trust() -> None:
            nonlocal plan
            for probes in (True, False):
                rng, epochs = random.Random(seed), plan.trust_rung
                trust = {a.key: a for a in (space.sample(rng) for _ in range(plan.num_trust))}
                # A new plan may have rungs of the same lengths: what was begun on them goes on.
                known = {trial.key for trial in record.trials()}
                new = [a for key, a in trust.items() if key not in known]
                queue = iter([Choice(architecture=a, epochs=epochs) for a in new])
                pace = train("trust", lambda queue=queue: next(queue, None), probes=probes)
                if pace is None:
                    return
                steps = plan.supernet_steps
                plan = replace(plan_for(devices, gpu_days, pace=pace), supernet_steps=steps)
                rungs = rung_fidelities(plan)
                for trial in record.trials(state="waiting"):
                    if trial.fidelity not in rungs:
                        record.withdraw(trial.id)
                plan = revise(SUPERNET)
                print(f"  trainings {pace:.2f} times slower than planned: rungs {plan.rungs}")

        def timed(phase: str, work: object) -> None:
            before, started, spent = sim.now, time.process_time(), record.spent(PHASES)
            planned = plan.spent_by_end[phase] - spent
            work()  # type: ignore[operator]
            # A phase that found trainings slower made the plan anew, with another share for itself.
            followed = plan.spent_by_end[phase] - spent
            cpu = time.process_time() - started
            lengths[phase] = PhaseLength(sim.now - before, cpu, planned, followed)

        record.finish_attempt(record.start_attempt("measure", devices=0), outcome="done")
        timed(SUPERNET, lambda: train_supernet(sim, record, plan))
        plan = revise(SUPERNET)
        timed("trust", train_trust)
        plan = revise("trust")
        timed("search", lambda: judge("search"))
        plan = revise("search")
        epochs = rung_fidelities(plan)
        promotions = Promotions(
            record.trials(), base=SUPERNET, rungs=list(epochs), objectives=settings.objectives
        )

        def promote() -> Choice | None:
            chosen = promotions.next()
            return chosen and Choice(architecture=chosen[0], epochs=epochs[chosen[1]])

        timed("promote", lambda: train("promote", promote, promotions.note))
        timed("finish", lambda: judge("finish"))
        if not quiet:
            report(sim, record, plan, lengths)
        return plan.budget_seconds, record.spent(PHASES), sim.held, devices * JUDGE_SECONDS


class PhaseLength(NamedTuple):
    """How long a phase took: simulated seconds, the driver's processor seconds, and its shares.

    Device-seconds ``planned`` when it began, and ``followed``, in the plan that it ended with.
    """

    seconds: float
    cpu_seconds: float
    planned: float
    followed: float


def report(sim: Simulation, record: Record, plan: Plan, lengths: dict[str, PhaseLength]) -> None:
    """Print utilisation, overshoot and what the driver cost."""
    spent, trials = record.spent(PHASES), record.trials()
    print(
        f"{sim.devices} devices, {plan.budget_seconds / DAY:,.0f} gpu-days asked: charged "
        f"{spent / DAY:,.3f} ({100 * (spent / plan.budget_seconds - 1):+.4f} %), held "
        f"{sim.held / DAY:,.3f} by the simulation's own sum; {sim.now / DAY:.2f} days, "
        f"{sim.num_failures} nodes failed"
    )
    print(
        f"  utilisation: {100 * sim.held / sim.alive:.2f} % of living device-time was held, "
        f"{100 * sim.useful / sim.alive:.2f} % ended in results or weights"
    )
    epochs = record.spent([SUPERNET]) * SUPERNET_RATE / TRAIN_IMAGES
    slowest = max(sim.pace(device) for device in range(sim.devices))
    print(
        f"  supernet: {plan.supernet_epochs:,.0f} epochs planned, "
        f"{min(epochs / slowest, plan.supernet_epochs):,.0f} at the slowest device's pace"
    )
    for phase, (length, cpu, planned, followed) in lengths.items():
        held = record.spent([phase])
        anew = (
            f", {100 * (held / followed - 1):+.1f} % of it in the plan made anew"
            if followed != planned
            else ""
        )
        count = sum(trial.origin == phase for trial in trials)
        each = f", {1000 * cpu / count:.1f} ms for each of {count:,}" if count else ""
        print(
            f"  {phase:8} {length / 3600:8.2f} h, {held / DAY:9.2f} gpu-days, "
            f"{100 * (held / planned - 1):+.1f} % of its share{anew}; "
            f"driver {cpu:6.1f} s{each} ({100 * cpu / max(length, 1e-9):.3f} % of its time)"
        )
    for fidelity in sorted({trial.fidelity for trial in trials}):
        of = [trial for trial in trials if trial.fidelity == fidelity]
        states = {s: sum(t.state == s for t in of) for s in ("done", "failed", "waiting")}
        print(f"  {fidelity:12} " + ", ".join(f"{number} {s}" for s, number in states.items()))


def main() -> None:
    """Simulate the budgets asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=512)
    parser.add_argument("--gpu-days", type=float, action="append")
    parser.add_argument("--failures", type=float, default=6.5, help="Per 1,000 node-days.")
    parser.add_argument("--slower", type=float, default=SLOWER, help="Than was measured.")
    parser.add_argument("--mixed", action="store_true", help="Half of the nodes are older ones.")
    parser.add_argument("--quick", action="store_true", help="Without judging one by one.")
    parser.add_argument("--sampler", default="random")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for gpu_days in options.gpu_days or [50.0, 5000.0]:
        simulate(
            options.devices,
            gpu_days,
            failures=options.failures,
            seed=options.seed,
            sampler=options.sampler,
            slower=options.slower,
            mixed=options.mixed,
            quick=options.quick,
        )


if __name__ == "__main__":
    main()
