"""How far does each shipped space spread the cost of its networks? A table, in a few seconds.

    python benchmarks/cost_spread.py

Of 400 random networks of a space the 20 dearest are compared with the 20 cheapest: once the one at
the edge of each (the cheapest of the dear over the dearest of the cheap, which is what a test asks
to be four), once their means. A search weighs accuracy against cost, so what a space does not
spread cannot become a front.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from configs import config_names
from search.terminal import format_count
from searchspace.cost import count
from searchspace.space import SearchSpace
from searchspace.spec_file import load_space

NUM_DRAWN, TWENTIETH = 400, 20
HEADER = (
    "| space | pixels | cheapest twentieth, MACs | dearest | edge over edge | mean over mean |\n"
    "|---|---|---|---|---|---|"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """The MACs of the cheapest and of the dearest twentieth of random networks, ascending."""

    cheap: tuple[int, ...]
    dear: tuple[int, ...]

    @property
    def edges(self) -> float:
        """The cheapest of the dear over the dearest of the cheap."""
        return self.dear[0] / self.cheap[-1]

    @property
    def means(self) -> float:
        """The mean of the dear over that of the cheap."""
        return statistics.fmean(self.dear) / statistics.fmean(self.cheap)


def measure_spread(space: SearchSpace, *, seed: int = 0) -> Spread:
    """Draw networks of a space and keep the MACs of both ends."""
    rng = random.Random(seed)
    macs = sorted(count(space.sample(rng)).macs for _ in range(NUM_DRAWN))
    return Spread(cheap=tuple(macs[:TWENTIETH]), dear=tuple(macs[-TWENTIETH:]))


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("spaces", nargs="*", help="names or files; default: all that are shipped")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    arguments = parser.parse_args(words)
    print(HEADER)
    for name in arguments.spaces or config_names("spaces"):
        space = load_space(name)
        spread = measure_spread(space, seed=arguments.seed)
        ends = (statistics.fmean(side) for side in (spread.cheap, spread.dear))
        cells = [name, str(space.img_size), *map(format_count, ends)]
        print(f"| {' | '.join(cells)} | {spread.edges:.1f} | {spread.means:.1f} |")


if __name__ == "__main__":
    main()
