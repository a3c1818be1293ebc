"""Successive halving from the bottom: the sampler fills the lowest rung, the best go up."""

from __future__ import annotations

from collections.abc import Mapping

from search.record import Record, Trial
from search.results import losses_of
from search.run_folder import RunSettings
from search.scheduling.judging import make_proposer
from search.scheduling.promotion import Promotions
from search.scheduling.trials import Choice
from searchspace.space import SearchSpace


class Halving:
    """Chooses what to train alone next, over rungs of fidelity (see `Promotions`).

    A promotion where one is due, else a new network for the lowest rung: the sampler learns from
    the results there, and from no other rung.

    Args:
        record: Of the run.
        space: What may be proposed.
        settings: Sampler, objectives and seed.
        rungs: Epochs of the rungs by fidelity, ascending.

    Attributes:
        ran_dry: Whether the last call of `next` found nothing: the space is used up, or networks
            must end before others can go up.
    """

    def __init__(
        self, record: Record, space: SearchSpace, settings: RunSettings, rungs: Mapping[str, int]
    ) -> None:
        self._epochs = dict(rungs)
        self._lowest, *_ = self._epochs
        self._objectives = settings.objectives
        trials = record.trials()
        self._promotions = Promotions(
            trials,
            base=None,
            rungs=list(self._epochs),
            objectives=settings.objectives,
            limits=settings.measured_limits,
        )
        begun = [trial for trial in trials if trial.fidelity == self._lowest]
        settled = [trial for trial in begun if trial.state in ("done", "failed")]
        self._proposer = make_proposer(space, settings, settled)
        self._proposer.exclude(trial.architecture for trial in begun)
        self.ran_dry = False

    def next(self) -> Choice | None:
        """Choose a network and its epochs; None if there is none now."""
        promoted = self._promotions.next()
        if promoted is not None:
            return Choice(architecture=promoted[0], epochs=self._epochs[promoted[1]])
        proposed = self._proposer.ask()
        self.ran_dry = proposed is None
        if proposed is None:
            return None
        return Choice(architecture=proposed, epochs=self._epochs[self._lowest])

    def note(self, trial: Trial) -> None:
        """Take in a trial that has ended."""
        self._promotions.note(trial)
        if trial.fidelity == self._lowest and trial.state in ("done", "failed"):
            self._proposer.tell(trial.architecture, losses_of(trial, self._objectives))
