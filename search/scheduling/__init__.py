"""What is handed out next, within the budget. No Ray, no torch."""

from search.scheduling.looks import AwakeClock, Looks, late_seconds
from search.scheduling.promotion import Promotions
from search.scheduling.tasks import (
    START_SECONDS,
    BudgetSpent,
    Judgement,
    Outcome,
    TrialSource,
    TrialTask,
    Work,
    checkpoint_name,
    end_if_spoilt,
    ending_spoilt,
    is_of_others,
    last_line,
    outcome_of_error,
)
from search.scheduling.trial_costs import TrialCosts
from search.scheduling.trials import MAX_LOST, Choice, TrialRunner

__all__ = [
    "MAX_LOST",
    "START_SECONDS",
    "AwakeClock",
    "BudgetSpent",
    "Choice",
    "Judgement",
    "Looks",
    "Outcome",
    "Promotions",
    "TrialCosts",
    "TrialRunner",
    "TrialSource",
    "TrialTask",
    "Work",
    "checkpoint_name",
    "end_if_spoilt",
    "ending_spoilt",
    "is_of_others",
    "last_line",
    "late_seconds",
    "outcome_of_error",
]
