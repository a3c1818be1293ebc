"""Which architecture to judge next: an Optuna sampler, made free of repeats.

The study is rebuilt from the run's results at every start, so a resumed search is the same code as
a new one. Proposals are canonical architectures, inside the space's rules and limits, and distinct
from everything that is known; what a sampler proposes again or wrongly costs no evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.storages import RDBStorage
from sqlalchemy.pool import NullPool

from search.sampling.asking import SAMPLERS, Asking, study_trial
from search.sampling.design_space import DesignSpace, Draw, draw
from searchspace.architecture import Architecture
from searchspace.space import SearchSpace

__all__ = ["SAMPLERS", "Mirror", "Proposer", "design_space"]

KnownLosses = Callable[[Architecture], Sequence[float | None]]


def design_space(
    space: SearchSpace, *, known_losses: KnownLosses = lambda architecture: ()
) -> DesignSpace[Architecture]:
    """Describe a space of architectures to a sampler.

    Args:
        space: Its rules and limits are constraints that cost no evaluation.
        known_losses: For each loss its value where it is closed-form, None where it is not.
    """
    distributions: dict[str, CategoricalDistribution] = {}

    def distribution_of(name: str, options: Sequence[Any]) -> CategoricalDistribution:
        # One object a name: comparing two is what would take the sampler's time.
        if name not in distributions:
            distributions[name] = CategoricalDistribution(tuple(options))
        return distributions[name]

    return DesignSpace(
        walk=lambda choose: space.build(
            lambda name, options: choose(name, distribution_of(name, options))
        ),
        key=lambda architecture: architecture,
        is_allowed=lambda architecture: space.violation(architecture) is None,
        known_losses=known_losses,
    )


class Proposer:
    """Ask for architectures and tell their losses; also those that somebody else chose.

    Args:
        space: What may be proposed.
        sampler: One of `SAMPLERS`.
        seed: Of the sampler; see `Asking`.
        num_losses: Number of objectives, all minimised.
        known: Architectures with their losses (None where judging failed) from earlier.
        known_losses: See `design_space`; the guided sampler does not predict what is known.

    Raises:
        ValueError: For an unknown sampler.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        sampler: str,
        seed: int,
        num_losses: int,
        known: Iterable[tuple[Architecture, Sequence[float] | None]] = (),
        known_losses: KnownLosses = lambda architecture: (),
    ) -> None:
        self.space = space
        self._designs = design_space(space, known_losses=known_losses)
        self._asking = Asking(
            self._designs,
            sampler=sampler,
            seed=seed,
            num_losses=num_losses,
            known=[(self._draw_of(architecture), losses) for architecture, losses in known],
        )

    def ask(self) -> Architecture | None:
        """Propose a new architecture, or None when all of the space is known."""
        found = self._asking.ask()
        return None if found is None else found.design

    def exclude(self, architectures: Iterable[Architecture]) -> None:
        """Do not propose these; somebody else has them judged."""
        self._asking.exclude(architectures)

    def tell(self, architecture: Architecture, losses: Sequence[float] | None) -> None:
        """Report the losses of any architecture; None when it could not be judged."""
        # Finding its choices takes as long as proposing it.
        if not self._asking.answer(architecture, losses):
            self._asking.tell(self._draw_of(architecture), losses)

    def _draw_of(self, architecture: Architecture) -> Draw[Architecture]:
        return draw_of(self.space, self._designs, architecture)


def draw_of(
    space: SearchSpace, designs: DesignSpace[Architecture], architecture: Architecture
) -> Draw[Architecture]:
    """Find the choices that lead to an architecture."""
    choices = space.choices_of(architecture)
    return draw(designs, lambda name, distribution: choices[name])


class Mirror:
    """The same results as an Optuna study in an SQLite file, for optuna-dashboard.

    The run's record is the truth; this is a copy, brought up to date by `add`. Use it as a context
    manager, which closes the file.
    """

    def __init__(self, path: Path, *, name: str, losses: Sequence[str]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # A connection ends with its use: a file that cannot be read leaves none open.
        self._storage = RDBStorage(f"sqlite:///{path}", engine_kwargs={"poolclass": NullPool})
        self._study = optuna.create_study(
            storage=self._storage,
            study_name=name,
            directions=["minimize"] * len(losses),
            load_if_exists=True,
        )
        self._study.set_user_attr("losses", list(losses))
        trials = self._study.get_trials(deepcopy=False)
        self._present = {trial.user_attrs["architecture"]: trial.values for trial in trials}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._storage.remove_session()
        self._storage.engine.dispose()

    def add(
        self,
        space: SearchSpace,
        results: Iterable[tuple[Architecture, Sequence[float]]],
    ) -> None:
        """Add the results that the file does not hold yet.

        Raises:
            ValueError: If it holds others for the same architectures.
        """
        new = []
        for architecture, losses in results:
            if architecture.key not in self._present:
                new.append((architecture, losses))
            elif self._present[architecture.key] != list(losses):
                raise ValueError(f"The study has other results of {architecture.key}.")
        designs = design_space(space)
        self._study.add_trials(
            [
                study_trial(
                    draw_of(space, designs, architecture),
                    losses,
                    user_attrs={"architecture": architecture.key},
                )
                for architecture, losses in new
            ]
        )
        self._present |= {architecture.key: list(losses) for architecture, losses in new}
