"""The horizon: a few networks are trained on, to see how the ranking changes with epochs."""

from __future__ import annotations

from collections.abc import Sequence

from search.phases.alone import train_alone
from search.phases.session import Session
from search.plan import HORIZON, Plan
from search.results import trial_fidelities
from search.scheduling import Choice
from searchspace.architecture import Architecture


def train_on(session: Session, plan: Plan, networks: Sequence[Architecture]) -> None:
    """Train the first of these networks to the plan's horizon, and then on each of its rungs.

    They are not chosen by their accuracy: the best of a short training would be worse again by
    chance alone. Every training has a schedule of its own, so each is one to the end.

    Args:
        networks: Of different mixers.
    """
    if not plan.horizon_epochs:
        return
    longest_first = sorted(trial_fidelities(plan).items(), key=lambda item: -item[1])
    known = {(trial.key, trial.fidelity) for trial in session.record.trials()}
    remaining = [
        Choice(architecture=network, epochs=epochs)
        for fidelity, epochs in longest_first
        for network in networks[: plan.num_horizon]
        if (network.key, fidelity) not in known
    ]
    train_alone(session, plan, HORIZON, lambda: remaining.pop(0) if remaining else None)
