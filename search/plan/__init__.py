"""What a budget buys: the plan, the times it comes from, and the plan in words."""

from search.plan.in_words import (
    climbing_text,
    device_rate,
    horizon_text,
    idle_devices,
    library_text,
    more_text,
    plan_warnings,
    supernet_text,
)
from search.plan.inputs import SUPERNET_SHARD, PlanInputs, supernet_batch
from search.plan.making import make_plan
from search.plan.plan import END_SECONDS, END_SHARE, MorePlan, Plan
from search.plan.revising import START_RESERVE, revise_plan
from search.plan.rungs import ETA, MAX_EPOCHS, MAX_TRUST
from search.plan.shares import HORIZON, PHASES, SHARES, climbing_phase, split_shares
from search.plan.step_times import StepModel, StepTimes

__all__ = [
    "END_SECONDS",
    "END_SHARE",
    "ETA",
    "HORIZON",
    "MAX_EPOCHS",
    "MAX_TRUST",
    "PHASES",
    "SHARES",
    "START_RESERVE",
    "SUPERNET_SHARD",
    "MorePlan",
    "Plan",
    "PlanInputs",
    "StepModel",
    "StepTimes",
    "climbing_phase",
    "climbing_text",
    "device_rate",
    "horizon_text",
    "idle_devices",
    "library_text",
    "make_plan",
    "more_text",
    "plan_warnings",
    "revise_plan",
    "split_shares",
    "supernet_batch",
    "supernet_text",
]
