"""Judging without training: what the warm judges are given, and what becomes of it.

They judge by the supernet's inherited weights, or by a score that needs none (`by`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from search.plan import PHASES
from search.record import AttemptOutcome, Record, Trial
from search.results import SUPERNET, ZERO_COST, known_losses, losses_of
from search.run_folder import RunSettings
from search.sampling import Proposer
from search.scheduling.tasks import Judgement
from search.scheduling.trials import MAX_LOST
from searchspace.architecture import Architecture
from searchspace.cost import count
from searchspace.space import SearchSpace

PACE_SHARE = 0.2
SAFETY = 1.3
MARGIN_SECONDS = 0.2
# Of what is judged, one in so many is of those that are judged beside proposals.
BESIDE_EVERY = 4


def make_proposer(space: SearchSpace, settings: RunSettings, known: Sequence[Trial]) -> Proposer:
    """Build the run's sampler over the trials of one fidelity; their networks are not proposed.

    Those that wait or are under way say nothing yet: told as failed, they would count as bad as the
    worst.
    """
    objectives = settings.objectives
    settled = [trial for trial in known if trial.state in ("done", "failed")]
    proposer = Proposer(
        space,
        sampler=settings.sampler,
        # Another one each time that a network was handed out, though none has ended since.
        seed=settings.seed + len(known) - len(settled),
        num_losses=len(objectives),
        known=[(trial.architecture, losses_of(trial, objectives)) for trial in settled],
        known_losses=lambda architecture: known_losses(architecture, objectives),
    )
    proposer.exclude(trial.architecture for trial in known)
    return proposer


class Judging:
    """Asks the sampler and tells it results, while the budget spent stays below a limit.

    Args:
        record: Of the run; every hand-out and every result is written at once.
        space: What may be proposed.
        settings: Sampler, objectives and seed.
        phase: What the judges' time is charged to.
        first: Architectures to judge before the sampler's proposals.
        beside: Architectures of which one is judged with each `BESIDE_EVERY` - 1 proposals: however
            soon the phase ends, they are no larger a part of what it has judged.
        limit_seconds: The budget spent may not pass this.
        judge_seconds: Expected device-seconds of one judgement; corrected by what is measured.
        count_judges: How many work at the same time, now.
        interrupted: Whether the user asked to stop.
        by: ``supernet``, or the name of a zero-cost score or of a cost.
        proposes: Whether the sampler is asked once the first ones are judged.
        least: Networks with an accuracy that the run is to have, also beyond the limit: judges
            that have started are ended with the budget, and before that they give an answer.

    Attributes:
        ran_dry: Whether the sampler, asked last, had no network left to propose.
    """

    def __init__(
        self,
        *,
        record: Record,
        space: SearchSpace,
        settings: RunSettings,
        phase: str,
        first: Sequence[Architecture],
        beside: Sequence[Architecture] = (),
        limit_seconds: float,
        judge_seconds: float,
        count_judges: Callable[[], int],
        interrupted: Callable[[], bool],
        by: str = SUPERNET,
        proposes: bool = True,
        least: int = 0,
    ) -> None:
        self.by, self._fidelity = by, SUPERNET if by == SUPERNET else ZERO_COST
        self._record, self._settings, self._phase = record, settings, phase
        self._limit, self._pace, self._count_judges = limit_seconds, judge_seconds, count_judges
        self._interrupted = interrupted
        known = record.trials(fidelity=self._fidelity)
        settled = {trial.key for trial in known if trial.state in ("done", "failed")}
        waiting = {trial.key: trial.architecture for trial in known if trial.state == "waiting"}
        waiting |= {a.key: a for a in first if a.key not in settled}
        self._missing = least - sum(trial.state == "done" for trial in known)
        self._waiting = deque(waiting.values())
        self._proposes = proposes
        self._proposer = make_proposer(space, settings, known)
        self._proposer.exclude(self._waiting)
        known_keys = settled | waiting.keys()
        self._beside = deque(a for a in beside if a.key not in known_keys)
        self._proposer.exclude(self._beside)
        self._num_asked = 0  # behind the first ones
        self.ran_dry = False
        self._running: dict[str, tuple[int, int]] = {}  # key: trial, attempt

    def ask(self, count: int = 1) -> list[Architecture]:
        """Hand out up to ``count``; none when the user stops, or budget or space are used up."""
        batch: list[Architecture] = []
        affordable = 0 if self._interrupted() else self._affordable(count)
        while len(batch) < affordable:
            architecture = self._waiting.popleft() if self._waiting else self._next()
            if architecture is None:
                break
            batch.append(architecture)
        with self._record.together():
            for architecture in batch:
                self._running[architecture.key] = self._start(architecture)
        return batch

    def tell(self, judgements: Sequence[Judgement]) -> None:
        """Write results; what was lost with its judge is handed out again, a few times."""
        with self._record.together():
            settled = [(judgement, self._settle(judgement)) for judgement in judgements]
        for judgement, outcome in settled:
            trial_id, _ = self._running.pop(judgement.architecture.key)
            self._missing -= outcome == "done"
            if outcome not in ("done", "failed"):
                self._waiting.append(judgement.architecture)
                continue
            if judgement.measured:
                self._pace += (judgement.measured.seconds - self._pace) * PACE_SHARE
            trial = self._record.trial(trial_id)
            self._proposer.tell(judgement.architecture, losses_of(trial, self._settings.objectives))

    def should_stop(self) -> bool:
        """Tell whether the user asked to stop."""
        return self._interrupted()

    def _next(self) -> Architecture | None:
        """Return a proposal, or in its turn, or when there is none, one of those beside."""
        self._num_asked += 1
        is_their_turn = self._num_asked % BESIDE_EVERY == 0
        found = None if self._beside and is_their_turn else self._propose()
        return self._beside.popleft() if found is None and self._beside else found

    def _propose(self) -> Architecture | None:
        found = self._proposer.ask() if self._proposes else None
        self.ran_dry = self._proposes and found is None
        return found

    def _affordable(self, count: int) -> int:
        """Return how many of ``count`` can be judged before the limit.

        All judges are held until the last of them is done.
        """
        judges = max(self._count_judges(), 1)
        left = self._limit - self._record.spent(PHASES) - MARGIN_SECONDS * judges
        places = left / (SAFETY * self._pace) - len(self._running) - judges
        # The end of a batch of n may keep all other judges waiting for n judgements.
        within = max(1, min(count, int(places / judges))) if places >= 0 else 0
        return max(within, min(count, self._missing - len(self._running)))

    def _start(self, architecture: Architecture) -> tuple[int, int]:
        cost = count(architecture)
        number = self._record.add_architecture(architecture, params=cost.params, macs=cost.macs)
        trial_id = self._record.add_trial(
            number, fidelity=self._fidelity, seed=self._settings.seed, origin=self._phase
        )
        # The judges are charged as a whole, for as long as they hold their devices.
        return trial_id, self._record.start_attempt(self._phase, devices=0, trial_id=trial_id)

    def _settle(self, judgement: Judgement) -> AttemptOutcome:
        trial_id, attempt = self._running[judgement.architecture.key]
        outcome, cause = judgement.outcome, judgement.cause
        ends: AttemptOutcome = outcome if outcome in ("done", "failed") else "lost"
        is_over = self._interrupted() or self._record.spent(PHASES) >= self._limit
        if outcome == "not begun" or (ends == "lost" and is_over):
            ends = "interrupted"
        elif ends == "lost" and self._record.count_lost(trial_id) + 1 >= MAX_LOST:
            ends, cause = "failed", f"lost {MAX_LOST} times; last: {cause}"
        measured = judgement.measured
        self._record.finish_attempt(attempt, outcome=ends, measured=measured, cause=cause)
        return ends
