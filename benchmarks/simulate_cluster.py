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
import random
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.simulation.devices import DAY, SLOWER, Simulation
from benchmarks.simulation.job import JUDGE_SECONDS, SUPERNET_RATE, TRAIN_IMAGES, plan_for
from benchmarks.simulation.phases import (
    START_SECONDS,
    hold_judges,
    run_judges,
    run_trials,
    train_supernet,
)
from search.plan import PHASES, Plan, revise_plan
from search.record.record import Record
from search.results.fidelity import SUPERNET, rung_fidelities
from search.run_folder.settings import RunSettings
from search.scheduling.judging import Judging
from search.scheduling.promotion import Promotions
from search.scheduling.trial_costs import TrialCosts
from search.scheduling.trials import Choice, TrialRunner
from searchspace.spec_file import load_space


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
