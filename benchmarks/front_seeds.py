"""What fronts does a budget give, seed by seed? A table of finished runs, or of runs made here.

    python benchmarks/front_seeds.py runs/digits runs/digits-2     # of runs that are there
    python benchmarks/front_seeds.py --seeds 0 1 2 --budget 10cpu-minutes --out runs/seeds

The second makes the runs one after the other by ``search run`` with its defaults. It leaves what is
done as it is, so it goes on where it was stopped.

The front is the one that ``search pareto`` shows. A row has its members, the MACs of the cheapest
and the dearest and their factor, the accuracy of the cheapest and of the best in percent with 95 %
intervals, the kinds of mixer that the members have, how many networks the run trained alone, and
the share of its budget that it spent.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from search.budget import parse_budget
from search.front import FrontQuery, judged_by
from search.results import Candidate, is_trained_alone
from search.run_folder import open_run
from search.terminal import format_count, format_interval

ROOT = Path(__file__).parents[1]
HEADER = (
    "| seed | judged at | members | MACs | factor | cheapest | best | kinds of mixer "
    "| trained alone | spent |\n|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedFront:
    """The front of one run.

    Attributes:
        seed: Of the run.
        members: Of the front, the cheapest first.
        num_alone: Networks that the run trained alone.
        spent_share: Of the budget.
    """

    seed: int
    members: tuple[Candidate, ...]
    num_alone: int
    spent_share: float

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of mixer that members have, by name."""
        stages = (stage for one in self.members for stage in one.architecture.stages)
        return tuple(sorted({mixer.kind for stage in stages for mixer in stage.mixers}))

    @property
    def factor(self) -> float:
        """MACs of the dearest member over those of the cheapest."""
        return self.members[-1].macs / self.members[0].macs


def main(words: Sequence[str] | None = None) -> None:
    """Make the runs that are asked for, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="of runs to make")
    parser.add_argument("--budget", default="10cpu-minutes", help="of each of them")
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"), help="their folder")
    arguments = parser.parse_args(words)
    folders = list(arguments.runs)
    for seed in arguments.seeds:
        folders.append(arguments.out.resolve() / f"seed{seed}")
        make_run(folders[-1], budget=arguments.budget, seed=seed)
    if not folders:
        parser.error("name folders of runs, or --seeds of runs to make")
    print(table([read_front(folder) for folder in folders]))


def make_run(folder: Path, *, budget: str, seed: int) -> None:
    """Run a search, or finish one that was stopped; one that is done is left as it is."""
    if not folder.exists():
        words = ["--budget", budget, "--seed", str(seed), "--out", str(folder)]
    elif is_done(folder):
        return
    else:
        words = ["--resume", "--out", str(folder)]
    subprocess.run([sys.executable, "-m", "search", "run", *words], cwd=ROOT, check=True)


def is_done(folder: Path) -> bool:
    """Tell whether a run has ended."""
    with open_run(folder) as run:
        return run.state.is_done


def read_front(folder: Path) -> SeedFront:
    """Read the front of a run that `search pareto` shows."""
    with open_run(folder) as run:
        found = judged_by(run, FrontQuery())
        alone = {
            trial.architecture_id
            for trial in run.record.trials()
            if trial.state == "done" and is_trained_alone(trial.fidelity)
        }
        return SeedFront(
            seed=run.settings.seed,
            members=tuple(sorted((c for c in found if c.on_front), key=lambda c: c.macs)),
            num_alone=len(alone),
            spent_share=run.state.spent / parse_budget(run.settings.budget).amount_seconds,
        )


def table(fronts: Sequence[SeedFront]) -> str:
    """Write the table, a row for each run, in Markdown."""
    return "\n".join([HEADER, *map(_row, fronts)])


def _row(front: SeedFront) -> str:
    cheapest, dearest = front.members[0], front.members[-1]
    best = max(front.members, key=lambda c: c.top1)
    cells = (
        str(front.seed),
        cheapest.fidelity,
        str(len(front.members)),
        f"{format_count(cheapest.macs)} to {format_count(dearest.macs)}",
        f"{front.factor:.1f}",
        format_interval(cheapest),
        format_interval(best),
        ", ".join(kind.replace("_", " ") for kind in front.kinds),
        str(front.num_alone),
        f"{front.spent_share:.1%}",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
