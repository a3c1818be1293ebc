"""Which network is worth the next, dearer judgement: rungs of fidelity, climbed by the best."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from search.plan import ETA
from search.record import Trial
from search.results import is_within, losses_of, promotion_order, quality_of
from searchspace.architecture import Architecture

# A level is sorted anew when so many more of it are done: with thousands, sorting takes a moment.
RESORT_SHARE = 0.005


class Promotions:
    """Asynchronous successive halving with several objectives, over rungs of fidelity.

    Whenever a device is free, the highest rung that has a network to promote does so; where none
    has, the best network of the base that no rung knows enters the lowest rung, so no device ever
    waits for a rung to fill (ASHA, Li et al. 2020, https://arxiv.org/abs/1810.05934, Alg. 2).
    Without a base, networks enter the lowest rung from elsewhere.
    Once the base has no more, the best of a rung go up beyond its share instead of leaving budget
    unspent: on a small space, or with a budget that trains more networks than were judged.
    Inside a rung, a network is promoted if it is among the best 1/eta of those that *finished*
    there, in the order of `search.results.promotion_order`, and only while no more than 1/eta of
    the rung went up: early orders change, and each change would send more of them (the delayed
    promotion of Hyper-Tune, Li et al. 2022, https://arxiv.org/abs/2201.06834, Sec. 4.2).
    Fidelities are never compared with each other, and what was stopped or failed is not in any
    order.

    Args:
        trials: All of the run.
        base: Fidelity from which the lowest rung is filled; None where that is done elsewhere.
        rungs: Fidelities, the cheapest first.
        objectives: Of the run; see `losses_of`.
        limits: Upper limits of costs; what is beyond them is not promoted.
        forecast: Foretells an accuracy in percent from the trials of one network, the cheapest
            first; networks on rungs are sorted by it. None takes what the last has measured.
        first: Networks and rungs that are chosen before all else, unless they are there already.
        eta: One of so many networks is promoted.
    """

    def __init__(
        self,
        trials: Iterable[Trial],
        *,
        base: str | None,
        rungs: Sequence[str],
        objectives: Sequence[str],
        limits: Mapping[str, float] | None = None,
        forecast: Callable[[Sequence[Trial]], float] | None = None,
        first: Iterable[tuple[Architecture, str]] = (),
        eta: int = ETA,
    ) -> None:
        levels = (*rungs,) if base is None else (base, *rungs)
        if not rungs or len(set(levels)) != len(levels):
            raise ValueError(
                f"Promotion needs at least one rung, and different ones, got {base!r} and "
                f"{tuple(rungs)!r}."
            )
        self._levels, self._has_base = levels, base is not None
        self._objectives, self._eta, self._limits = objectives, eta, limits or {}
        self._first, self._forecast = deque(first), forecast
        self._done: dict[str, dict[str, Trial]] = {level: {} for level in self._levels}
        self._known: dict[str, set[str]] = {level: set() for level in self._levels}
        # At each level: what has not gone up, the best last; how many were done when it was sorted.
        self._ready: dict[str, list[Trial]] = {level: [] for level in self._levels}
        self._sorted_at = dict.fromkeys(self._levels, -1)
        for trial in trials:
            self.note(trial)

    def note(self, trial: Trial) -> None:
        """Take in a trial in its present state, e.g. when it has ended."""
        if trial.fidelity not in self._known:
            return
        self._known[trial.fidelity].add(trial.key)
        if trial.state == "done" and is_within(trial, self._limits):
            self._done[trial.fidelity].setdefault(trial.key, trial)

    def put_first(self, networks: Iterable[Architecture], rung: str) -> None:
        """Choose these before all else, unless they are on the rung already."""
        self._first.extend((architecture, rung) for architecture in networks)

    def next(self) -> tuple[Architecture, str] | None:
        """Choose a network and its rung, and remember that it was chosen; None if all were."""
        while self._first:
            architecture, rung = self._first.popleft()
            if architecture.key not in self._known[rung]:
                self._known[rung].add(architecture.key)
                return architecture, rung
        chosen = self._choose(beyond_share=False)
        if chosen is None and self._has_base:
            chosen = self._choose(beyond_share=True)
        return chosen

    def _choose(self, *, beyond_share: bool) -> tuple[Architecture, str] | None:
        for index in range(len(self._levels) - 1, 0, -1):
            higher = self._levels[index]
            # From the base as many as there is time for; from a rung the best part of it.
            takes_all = beyond_share or (index == 1 and self._has_base)
            for trial in self._take_ready(index - 1, takes_all=takes_all):
                self._known[higher].add(trial.key)
                return trial.architecture, higher
        return None

    def _take_ready(self, index: int, *, takes_all: bool) -> Iterator[Trial]:
        """Take the best of a level that may go up and has not yet."""
        level, above = self._levels[index], self._levels[index + 1 :]
        num_done = len(self._done[level])
        if not takes_all and len(self._known[self._levels[index + 1]]) >= num_done // self._eta:
            return
        if num_done - self._sorted_at[level] > num_done * RESORT_SHARE:
            self._sorted_at[level] = num_done
            done = list(self._done[level].values())
            self._ready[level] = [done[i] for i in reversed(self._sorted(done, index))]
        num_sorted = self._sorted_at[level]
        beyond = 0 if takes_all else num_sorted - num_sorted // self._eta
        while len(self._ready[level]) > beyond:
            trial = self._ready[level].pop()
            if not any(trial.key in self._known[higher] for higher in above):
                yield trial

    def _sorted(self, done: Sequence[Trial], index: int) -> list[int]:
        if not done:
            return []
        points = np.array([losses_of(trial, self._objectives) for trial in done], dtype=float)
        quality = quality_of(self._objectives)
        is_rung = index > 0 or not self._has_base
        if self._forecast is not None and quality is not None and is_rung:
            own = [[*self._below(trial.key, index), trial] for trial in done]
            foretold = [100.0 - self._forecast(trials) for trials in own]
            points[:, list(self._objectives).index(quality)] = foretold
        return promotion_order(done, points, self._objectives)

    def _below(self, key: str, index: int) -> list[Trial]:
        """Return the trials of a network on the levels below one."""
        lower = (self._done[level] for level in self._levels[:index])
        return [done[key] for done in lower if key in done]
