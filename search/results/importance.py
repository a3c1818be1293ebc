"""Which choices matter: how much each one says about accuracy, and what the front has in common.

Importance is by permutation (Breiman 2001): a random forest learns the accuracy from the choices,
and a choice is worth the R2 that it loses on networks that it has not seen when that choice is
shuffled among them. A mixer is shuffled together with its settings, among the networks that have
its block; a setting only among networks with the same mixer there; and the depth of a stage whose
blocks differ together with these blocks: so every shuffled network could exist.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import fisher_exact
from sklearn.ensemble import RandomForestRegressor
from sklearn.model_selection import KFold

from searchspace.architecture import Architecture, Stage
from searchspace.mixers import Mixer, Setting, mixer_to_dict

# A place is a stage, or a block where the blocks of a stage differ.
Choices = dict[tuple[str, str], Setting]

MIXER, DIM, DEPTH, MLP_RATIO = "mixer", "channels", "depth", "MLP ratio"
# Choices of a stage that are numbers and belong to no mixer.
SIZES = (DIM, DEPTH, MLP_RATIO)
MIN_NETWORKS = 30
MAX_NETWORKS = 2_000
NUM_FOLDS = 5
NUM_SHUFFLES = 5
NUM_TREES = 60

_NAMES = {
    "window_size": "kernel size",
    "kernel_size": "kernel size",
    "num_heads": "heads",
    "num_groups": "groups",
    "lam": "lambda",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Importance:
    """What a choice is worth: the R2 that is lost without it, and the range over the folds."""

    place: str
    setting: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportanceStudy:
    """How well the choices explain the accuracy, and each one's part.

    Attributes:
        num_networks: Learned from and tested on.
        r2: Of the forest on networks that it has not seen, 1 is perfect and 0 or less nothing.
        choices: The most important first.
    """

    num_networks: int
    r2: float
    choices: tuple[Importance, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trait:
    """How common a choice is on the front and among the rest.

    Attributes:
        front, rest: Counts of networks with it.
        num_front, num_rest: Counts of networks.
        p_value: Of Fisher's exact test, two-sided, times the number of traits that were tested.
    """

    place: str
    setting: str
    value: str
    front: int
    num_front: int
    rest: int
    num_rest: int
    p_value: float


def study_importance(
    architectures: Sequence[Architecture], top1: Sequence[float], *, seed: int
) -> ImportanceStudy | None:
    """Learn the accuracy from the choices, and take each choice away.

    Args:
        architectures: Judged at one fidelity; of more than `MAX_NETWORKS` a random part is used.
        top1: Their accuracies in percent.
        seed: Of the part, the folds, the forest and the shuffles.

    Returns:
        None with fewer than `MIN_NETWORKS` networks, or where all accuracies or choices are equal.
    """
    rng = np.random.default_rng(seed)
    if len(architectures) < MIN_NETWORKS or len(set(top1)) < 2:
        return None
    rows = np.arange(len(architectures))
    if len(rows) > MAX_NETWORKS:
        rows = rng.choice(rows, MAX_NETWORKS, replace=False)
    choices = list_choices([architectures[row] for row in rows.tolist()])
    features, groups = _encode(choices)
    if not groups:
        return None
    accuracy = np.array(top1)[rows]
    losses, r2s = [], []
    for fold, (train, test) in enumerate(
        KFold(NUM_FOLDS, shuffle=True, random_state=seed).split(rows)
    ):
        forest = RandomForestRegressor(NUM_TREES, min_samples_leaf=2, random_state=seed + fold)
        forest.fit(features[train], accuracy[train])
        shuffled = _shuffled(features[test], groups, [choices[row] for row in test], rng)
        predicted = forest.predict(np.concatenate([features[test], *shuffled]))
        r2 = _r2(accuracy[test], predicted.reshape(-1, len(test)))
        r2s.append(r2[0])
        losses.append((r2[0] - r2[1:]).reshape(len(groups), NUM_SHUFFLES).mean(axis=1))
    by_fold = np.array(losses)
    found = [
        Importance(
            place=place,
            setting=setting,
            mean=float(by_fold[:, index].mean()),
            low=float(by_fold[:, index].min()),
            high=float(by_fold[:, index].max()),
        )
        for index, (place, setting) in enumerate(groups)
    ]
    return ImportanceStudy(
        num_networks=len(rows),
        r2=float(np.mean(r2s)),
        choices=tuple(sorted(found, key=lambda one: -one.mean)),
    )


def front_traits(front: Sequence[Architecture], rest: Sequence[Architecture]) -> tuple[Trait, ...]:
    """Compare how common each choice is on the front and among the rest; the surest first.

    The p values are corrected for their number (Bonferroni), so that few are below 0.05 by chance.
    Choices that all networks share are left out.
    """
    choices = list_choices([*front, *rest])
    on_front = Counter(item for one in choices[: len(front)] for item in one.items())
    elsewhere = Counter(item for one in choices[len(front) :] for item in one.items())
    counts = {
        item: (on_front[item], elsewhere[item])
        for item in sorted(on_front.keys() | elsewhere.keys(), key=str)
        if on_front[item] + elsewhere[item] < len(choices)
    }
    traits = []
    for ((place, setting), value), (inside, outside) in counts.items():
        table = [[inside, len(front) - inside], [outside, len(rest) - outside]]
        p_value = float(fisher_exact(table)[1])
        traits.append(
            Trait(
                place=place,
                setting=setting,
                value=f"{value:g}" if isinstance(value, float) else str(value).replace("_", " "),
                front=inside,
                num_front=len(front),
                rest=outside,
                num_rest=len(rest),
                p_value=min(p_value * len(counts), 1.0),
            )
        )
    return tuple(sorted(traits, key=lambda trait: (trait.p_value, -_difference(trait))))


def list_choices(architectures: Sequence[Architecture]) -> list[Choices]:
    """Name the choices of each network by place and setting.

    A setting that all networks with the same mixer there share is no choice and is left out, and so
    is a depth or MLP ratio that all stages share.
    """
    uneven = {
        index
        for architecture in architectures
        for index, stage in enumerate(architecture.stages)
        if len(set(stage.mixers)) > 1
    }
    # 50,000 networks share some hundreds of stages.
    known: dict[tuple[int, Stage], Choices] = {}
    for architecture in architectures:
        for index, stage in enumerate(architecture.stages):
            if (index, stage) not in known:
                known[index, stage] = _stage_choices(index, stage, index in uneven)
    varied = _varied(known.values())
    return [
        {
            name: value
            for index, stage in enumerate(architecture.stages)
            for name, value in known[index, stage].items()
            if name in varied
        }
        for architecture in architectures
    ]


def _stage_choices(index: int, stage: Stage, is_uneven: bool) -> Choices:
    sizes = {DIM: stage.dim, DEPTH: stage.depth, MLP_RATIO: sum(stage.ratios) / stage.depth}
    found: Choices = {(f"stage {index}", name): size for name, size in sizes.items()}
    for place, mixer in _places(index, stage, is_uneven):
        found |= {(place, setting): value for setting, value in _settings(mixer)}
    return found


def _varied(found: Iterable[Choices]) -> set[tuple[str, str]]:
    """Name the mixers of all places, and what has several values (a setting: for one mixer)."""
    values: dict[tuple[str, str], dict[Setting, set[Setting]]] = {}
    for choices in found:
        for (place, setting), value in choices.items():
            mixer = "" if setting in SIZES else choices[place, MIXER]
            values.setdefault((place, setting), {}).setdefault(mixer, set()).add(value)
    return {
        name
        for name, by_mixer in values.items()
        if name[1] == MIXER or any(len(several) > 1 for several in by_mixer.values())
    }


def _places(index: int, stage: Stage, is_uneven: bool) -> Iterator[tuple[str, Mixer]]:
    if not is_uneven:
        yield f"stage {index}", stage.mixers[0]
        return
    for block, mixer in enumerate(stage.mixers):
        yield f"stage {index}, block {block}", mixer


def _settings(mixer: Mixer) -> Iterator[tuple[str, Setting]]:
    values = mixer_to_dict(mixer)
    yield MIXER, values.pop("kind")
    for name, value in values.items():
        yield _NAMES.get(name, name.replace("_", " ")), value


def _encode(
    choices: Sequence[Choices],
) -> tuple[NDArray[np.float64], dict[tuple[str, str], list[int]]]:
    """Return features (networks, columns) and the columns of each choice that is one.

    A word has a column for each of its values; a number is itself; what a network lacks is -1.
    """
    columns: list[list[float]] = []
    groups: dict[tuple[str, str], list[int]] = {}
    for name in dict.fromkeys(name for one in choices for name in one):
        values = [one.get(name) for one in choices]
        known = sorted({value for value in values if value is not None}, key=str)
        if len(known) < 2:
            continue
        if any(isinstance(value, str) for value in known):
            encoded = [[float(value == option) for value in values] for option in known]
        else:
            encoded = [[-1.0 if value is None else float(value) for value in values]]
        groups[name] = list(range(len(columns), len(columns) + len(encoded)))
        columns += encoded
    return np.array(columns).T, groups


def _shuffled(
    features: NDArray[np.float64],
    groups: dict[tuple[str, str], list[int]],
    choices: Sequence[Choices],
    rng: np.random.Generator,
) -> Iterator[NDArray[np.float64]]:
    """Yield the features with each choice in turn shuffled, some times each."""
    for place, setting in groups:
        kinds = np.array([str(one.get((place, MIXER))) for one in choices])
        if setting == MIXER:
            kinds = kinds == str(None)  # networks without this block keep to themselves
        elif setting in SIZES:
            kinds[:] = ""
        moved = np.array(
            [c for name, cs in groups.items() if _moves((place, setting), name) for c in cs]
        )
        for _ in range(NUM_SHUFFLES):
            copy = features.copy()
            for kind in np.unique(kinds):
                rows = np.flatnonzero(kinds == kind)
                copy[np.ix_(rows, moved)] = features[np.ix_(rng.permutation(rows), moved)]
            yield copy


def _moves(shuffled: tuple[str, str], other: tuple[str, str]) -> bool:
    """Tell whether a choice is shuffled together with the one that is named first."""
    (place, setting), (other_place, other_setting) = shuffled, other
    if setting == MIXER and other_place == place:
        return other_setting not in SIZES
    if setting == DEPTH and other_place.startswith(f"{place}, block"):
        return True
    return shuffled == other


def _r2(truth: NDArray[np.float64], predicted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return R2 of each row of predictions."""
    total = float(((truth - truth.mean()) ** 2).sum())
    if total == 0:
        return np.zeros(len(predicted))
    left: NDArray[np.float64] = ((predicted - truth) ** 2).sum(axis=1)
    return 1 - left / total


def _difference(trait: Trait) -> float:
    return abs(trait.front / max(trait.num_front, 1) - trait.rest / max(trait.num_rest, 1))
