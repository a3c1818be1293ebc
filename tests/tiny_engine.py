"""What the engine's tests drive it with: a clock, a plan, trials and judgements."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from search.plan import Plan, PlanInputs, make_plan
from search.record import Measured
from search.record.record import Record
from search.run_folder.settings import RunSettings
from search.scheduling.judging import Judging
from search.scheduling.tasks import Judgement, Outcome
from search.scheduling.trials import Choice, TrialRunner
from searchspace.architecture import Architecture
from searchspace.space import SearchSpace
from searchspace.spec_file import load_space
from tests.clock import Clock

# Two networks: one stage of one block, with kernels of three taps or five.
TWO = """
name: two
img_size: 8
patch_size: 4
stages: [{dim: 8, depth: 1}]
mixers:
  depthwise_conv: {kernel_size: [3, 5]}
"""
SPACE = load_space("digits").replace(num_classes=10)
VALUES = Measured(top1=50.0, correct=5.0, total=10.0, seconds=1.0)


def write_two(folder: Path) -> str:
    """Write the space `TWO` to a file; return its path."""
    path = folder / "two.yaml"
    path.write_text(TWO)
    return str(path)


def plan_of(budget: float = 1000.0) -> Plan:
    """Plan by steps of a tenth of a second, whatever the network."""
    return make_plan(
        PlanInputs(
            budget_seconds=budget,
            devices=2,
            measured_seconds=1,
            supernet_step=0.1,
            trial_step_seconds=[(1_000_000, 0.1), (3_000_000, 0.1)],
            judge_seconds=1.0,
            steps_per_epoch=10,
            max_epochs=2,
            retrain_steps=100,
        )
    )


def endless(seed: int = 0) -> Callable[[], Choice]:
    """Choose random networks, two epochs each."""
    rng = random.Random(seed)
    return lambda: Choice(architecture=SPACE.sample(rng), epochs=2)


def runner(
    record: Record,
    tmp_path: Path,
    *,
    limit: float,
    interrupted: Callable[[], bool] = lambda: False,
    clock: Clock | None = None,
    plan: Plan | None = None,
    start_seconds: float = 0.0,
    draws: int = 0,
) -> TrialRunner:
    """Hand out trials of the phase of promotion."""
    return TrialRunner(
        record=record,
        plan=plan or plan_of(),
        folder=tmp_path,
        phase="promote",
        seed=0,
        choose=endless(draws),
        limit_seconds=limit,
        interrupted=interrupted,
        on_event=lambda text: None,
        clock=clock or Clock(),
        start_seconds=start_seconds,
    )


def judging_of(
    record: Record,
    *,
    first: Sequence[Architecture] = (),
    beside: Sequence[Architecture] = (),
    limit: float = 1e9,
    pace: float = 1.0,
    judges: int = 1,
    interrupted: Callable[[], bool] = lambda: False,
    proposes: bool = True,
    space: SearchSpace = SPACE,
) -> Judging:
    """Judge random networks of a space, each in ``pace`` expected seconds."""
    return Judging(
        record=record,
        space=space,
        settings=RunSettings(data="digits", budget="1cpu-minute", sampler="random"),
        phase="search",
        first=first,
        beside=beside,
        limit_seconds=limit,
        judge_seconds=pace,
        count_judges=lambda: judges,
        interrupted=interrupted,
        proposes=proposes,
    )


def ask_one(asking: Judging) -> Architecture | None:
    """Ask for one architecture; None where there is none."""
    return next(iter(asking.ask()), None)


def tell_one(
    asking: Judging, architecture: Architecture, outcome: Outcome, cause: str | None = None
) -> None:
    """Tell what became of an architecture."""
    measured = VALUES if outcome == "done" else None
    asking.tell(
        [Judgement(architecture=architecture, outcome=outcome, measured=measured, cause=cause)]
    )
