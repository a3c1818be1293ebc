"""What trials cost: by the plan's model, corrected by what they have really taken."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping

from search.plan import Plan, StepModel
from search.record import Trial
from search.results import trial_fidelities

# A trial hangs that takes so many times longer than predicted, or than any other took between two
# epochs. Predictions from measured steps alone may be far off.
HANG_FACTOR = 3.0
HANG_FACTOR_AT_FIRST = 10.0
MIN_KNOWN = 5
# The latest say most: the machine may be busier than it was.
LATEST = 100


class TrialCosts:
    """Predicts the device-seconds of trials, corrected by what they really take.

    One that is under way counts from its first epoch on: a plan that is far off is known to be when
    an epoch has passed, and not when a trial has.

    Args:
        plan: For the measured step times and the rungs.
        trials: Of any fidelity; those that were done in one attempt teach.
    """

    def __init__(self, plan: Plan, trials: Iterable[Trial]) -> None:
        self._plan, self._model = plan, StepModel(plan.step_seconds)
        # By epochs. A run's last training may be shorter than any of the plan.
        self._ratios: defaultdict[int, deque[float]] = defaultdict(_latest)
        # Without what workers took to start, which the first trials of a phase wait for.
        self._trainings: defaultdict[int, deque[float]] = defaultdict(_latest)
        self._silences: defaultdict[int, deque[float]] = defaultdict(_latest)
        # Of trials under way, by their numbers.
        self._coming: defaultdict[int, dict[int, float]] = defaultdict(dict)
        self._coming_trainings: defaultdict[int, dict[int, float]] = defaultdict(dict)
        self._medians: dict[tuple[int, int], float | None] = {}
        rungs = trial_fidelities(plan)
        for trial in trials:
            if trial.fidelity in rungs and trial.state == "done" and trial.num_attempts == 1:
                self.add(trial.macs, rungs[trial.fidelity], trial.seconds)

    @property
    def has_ended(self) -> bool:
        """Whether any training has taught what it takes."""
        return any(self._ratios.values())

    def add(self, macs: int, epochs: int, seconds: float) -> None:
        """Learn from a trial that took ``seconds``."""
        self._ratios[epochs].append(seconds / self.planned(macs, epochs))
        self._medians.clear()

    def foresee(
        self, trial_id: int, macs: int, epochs: int, *, training: float, start: float
    ) -> None:
        """Learn from a trial under way, whose epochs so far foretell its whole training.

        Args:
            training: Device-seconds that all its epochs will take.
            start: Device-seconds that its workers took to start.
        """
        planned = self.planned(macs, epochs)
        self._coming[epochs][trial_id] = (start + training) / planned
        self._coming_trainings[epochs][trial_id] = training / planned
        self._medians.clear()

    def forget(self, trial_id: int, epochs: int) -> None:
        """Take back what a trial under way has taught: it has ended."""
        for coming in (self._coming, self._coming_trainings):
            coming[epochs].pop(trial_id, None)
        self._medians.clear()

    def add_training(self, macs: int, epochs: int, seconds: float) -> None:
        """Learn from a trial whose training itself took ``seconds``."""
        self._trainings[epochs].append(seconds / self.planned(macs, epochs))
        self._medians.clear()

    def add_silence(self, macs: int, epochs: int, seconds: float) -> None:
        """Learn from a trial that was silent for ``seconds`` at most."""
        self._silences[epochs].append(seconds / self.planned(macs, epochs))

    def predict(self, macs: int, epochs: int) -> float:
        """Return device-seconds; a rung without results goes by the others'."""
        return self.planned(macs, epochs) * (
            self._median(self._ratios, self._coming, epochs) or 1.0
        )

    def predict_training(self, macs: int, epochs: int) -> float:
        """Return the seconds of a training once its worker is ready, for a time limit.

        Without any that was seen from its beginning it is what the device is charged for.
        """
        ratio = self._median(self._trainings, self._coming_trainings, epochs)
        return self.predict(macs, epochs) if ratio is None else self.planned(macs, epochs) * ratio

    def longest_silence(self, macs: int, epochs: int) -> float:
        """Return the longest seconds between two epochs to expect, as seen so far."""
        known = self._silences[epochs]
        if len(known) < MIN_KNOWN:
            return math.inf
        return self.planned(macs, epochs) * max(known)

    def hang_factor(self, epochs: int) -> float:
        """Return how many times longer than predicted a trial of a rung may take."""
        known = len(self._ratios[epochs]) >= MIN_KNOWN
        return HANG_FACTOR if known else HANG_FACTOR_AT_FIRST

    def _median(
        self,
        ended: Mapping[int, Iterable[float]],
        coming: Mapping[int, Mapping[int, float]],
        epochs: int,
    ) -> float | None:
        """Return the median ratio of a rung, or of all where it has none; None without any."""
        key = (id(ended), epochs)
        if key not in self._medians:
            found = {e: [*ended.get(e, ()), *coming.get(e, {}).values()] for e in {*ended, *coming}}
            known = found.get(epochs) or [ratio for ratios in found.values() for ratio in ratios]
            self._medians[key] = statistics.median(known) if known else None
        return self._medians[key]

    def planned(self, macs: int, epochs: int) -> float:
        """Return device-seconds by the measured steps alone."""
        steps = self._plan.trial_steps * epochs / self._plan.trial_epochs
        return self._model(macs) * steps * self._plan.images_of(epochs)


def _latest() -> deque[float]:
    return deque(maxlen=LATEST)
