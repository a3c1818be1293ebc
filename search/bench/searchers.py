"""``search bench``: searchers side by side on one problem, the share of the hypervolume they reach.

A searcher is a name of `search.sampling.asking.SAMPLERS`, used as ``search run`` uses it: without
repeats. ``optuna-<name>`` is the sampler as it is in Optuna, where repeats cost evaluations;
``plain-guided`` is the guided sampler that knows nothing about the space, as any Optuna study
would use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from optuna.samplers import BaseSampler
from scipy.stats import t as student

from search.bench.problems import Problem, problem_by_name
from search.sampling import SAMPLERS, Asking, GuidedSampler, default_sampler

AS_IN_OPTUNA = ("optuna-nsga2", "optuna-nsga3", "optuna-tpe")
PLAIN_GUIDED = "plain-guided"
SEARCHERS = (*SAMPLERS, *AS_IN_OPTUNA, PLAIN_GUIDED)
# Without the GP: its asks take seconds.
DEFAULT_SEARCHERS = (
    "random",
    *AS_IN_OPTUNA,
    "nsga2",
    "nsga3",
    "tpe",
    PLAIN_GUIDED,
    "guided",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One searcher's results.

    Attributes:
        fractions: Of the full hypervolume, of shape (seeds, checkpoints).
        distinct: Share of distinct designs among all that were evaluated, mean over seeds.
    """

    searcher: str
    fractions: np.ndarray[Any, np.dtype[np.float64]]
    distinct: float

    def intervals(self) -> list[tuple[float, float]]:
        """Return for each checkpoint the mean and half of its 95 % interval (Student's t)."""
        count = len(self.fractions)
        means = self.fractions.mean(axis=0)
        if count < 2:
            return [(float(mean), float("nan")) for mean in means]
        spread = self.fractions.std(axis=0, ddof=1) / np.sqrt(count)
        half = student.ppf(0.975, count - 1) * spread
        return [(float(mean), float(h)) for mean, h in zip(means, half, strict=True)]


def compare(
    problem: Problem,
    searchers: Sequence[str],
    *,
    seeds: int,
    checkpoints: Sequence[int],
) -> Iterator[Row]:
    """Run searchers one after another.

    Args:
        problem: What they search.
        searchers: Names of `SEARCHERS`.
        seeds: 0 to this, exclusive.
        checkpoints: Evaluations after which the front is measured, ascending.

    Raises:
        ValueError: For an unknown searcher.
    """
    unknown = sorted(set(searchers) - set(SEARCHERS))
    if unknown:
        raise ValueError(f"Unknown searcher {unknown[0]!r}. Known: {', '.join(SEARCHERS)}.")
    return _compared(problem, searchers, seeds, checkpoints)


def _compared(
    problem: Problem, searchers: Sequence[str], seeds: int, checkpoints: Sequence[int]
) -> Iterator[Row]:
    for searcher in searchers:
        fractions, distinct = [], []
        for seed in range(seeds):
            designs = search(problem, searcher, seed=seed, evaluations=checkpoints[-1])
            fractions.append([problem.fraction(designs[:count]) for count in checkpoints])
            keys = {problem.space.key(design) for design in designs}
            distinct.append(len(keys) / len(designs))
        yield Row(
            searcher=searcher, fractions=np.array(fractions), distinct=float(np.mean(distinct))
        )


def search(problem: Problem, searcher: str, *, seed: int, evaluations: int) -> list[Any]:
    """Return the designs that a searcher evaluates, in order; fewer if the space is used up."""
    sampler: str | BaseSampler = searcher
    if searcher in AS_IN_OPTUNA:
        sampler = default_sampler(searcher.removeprefix("optuna-"), seed=seed)
    elif searcher == PLAIN_GUIDED:
        sampler = GuidedSampler(seed=seed)
    asking = Asking(problem.space, sampler=sampler, seed=seed, num_losses=len(problem.losses))
    designs = []
    for _ in range(evaluations):
        if searcher in AS_IN_OPTUNA:
            one = asking.ask_with_repeats()
        else:
            found = asking.ask()
            if found is None:
                break
            one = found
        asking.tell(one, problem.observe(one.design).tolist())
        designs.append(one.design)
    return designs


def print_table(
    problem: str | None,
    *,
    table: Path | None,
    searchers: Sequence[str] | None,
    seeds: int,
    evaluations: int,
    line: Callable[[str], None],
) -> None:
    """Write the table in Markdown, each line as soon as it is known.

    Args:
        problem: One of `search.bench.problems.PROBLEMS`; None for NAS-Bench-Macro where there is a
            table, else for a synthetic one.
        table: The file of a problem that is a published table, if it is not in ../shared/bench.
        searchers: Names of `SEARCHERS`; None for `DEFAULT_SEARCHERS`.
        seeds: Runs of each.
        evaluations: Of each run; fronts are measured after an eighth, a quarter, a half and all.
        line: Called with every line.

    Raises:
        ValueError: For an unknown problem or searcher, or a file that is not the table.
    """
    name = problem or ("rugged-6x5" if table is None else "nas-bench-macro")
    chosen = problem_by_name(name, table)
    checkpoints = sorted({max(evaluations // part, 1) for part in (8, 4, 2, 1)})
    rows = compare(chosen, searchers or DEFAULT_SEARCHERS, seeds=seeds, checkpoints=checkpoints)
    line(
        f"{chosen.name}: hypervolume of {' and '.join(chosen.losses)} as a share of "
        f"{chosen.full_is}, mean of {seeds} seeds ± half of its 95 % interval (worst seed).\n"
    )
    columns = ["searcher", *(f"@{count}" for count in checkpoints), f"distinct of {evaluations}"]
    line(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        worst = row.fractions.min(axis=0)
        cells = [
            f"{mean:.4f} ± {half:.4f} ({least:.4f})"
            for (mean, half), least in zip(row.intervals(), worst, strict=True)
        ]
        line(f"| {row.searcher} | {' | '.join(cells)} | {row.distinct:.0%} |")
