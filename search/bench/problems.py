"""Problems to measure searchers on: a published table, and synthetic ones that come with the tool.

Losses are lower-is-better. Each problem says how its losses are scaled before hypervolumes are
measured, always with the reference point 1.01 in every objective.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from search.bench.landscapes import Landscape, regimes, rugged
from search.bench.tables import ACCEL_DIGITS, fit_accel, read_macro
from search.results import hypervolume, non_dominated
from search.sampling import Choose, DesignSpace, Draw, breed, design_space, draw_random
from searchspace.architecture import Architecture
from searchspace.cost import count
from searchspace.spec_file import load_space

Matrix = NDArray[np.float64]

REFERENCE = 1.01
RANDOM_DESIGNS, EVOLVED_DESIGNS, GENERATION = 2_000, 10_000, 250
TABLES = Path("../shared/bench")
MACRO_FILE, ACCEL_FILE = "nas-bench-macro_cifar10.json", "accel-nasbench_imagenet.csv"
_CHOICE = CategoricalDistribution(("0", "1", "2"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A space with losses that cost nothing to evaluate.

    Attributes:
        losses: Names of the losses.
        observe: What a searcher is told about a design; may be noisy, but the same each time.
        judge: The losses without noise; fronts are measured with these.
        low, high: What becomes 0 and 1 when losses are scaled, of shape (losses,).
        full: The hypervolume that counts as 1.
        full_is: What that is the hypervolume of.
    """

    name: str
    losses: tuple[str, ...]
    space: DesignSpace[Any]
    observe: Callable[[Any], Matrix]
    judge: Callable[[Any], Matrix]
    low: Matrix
    high: Matrix
    full: float
    full_is: str

    def fraction(self, designs: Sequence[Any]) -> float:
        """Return the share of the full hypervolume that designs reach."""
        points = np.array([self.judge(design) for design in designs])
        return _scaled_volume(points, self.low, self.high) / self.full


def macro_problem(path: Path, *, one_seed: bool = False) -> Problem:
    """Read NAS-Bench-Macro: error against FLOPs; FLOPs are known before evaluation.

    FLOPs are scaled to their range, the error to its best and its 90 % quantile.

    Args:
        path: Of the JSON file.
        one_seed: Tell the accuracy of one training; judged is the mean of three all the same.

    Raises:
        ValueError: If the file is missing or not that table.
    """
    losses, first = read_macro(path)
    space = DesignSpace(
        walk=lambda choose: "".join(choose(f"layer{index}", _CHOICE) for index in range(8)),
        key=lambda digits: digits,
        known_losses=lambda digits: (None, float(losses[digits][1])),
    )
    return _scaled(
        "nas-bench-macro-1" if one_seed else "nas-bench-macro",
        ("error", "flops"),
        space,
        points=np.array(list(losses.values())),
        observe=(first if one_seed else losses).__getitem__,
        judge=losses.__getitem__,
    )


def accel_problem(path: Path) -> Problem:
    """Fit Accel-NASBench: error against time on an A100, none of them known before evaluation.

    Raises:
        ValueError: If the file is missing or not that table.
    """
    predict = fit_accel(path)
    options = [CategoricalDistribution(digits) for digits in ACCEL_DIGITS]
    space = DesignSpace(
        walk=lambda choose: "".join(
            choose(f"digit{place}", one) for place, one in enumerate(options)
        ),
        key=lambda network: network,
    )

    def judge(network: str) -> Matrix:
        losses: Matrix = predict([network])[0]
        return losses

    return _synthetic("accel-nasbench", ("error", "time"), space, judge, judge, judge_all=predict)


def landscape_problem(name: str, landscape: Landscape) -> Problem:
    """Return a synthetic table; its cost is known before evaluation."""
    options = [CategoricalDistribution(tuple(range(size))) for size in landscape.sizes]

    def judge(digits: tuple[int, ...]) -> Matrix:
        losses: Matrix = landscape.losses[landscape.place(digits)]
        return losses

    def observe(digits: tuple[int, ...]) -> Matrix:
        losses = judge(digits).copy()
        losses[0] += landscape.noise[landscape.place(digits)]
        return losses

    space = DesignSpace(
        walk=lambda choose: tuple(choose(f"choice{i}", one) for i, one in enumerate(options)),
        key=lambda digits: digits,
        known_losses=lambda digits: (None, float(judge(digits)[1])),
    )
    return _scaled(
        name, ("error", "cost"), space, points=landscape.losses, observe=observe, judge=judge
    )


def problem_by_name(name: str, table: Path | None = None) -> Problem:
    """Make one of the problems.

    Args:
        name: One of `PROBLEMS`.
        table: The file of a problem that is a published table; None for the one in ``TABLES``.

    Raises:
        ValueError: If there is none of that name, or its table is missing or another, or it has
            none and one is given.
    """
    if name not in PROBLEMS:
        raise ValueError(f"Unknown problem {name!r}. Known: {', '.join(PROBLEMS)}.")
    if table is not None and name not in OF_TABLES:
        raise ValueError(f"The problem {name!r} needs no table. With one: {', '.join(OF_TABLES)}.")
    return PROBLEMS[name](table)


def conditional_problem(seed: int = 7) -> Problem:
    """Return a conditional mixed problem of two losses, none of them known before evaluation.

    Six blocks of one of four kinds, each kind with settings of its own (categories, integers, a
    float): 12 to 36 choices. The error adds the effects of every block, of neighbouring blocks and
    of the settings; the cost is a product over blocks, as a latency with stalls would be.
    """
    space = DesignSpace(walk=_walk_blocks, key=lambda design: frozenset(design.items()))

    def judge(design: Mapping[str, Any]) -> Matrix:
        return _judge_blocks(design, seed)

    return _synthetic("conditional", ("error", "cost"), space, judge, judge)


def micro_problem(objectives: tuple[str, ...] = ("error", "macs"), seed: int = 3) -> Problem:
    """Return the space ``micro`` with a made-up error: additive and pairwise effects, and noise.

    MACs and parameters are the real ones and known before evaluation. The error falls with the
    logarithm of the MACs; the noise has a standard deviation of 0.5 % and is not judged.
    """
    networks = load_space("micro")

    def costs(network: Architecture) -> list[float]:
        cost = count(network)
        known = {"macs": cost.macs / 1e6, "params": cost.params / 1e3}
        return [known[name] for name in objectives[1:]]

    def judge(network: Architecture) -> Matrix:
        return np.array([_error_of(networks.choices_of(network), network, seed), *costs(network)])

    def observe(network: Architecture) -> Matrix:
        noise = 0.5 * _effect("noise", network.key, seed=seed)
        losses = judge(network)
        losses[0] += noise
        return losses

    space = design_space(networks, known_losses=lambda network: (None, *costs(network)))
    name = "micro" if len(objectives) == 2 else f"micro-{len(objectives)}"
    return _synthetic(name, objectives, space, judge, observe)


_KIND = CategoricalDistribution(("attention", "conv", "mlp", "skip"))
_ACT = CategoricalDistribution(("relu", "gelu", "silu"))
_SETTINGS: dict[str, dict[str, BaseDistribution]] = {
    "attention": {
        "heads": IntDistribution(1, 16, log=True),
        "norm": CategoricalDistribution(("softmax", "filter", "none")),
        "terms": CategoricalDistribution(("qk", "qk+bias", "qr", "bias")),
        "scale": FloatDistribution(0.1, 10.0, log=True),
    },
    "conv": {
        "kernel": IntDistribution(3, 11, step=2),
        "dynamic": CategoricalDistribution((False, True)),
        "gamma": FloatDistribution(0.0, 1.0),
    },
    "mlp": {"ratio": FloatDistribution(0.5, 4.0, step=0.5)},
    "skip": {},
}


def _walk_blocks(choose: Choose) -> dict[str, Any]:
    design: dict[str, Any] = {}
    for block in range(6):
        kind = design[f"b{block}.kind"] = choose(f"b{block}.kind", _KIND)
        for setting, distribution in {**_SETTINGS[kind], "act": _ACT}.items():
            design[f"b{block}.{setting}"] = choose(f"b{block}.{setting}", distribution)
    return design


def _judge_blocks(design: Mapping[str, Any], seed: int) -> Matrix:
    error, cost = 20.0, 1.0
    for name, value in design.items():
        block, setting = name.split(".")
        kind = design[f"{block}.kind"]
        if isinstance(value, float) or setting in ("heads", "kernel"):
            best = 1.0 + 0.8 * _effect(name, kind, seed=seed)
            error += 0.6 * (np.log1p(value) - best) ** 2
            cost *= 1.0 + 0.03 * np.log1p(value)
        else:
            error += (1.5 if setting == "kind" else 0.7) * _effect(name, value, seed=seed)
            if setting == "kind":
                cost *= {"attention": 1.6, "conv": 1.3, "mlp": 1.2, "skip": 1.0}[value]
                error += {"attention": -2.0, "conv": -1.2, "mlp": -0.8, "skip": 0.0}[value]
            else:
                cost *= 1.0 + 0.05 * abs(_effect(name, value, "cost", seed=seed))
    kinds = [design[f"b{block}.kind"] for block in range(6)]
    for place, pair in enumerate(itertools.pairwise(kinds)):
        error += _effect("pair", place, pair, seed=seed)
        cost *= 1.1 if pair[0] != pair[1] else 1.0
    return np.array([error, cost])


def _error_of(choices: Mapping[str, Any], network: Architecture, seed: int) -> float:
    items = sorted(choices.items())
    error = 40.0 - 4.0 * np.log(count(network).macs / 1e6)
    error += sum(_effect(*item, seed=seed) for item in items)
    for index, first in enumerate(items):
        error += sum(0.4 * _effect(first, second, seed=seed) for second in items[:index])
    return float(error)


@lru_cache(maxsize=200_000)
def _effect(*what: Hashable, seed: int) -> float:
    """Return a number with a standard normal distribution that depends on the words only."""
    return float(np.random.default_rng(zlib.crc32(repr((seed, what)).encode())).standard_normal())


def _scaled(
    name: str,
    losses: tuple[str, ...],
    space: DesignSpace[Any],
    *,
    points: Matrix,
    observe: Callable[[Any], Matrix],
    judge: Callable[[Any], Matrix],
    evolved: Matrix | None = None,
    full_is: str = "the true front",
) -> Problem:
    """Scale by the losses of designs and a front: the error to its best and its 90 % quantile."""
    front = points if evolved is None else evolved
    low = np.minimum(points.min(axis=0), front.min(axis=0))
    high = points.max(axis=0)
    high[0] = np.quantile(points[:, 0], 0.9)
    return Problem(
        name=name,
        losses=losses,
        space=space,
        observe=observe,
        judge=judge,
        low=low,
        high=high,
        full=_scaled_volume(front, low, high),
        full_is=full_is,
    )


def _synthetic(
    name: str,
    losses: tuple[str, ...],
    space: DesignSpace[Any],
    judge: Callable[[Any], Matrix],
    observe: Callable[[Any], Matrix],
    judge_all: Callable[[Sequence[Any]], Matrix] | None = None,
) -> Problem:
    """Scale as the table is scaled, by random designs and a front that evolution finds."""

    def judged(designs: Sequence[Any]) -> Matrix:
        if judge_all is not None:
            return judge_all(designs)
        return np.array([judge(design) for design in designs])

    rng = np.random.default_rng(0)
    random = [draw_random(space, rng) for _ in range(RANDOM_DESIGNS)]
    random = [one for one in random if space.is_allowed(one.design)]
    points = judged([one.design for one in random])
    evolved = _evolve(space, judged, random, points, rng)
    return _scaled(
        name,
        losses,
        space,
        points=points,
        evolved=evolved,
        full_is=f"the front of {RANDOM_DESIGNS + EVOLVED_DESIGNS:,} noise-free evaluations",
        observe=observe,
        judge=judge,
    )


def _evolve(
    space: DesignSpace[Any],
    judged: Callable[[Sequence[Any]], Matrix],
    draws: list[Draw[Any]],
    points: Matrix,
    rng: np.random.Generator,
) -> Matrix:
    """Return the front after many generations bred from the front of the generation before."""
    seen = {one.key for one in draws}
    for _ in range(EVOLVED_DESIGNS // GENERATION):
        on_front = non_dominated(points)
        draws = [one for one, is_best in zip(draws, on_front, strict=True) if is_best]
        children = breed(space, draws, count=GENERATION, seen=seen, rng=rng)
        seen |= set(children)
        draws += children.values()
        new = judged([one.design for one in children.values()])
        points = np.concatenate([points[on_front], new])
    return points[non_dominated(points)]


def _scaled_volume(points: Matrix, low: Matrix, high: Matrix) -> float:
    scaled = (points - low) / (high - low)
    return hypervolume(scaled, np.full(len(low), REFERENCE))


PROBLEMS: dict[str, Callable[[Path | None], Problem]] = {
    "nas-bench-macro": lambda table: macro_problem(table or TABLES / MACRO_FILE),
    "nas-bench-macro-1": lambda table: macro_problem(table or TABLES / MACRO_FILE, one_seed=True),
    "accel-nasbench": lambda table: accel_problem(table or TABLES / ACCEL_FILE),
    "conditional": lambda _: conditional_problem(),
    "micro": lambda _: micro_problem(),
    "micro-3": lambda _: micro_problem(("error", "macs", "params")),
    "rugged-6x5": lambda _: landscape_problem("rugged-6x5", rugged(6, 5, seed=1)),
    "rugged-8x4": lambda _: landscape_problem("rugged-8x4", rugged(8, 4, seed=1)),
    "rugged-10x3": lambda _: landscape_problem("rugged-10x3", rugged(10, 3, seed=1)),
    "regimes-6x5": lambda _: landscape_problem("regimes-6x5", regimes(6, 5, seed=1)),
    "regimes-8x4": lambda _: landscape_problem("regimes-8x4", regimes(8, 4, seed=1)),
    "regimes-10x3": lambda _: landscape_problem("regimes-10x3", regimes(10, 3, seed=1)),
}
OF_TABLES = ("nas-bench-macro", "nas-bench-macro-1", "accel-nasbench")
