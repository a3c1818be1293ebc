"""Successive halving from the bottom: the sampler fills the lowest rung, the best go up."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from search.plan import ETA
from search.record import Record, Trial
from search.results import PROMOTED_SHARE, losses_of, singles_to_promote
from search.run_folder import RunSettings
from search.scheduling.judging import make_proposer
from search.scheduling.promotion import Promotions
from search.scheduling.trials import Choice
from searchspace.architecture import Architecture
from searchspace.single_mixer import single_mixer_baselines
from searchspace.space import SearchSpace


class Halving:
    """Chooses what to train alone next, over rungs of fidelity (see `Promotions`).

    A promotion where one is due, else a new network for the lowest rung: the sampler learns from
    the results there, and from no other rung. Networks of one mixer at several costs are the first
    there, a quarter of all at most; the best of them go to the highest rung whatever mixes do.

    Args:
        record: Of the run.
        space: What may be proposed.
        settings: Sampler, objectives and seed.
        rungs: Epochs of the rungs by fidelity, ascending.
        num_promoted: Networks that are expected on the highest rung.
        first: For the lowest rung after those of one mixer, before what is proposed.

    Attributes:
        ran_dry: Whether the last call of `next` found nothing: the space is used up, or networks
            must end before others can go up.
    """

    def __init__(
        self,
        record: Record,
        space: SearchSpace,
        settings: RunSettings,
        rungs: Mapping[str, int],
        *,
        num_promoted: int,
        first: Sequence[Architecture] = (),
    ) -> None:
        self._record, self._epochs = record, dict(rungs)
        self._lowest, *_ = self._epochs
        self._objectives, self._limits = settings.objectives, settings.measured_limits
        trials = record.trials()
        self._promotions = Promotions(
            trials,
            base=None,
            rungs=list(self._epochs),
            objectives=settings.objectives,
            limits=self._limits,
        )
        begun = [trial for trial in trials if trial.fidelity == self._lowest]
        self._proposer = make_proposer(space, settings, begun)
        self.ran_dry = False
        begun_keys = {trial.key for trial in begun}
        settled_keys = {trial.key for trial in begun if trial.state in ("done", "failed")}
        self._num_promoted = num_promoted
        # So many times more networks are on the lowest rung.
        most = num_promoted * ETA ** (len(self._epochs) - 1) // PROMOTED_SHARE
        singles = single_mixer_baselines(space)[:most]
        wanted = {one.key: one for one in (*singles, *first)}
        self._first = deque(one for one in wanted.values() if one.key not in begun_keys)
        self._proposer.exclude(self._first)
        self._unsettled = {one.key for one in singles} - settled_keys
        if singles and not self._unsettled:
            self._promote_singles()

    def next(self) -> Choice | None:
        """Choose a network and its epochs; None if there is none now."""
        promoted = self._promotions.next()
        if promoted is not None:
            return Choice(architecture=promoted[0], epochs=self._epochs[promoted[1]])
        proposed = self._first.popleft() if self._first else self._proposer.ask()
        self.ran_dry = proposed is None
        if proposed is None:
            return None
        return Choice(architecture=proposed, epochs=self._epochs[self._lowest])

    def note(self, trial: Trial) -> None:
        """Take in a trial that has ended."""
        self._promotions.note(trial)
        if trial.fidelity == self._lowest and trial.state in ("done", "failed"):
            self._proposer.tell(trial.architecture, losses_of(trial, self._objectives))
            if trial.key in self._unsettled:
                self._unsettled.remove(trial.key)
                if not self._unsettled:
                    self._promote_singles()

    def _promote_singles(self) -> None:
        """Let the best of one mixer at several costs go to the highest rung."""
        *_, highest = self._epochs
        if highest != self._lowest:
            singles = singles_to_promote(
                self._record.trials(),
                fidelity=self._lowest,
                num_promoted=self._num_promoted,
                limits=self._limits,
            )
            self._promotions.put_first(singles, highest)
