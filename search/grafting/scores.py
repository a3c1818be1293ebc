"""What parts cost in accuracy: how far the teacher's logits move when one of them is put in.

The score of a replacement is the KL of the teacher's logits from those of the teacher with it
alone, in nats, on held-out images. The score of a network is the sum over what it replaces; `PAIRS`
adds for every two of them what two together cost beyond their sum: as measured for those that were,
and the mean of those for all others.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from search.record import Trial
from search.results import SUPERNET
from searchspace.architecture import Architecture
from searchspace.graft_space import Replacement, replacements

# The names of the two as estimators; more is better, so they are negative sums.
SUM, PAIRS = "sum of scores", "sum with pairs"
ESTIMATES = (SUM, PAIRS)
# That of a network that was assembled and judged as it is. It tells apart what accuracy, which
# counts images, calls equal.
KL = "KL as assembled"


@dataclass(frozen=True, slots=True)
class GraftScores:
    """The scores of a graft's replacements.

    Attributes:
        teacher: What is replaced in.
        singles: KL in nats of each replacement alone.
        pairs: What two together cost beyond their sum, where that was measured.
    """

    teacher: Architecture
    singles: Mapping[Replacement, float]
    pairs: Mapping[frozenset[Replacement], float]

    def total(self, architecture: Architecture, *, with_pairs: bool = False) -> float | None:
        """Add up the scores of a network, in nats; None where one is not known."""
        found = replacements(self.teacher, architecture)
        if any(one not in self.singles for one in found):
            return None
        total = sum(self.singles[one] for one in found)
        if with_pairs and self.pairs:
            usual = sum(self.pairs.values()) / len(self.pairs)
            couples = map(frozenset, itertools.combinations(found, 2))
            total += sum(self.pairs.get(couple, usual) for couple in couples)
        return total

    def estimates(self, architecture: Architecture) -> dict[str, float]:
        """Return both estimates of a network by their names; none where a score is not known."""
        plain = self.total(architecture)
        paired = self.total(architecture, with_pairs=True)
        if plain is None or paired is None:
            return {}
        return {SUM: -plain, PAIRS: -paired}


def graft_scores(trials: Sequence[Trial], teacher: Architecture) -> GraftScores:
    """Read the scores from the networks that were judged as they are.

    Args:
        trials: Of the run.
        teacher: The trained network's architecture.
    """
    singles: dict[Replacement, float] = {}
    couples: dict[frozenset[Replacement], float] = {}
    for trial in trials:
        if not is_assembled(trial):
            continue
        found = replacements(teacher, trial.architecture)
        if len(found) == 1:
            singles[found[0]] = trial.measured.kl
        elif len(found) == 2:
            couples[frozenset(found)] = trial.measured.kl
    pairs = {
        couple: kl - sum(singles[one] for one in couple)
        for couple, kl in couples.items()
        if couple <= singles.keys()
    }
    return GraftScores(teacher, singles, pairs)


def is_assembled(trial: Trial) -> bool:
    """Tell whether a trial is that of a network of parts that was judged as it is."""
    return trial.fidelity == SUPERNET and trial.state == "done" and trial.measured.has("kl")
