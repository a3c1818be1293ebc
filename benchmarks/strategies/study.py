"""What is compared, and what an arm has found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from search.budget import parse_budget
from searchspace.architecture import Architecture
from searchspace.space import SearchSpace
from searchspace.spec_file import load_space
from supernet.data import prepare_data

T = TypeVar("T")

# What `search run` is given; without words an arm is no search of ours.
ARMS: Mapping[str, tuple[str, ...]] = {
    "supernet": ("--strategy", "supernet"),
    "proxy": ("--strategy", "proxy"),
    "nsga2": (),
    "tpe": (),
    "random": (),
    "single": (),
}
AFTERNOON = ("nsga2", "tpe", "random")
BASELINE, SINGLE = "supernet", "single"
# Of rows that do not say them, which are of 2026-11-21.
SPACE, RECIPE, NUM_CLASSES = "micro", "micro", 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """What is compared.

    Attributes:
        data: Source of the images.
        space: What is searched.
        recipe: Of the retrainings.
        budget: Of each run, as typed.
        img_size: Side in pixels that images are scaled to; smaller ones make networks cheaper.
        epochs: Of each retraining.
        trial_epochs: Of each trial of the afternoon's script.
        members: The most that are retrained of a front; at least 2.
        sizes: Of each single mixer.
        seeds: Of the runs, `first_seed` to this, exclusive.
        first_seed: Of the first that is run here; rows of those before it are kept as they are.
        cores: That every command may use.
        out: Folder of the runs.
    """

    data: str
    space: str = SPACE
    recipe: str = RECIPE
    budget: str
    img_size: int
    epochs: int
    trial_epochs: int = 4
    members: int
    sizes: int = 3
    seeds: int
    first_seed: int = 0
    cores: int
    out: Path

    def __post_init__(self) -> None:
        parse_budget(self.budget)
        at_least = (("epochs", 1), ("trial_epochs", 1), ("members", 2), ("sizes", 1))
        for name, least in (*at_least, ("seeds", 1), ("cores", 1)):
            if getattr(self, name) < least:
                option, given = name.replace("_", "-"), getattr(self, name)
                raise ValueError(f"--{option} must be at least {least}, got {given}. Give more.")
        if not 0 <= self.first_seed < self.seeds:
            raise ValueError(
                f"--first-seed must be at least 0 and below --seeds ({self.seeds}), got "
                f"{self.first_seed}. To add seed {self.first_seed}, give --seeds "
                f"{max(self.first_seed, 0) + 1}."
            )

    def here(self) -> range:
        """Name the seeds that are run here."""
        return range(self.first_seed, self.seeds)

    def folder(self, arm: str, seed: int) -> Path:
        """Name the folder of a run."""
        return self.out / f"{arm}-s{seed}"

    def retrained(self, key: str, seed: int) -> Path:
        """Name the folder of a retraining."""
        return self.out / "retrained" / f"{key}-s{seed}"

    @property
    def images(self) -> Path:
        """Where the prepared images of the retrainings are."""
        return self.out / "data"

    def prepare(self) -> SearchSpace:
        """Prepare the images, unless that is done; return the space with their size and classes."""
        space = load_space(self.space).replace(img_size=self.img_size)
        data = prepare_data(self.data, img_size=self.img_size, folder=self.images)
        return space.replace(num_classes=data.num_classes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A network of a front, as its search has judged it; a single mixer was not judged."""

    architecture: Architecture
    fidelity: str = ""
    top1: float = math.nan

    @property
    def key(self) -> str:
        """Of the architecture."""
        return self.architecture.key


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What an arm has found with a seed.

    Attributes:
        front: By rising MACs.
        trained: Networks that were trained alone.
        run: What stands in `RUN_COLUMNS` beside arm and seed.
    """

    front: tuple[Member, ...]
    trained: int
    run: Mapping[str, str]


def choose_members(front: Sequence[T], most: int) -> tuple[T, ...]:
    """Pick at most so many members of a sorted front, evenly by rank, both ends among them."""
    if len(front) <= most:
        return tuple(front)
    places = np.linspace(0, len(front) - 1, most).round().astype(int)
    return tuple(front[place] for place in places)
