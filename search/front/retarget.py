"""New members of a finished graft for other limits or another device, without training anything.

A graft has scored its parts. The network with the least sum of scores within limits is found
exactly, in seconds; its cost may be MACs, or the latency that a table of any device has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from search.grafting import (
    ESTIMATES,
    SUM,
    Choosable,
    GraftScores,
    choosable,
    choose,
    graft_scores,
)
from search.results import SUPERNET
from search.run_folder import RunFolder
from search.terminal import describe_stages, format_count, format_measured
from searchspace.architecture import Architecture
from searchspace.cost import count
from searchspace.graft_space import replacements
from searchspace.latency_table import LatencyTable
from searchspace.quantity import least_text, parse_quantity

COSTS = ("macs", "params", "latency")
# Members are chosen at the limit and at these parts of it, for there is more than one trade.
PARTS = (1.0, 0.85, 0.7, 0.55)

Cost = Callable[[Architecture], float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Retargeted:
    """A network that was chosen for limits.

    Attributes:
        id: In the run's record.
        score: Sum of the scores of its parts, in nats.
        costs: Of it, by the names of the limits.
        num_replaced: How many mixers and MLPs are not the teacher's.
    """

    id: int
    architecture: Architecture
    score: float
    costs: Mapping[str, float]
    num_replaced: int


def parse_limits(texts: Sequence[str]) -> dict[str, float]:
    """Read limits like ``macs=2G`` or ``latency=3ms``.

    Raises:
        ValueError: If one is none, or a cost is limited twice.
    """
    limits: dict[str, float] = {}
    for text in texts:
        name, equals, amount = text.partition("=")
        if not equals or name not in COSTS:
            raise ValueError(
                f"--limit is one of {', '.join(COSTS)} and an amount, got {text!r}. Write e.g. "
                "macs=2G or latency=3ms."
            )
        if name in limits:
            raise ValueError(f"--limit {text}: {name} is limited twice. Leave one of them out.")
        if name == "latency":
            amount = amount.removesuffix("ms")
        limits[name] = parse_quantity(amount)
    return limits


def retarget(
    run: RunFolder, limits: Mapping[str, float], table_file: Path | None
) -> list[Retargeted]:
    """Choose members of a graft within limits, and give each an id in the record.

    Args:
        run: A graft whose parts are scored, open to be written to.
        limits: Of the costs, all of which hold.
        table_file: A latency table of the device; None takes the run's.

    Returns:
        The best network within the limits first, and then those of tighter ones.

    Raises:
        ValueError: If the run is no graft, nothing is scored, or nothing is within the limits.
    """
    teacher = run.teacher
    if teacher is None:
        raise ValueError(
            f"--limit chooses new networks from the scores of a graft, and {run.folder} is none. "
            "Use --max-macs or --max-params for networks that were judged."
        )
    scores = graft_scores(run.record.trials(), teacher.architecture)
    if not scores.singles:
        raise ValueError(
            f"{run.folder} has not scored its parts yet. Let it go on first: search run --resume."
        )
    space = run.space()
    options = {name: choosable(space, scores, _cost_of(name, run, table_file)) for name in limits}
    found = _chosen(options, limits)
    if not found:
        raise ValueError(_too_tight(options, limits))
    return [_kept(run, scores, network, options) for network in found]


def retargeted_table(found: Sequence[Retargeted]) -> Table:
    """Show networks that were chosen and not trained."""
    table = Table(title="Chosen by the scores of their parts, not trained", title_justify="left")
    names = [*found[0].costs]
    for name in ("id", "KL, summed", *names, "replaced", "mixers of the stages"):
        table.add_column(name, justify="left" if name.startswith("mixers") else "right")
    for one in found:
        costs = [
            f"{format_measured(value)} ms" if name == "latency" else format_count(int(value))
            for name, value in one.costs.items()
        ]
        table.add_row(
            str(one.id),
            f"{one.score:.3f}",
            *costs,
            str(one.num_replaced),
            " | ".join(describe_stages(one.architecture)),
        )
    return table


def retargeted_json(one: Retargeted) -> dict[str, object]:
    """Describe a network with JSON values."""
    return {
        "id": one.id,
        "key": one.architecture.key,
        "kl_sum": one.score,
        "costs": dict(one.costs),
        "num_replaced": one.num_replaced,
        "architecture": one.architecture.to_dict(),
    }


def caveat(run: RunFolder) -> str:
    """Say what the choice rests on: how well the sum ranked networks in this run."""
    estimator = run.state.estimator
    if estimator in ESTIMATES:
        return "The run found that sums of scores rank its networks; heal these before use."
    judged = {SUPERNET: "accuracy as assembled", None: "nothing yet"}.get(estimator, estimator)
    return (
        f"The run did not find that sums of scores rank its networks best (it judged by {judged}): "
        "heal several of these and compare."
    )


def _cost_of(name: str, run: RunFolder, table_file: Path | None) -> Cost:
    if name != "latency":
        return lambda architecture: float(getattr(count(architecture), name))
    table = run.settings.load_table() if table_file is None else LatencyTable.load(table_file)
    if table is None:
        raise ValueError(
            "--limit latency needs a table of the device: add --latency-table FILE, written there "
            f"by search latency --space {run.folder} --out FILE."
        )
    return table.predict


def _chosen(options: Mapping[str, Choosable], limits: Mapping[str, float]) -> list[Architecture]:
    (first, *others) = options
    also = [(options[name], limits[name]) for name in others]
    found: list[Architecture] = []
    for part in PARTS:
        limit = limits[first] * part
        network = choose(options[first], limit, without=found, also=also)
        if network is not None:
            found.append(network)
    return found


def _too_tight(options: Mapping[str, Choosable], limits: Mapping[str, float]) -> str:
    costs = {
        name: least_text(options[name].least, is_measured=name == "latency") for name in limits
    }
    least = ", ".join(f"{name} {cost}" for name, cost in costs.items())
    asked = ", ".join(f"{name} <= {most:,.12g}" for name, most in limits.items())
    return (
        f"No network of the graft is within {asked}; the least that its parts allow is {least}. "
        "Allow more."
    )


def _kept(
    run: RunFolder,
    scores: GraftScores,
    network: Architecture,
    options: Mapping[str, Choosable],
) -> Retargeted:
    cost = count(network)
    number = run.record.add_architecture(network, params=cost.params, macs=cost.macs)
    score = scores.estimates(network)[SUM]
    return Retargeted(
        id=number,
        architecture=network,
        score=-score,
        costs={name: found.cost(network) for name, found in options.items()},
        num_replaced=len(replacements(scores.teacher, network)),
    )
