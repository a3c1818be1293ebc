"""Judging with inherited weights: what the warm judges are given, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from search.executor import Outcome
from search.plan import PHASES
from search.promotion import known_losses, losses_of
from search.proposer import Proposer
from search.record import Record
from search.results import SUPERNET
from search.settings import RunSettings
from search.trials import MAX_ATTEMPTS
from searchspace.architecture import Architecture
from searchspace.cost import count
from searchspace.space import SearchSpace

PACE_SHARE = 0.2
SAFETY = 1.3
MARGIN_SECONDS = 0.2


class Judging:
    """Asks the sampler and tells it results, while the budget spent stays below a limit.

    Args:
        record: Of the run; every hand-out and every result is written at once.
        space: What may be proposed.
        settings: Sampler, objectives and seed.
        phase: What the judges' time is charged to.
        first: Architectures to judge before the sampler's proposals.
        limit_seconds: The budget spent may not pass this.
        judge_seconds: Expected device-seconds of one judgement; corrected by what is measured.
        num_judges: How many work at the same time.
        interrupted: Whether the user asked to stop.
    """

    def __init__(
        self,
        *,
        record: Record,
        space: SearchSpace,
        settings: RunSettings,
        phase: str,
        first: Sequence[Architecture],
        limit_seconds: float,
        judge_seconds: float,
        num_judges: int,
        interrupted: Callable[[], bool],
    ) -> None:
        self._record, self._settings, self._phase = record, settings, phase
        self._limit, self._pace, self._num_judges = limit_seconds, judge_seconds, num_judges
        self._interrupted = interrupted
        known = record.trials(fidelity=SUPERNET)
        settled = {trial.key for trial in known if trial.state in ("done", "failed")}
        self._waiting = [trial.architecture for trial in known if trial.state == "waiting"]
        self._waiting += [architecture for architecture in first if architecture.key not in settled]
        self._proposer = Proposer(
            space,
            sampler=settings.sampler,
            seed=settings.seed,
            num_losses=len(settings.objectives),
            known=[(t.architecture, losses_of(t, settings.objectives)) for t in known],
            known_losses=lambda architecture: known_losses(architecture, settings.objectives),
        )
        self._proposer.exclude(self._waiting)
        self._running: dict[str, tuple[int, int]] = {}  # key: trial, attempt

    def ask(self) -> Architecture | None:
        """Hand out an architecture; None when the user stops, or budget or space are used up."""
        # What is under way and this one, with room for a slow moment.
        expected = SAFETY * self._pace * (len(self._running) + self._num_judges) + MARGIN_SECONDS
        if self._interrupted() or self._record.spent(PHASES) + expected > self._limit:
            return None
        while self._waiting and self._waiting[0].key in self._running:
            self._waiting.pop(0)
        architecture = self._waiting.pop(0) if self._waiting else self._proposer.ask()
        if architecture is None:
            return None
        cost = count(architecture)
        number = self._record.add_architecture(architecture, params=cost.params, macs=cost.macs)
        trial_id = self._record.add_trial(
            number, fidelity=SUPERNET, seed=self._settings.seed, origin=self._phase
        )
        # The judges are charged as a whole, for as long as they hold their devices.
        attempt = self._record.start_attempt(self._phase, devices=0, trial_id=trial_id)
        self._running[architecture.key] = (trial_id, attempt)
        return architecture

    def tell(
        self,
        architecture: Architecture,
        outcome: Outcome,
        values: dict[str, float],
        cause: str | None,
    ) -> None:
        """Write a result; what was lost with its judge is handed out again, a few times."""
        trial_id, attempt = self._running.pop(architecture.key)
        if outcome == "lost" and self._record.trial(trial_id).num_attempts >= MAX_ATTEMPTS:
            outcome, cause = "failed", f"lost {MAX_ATTEMPTS} times; last: {cause}"
        self._record.finish_attempt(attempt, outcome=outcome, values=values or None, cause=cause)
        if outcome == "lost":
            self._waiting.append(architecture)
            return
        if values:
            self._pace += (values["seconds"] - self._pace) * PACE_SHARE
        trial = self._record.trial(trial_id)
        self._proposer.tell(architecture, losses_of(trial, self._settings.objectives))
