"""What a run was asked to do: the values of the command line, checked, kept in the record."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.budget import Budget, parse_budget
from search.plan import SHARES, split_shares
from search.results import CLOSED_FORM, MEASURED, OBJECTIVES, TASK_QUALITIES
from search.run_folder.storage import storage_url
from search.run_folder.teacher import read_teacher
from searchspace.architecture import check_colours
from searchspace.deployment import Deployment
from searchspace.graft_space import graft_space
from searchspace.latency_table import LatencyTable
from searchspace.space import SearchSpace
from searchspace.spec_file import check_space, load_space

if TYPE_CHECKING:
    from supernet.mixers import WeightSharing

# The names that a run may look up, so that settings are checked without Optuna and torch, in whose
# rooms they mean something; a test compares them with those of `search.sampling.asking`,
# `supernet.shared_weights.strategies` and `supernet.mixers.weight_sharing`.
SAMPLERS = ("guided", "nsga2", "nsga3", "tpe", "gp", "random")
SUPERNET_STRATEGIES = ("uniform", "fair", "sandwich")
PROJECTIONS = ("unshared", "shared")
KERNELS = ("centred", "transformed")
# The settings that name recipes.
RECIPES = ("supernet_recipe", "trial_recipe", "retrain_recipe")
# Those of images as large as the papers', from so many pixels on.
LARGE_PIXELS = 160
LARGE_RECIPES = dict(zip(RECIPES, ("supernet_224", "quick_224", "swin_300e:tiny"), strict=True))
# Of a graft: its parts learn from one pass of the teacher, its networks are healed beside it.
GRAFT = "graft"
GRAFT_RECIPES = dict(zip(RECIPES, ("quick", "heal", "heal"), strict=True))
LARGE_GRAFT_RECIPES = dict(zip(RECIPES, ("quick_224", "heal_224", "heal_224"), strict=True))
# The space of a graft where none is named: see `searchspace.graft_space.usual_mixers`.
USUAL = "usual"
# Of each task but classification: the recipe and the space that suit minutes on small images.
DENSE_RECIPES = {
    "semantic": "cells_semantic",
    "detection": "cells_detection",
    "instance": "cells_instance",
}
DENSE_SPACE = "cells"
_TRUTHS = {"semantic": "classes of pixels", "detection": "boxes", "instance": "masks"}
# What every library takes for a seed.
MOST_SEED = 2**32 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """The settings of a run.

    Attributes:
        data: Data source, see `supernet.data`, or of another task `supernet.data.dense`.
        task: ``classification``, or what networks are searched for as backbones of: ``semantic``,
            ``detection``, ``instance``. The other recipes and objectives are of that task then.
        graft_from: What a graft was begun from, as typed; empty: no graft. Its strategy is
            ``graft``, and the space says which mixers its blocks are offered.
        graft_arch: What that was trained as, where a file of weights does not say it.
        teacher: Folder of that trained network, see `search.run_folder.teacher`. A run keeps it as
            ``teacher``.
        taught_by: Whom the networks learn from while they are trained, as typed; empty: nobody. A
            graft has its own teacher, which it begins with.
        mentor: Key of the folder ``mentor``, in which a run keeps that teacher; empty until it
            does. See `supernet.training.teacher_files`.
        unlabelled: Folder of images without classes that a graft learns on as well, as typed; empty
            for none.
        unlabelled_kept: Name of the folder in which a run keeps them, decoded; empty until it does.
        num_unlabelled: How many it keeps.
        num_left_out: Images of the search and test splits that were among them.
        start: Folder of a run whose shared weights the backbones begin with; empty: fresh ones.
        budget: As typed, e.g. ``10cpu-minutes``.
        space: Name or path of the space; empty takes the one for the data. A run keeps the file's
            text as ``space.yaml``.
        sampler: Of the search, one of `SAMPLERS`.
        strategy: What networks are judged by, see `search.plan.SHARES`: ``supernet`` (its shared
            weights), ``proxy`` (short trainings) or ``zero-cost`` (scores without training).
        supernet_strategy: How the supernet is trained.
        projections, kernels: What its mixers share; see
            `supernet.mixers.weight_sharing.WeightSharing`.
        supernet_recipe, trial_recipe, retrain_recipe: Names or paths of recipes; empty takes those
            for the size of the images, and for the data.
        objectives: What the search weighs: the task's measure up (``top1``, ``miou``, ``ap_box``,
            ``ap_mask``), costs of `search.results.objectives` down; empty takes MACs.
        shares: Shares of the budget that the user fixed, by phase; see `search.plan`.
        latency_of, precision, batch: How networks will be run, for their latency, see
            `searchspace.deployment.Deployment`; empty and None take one image, float32,
            eager on cores and a CUDA graph on GPUs.
        latency_table: Path of a table of latencies that is used instead of measuring; empty for
            none. It says itself how networks are run. A run keeps it as ``latency_table.json``.
        limits: Upper limits of costs. Those of closed-form costs are added to the space's, and
            nothing beyond them is ever proposed; what is measured beyond the others is on no front.
        img_size: Side of the images; None takes the space's.
        seed: Of everything random.
        storage: Folder or URL of fsspec through which nodes share files, see
            `search.run_folder.storage`; empty for the run's folder.
        command: What was typed, for the report.
    """

    data: str
    budget: str
    task: str = "classification"
    graft_from: str = ""
    graft_arch: str = ""
    teacher: str = ""
    taught_by: str = ""
    mentor: str = ""
    unlabelled: str = ""
    unlabelled_kept: str = ""
    num_unlabelled: int = 0
    num_left_out: int = 0
    start: str = ""
    space: str = ""
    sampler: str = "guided"
    strategy: str = "supernet"
    supernet_strategy: str = "uniform"
    projections: str = "unshared"
    kernels: str = "centred"
    supernet_recipe: str = ""
    trial_recipe: str = ""
    retrain_recipe: str = ""
    objectives: tuple[str, ...] = ()
    latency_of: str = ""
    precision: str = ""
    batch: int | None = None
    latency_table: str = ""
    shares: Mapping[str, float] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    img_size: int | None = None
    seed: int = 0
    storage: str = ""
    command: str = ""

    def __post_init__(self) -> None:
        self._check_task()
        objectives = tuple(self.objectives) or (TASK_QUALITIES[self.task], "macs")
        object.__setattr__(self, "objectives", objectives)
        object.__setattr__(self, "storage", storage_url(self.storage))
        default = "digits" if self.data == "digits" else "micro"
        if not self.space:
            space = default if self.classifies else DENSE_SPACE
            space = USUAL if self.strategy == GRAFT else space
            object.__setattr__(self, "space", space)
        for name, recipe in self._recipes(default).items():
            if not getattr(self, name):
                object.__setattr__(self, name, recipe)
        if self.strategy in SUPERNET_STRATEGIES:
            raise ValueError(
                f"{self.strategy!r} says how the supernet is trained. Write "
                f"--supernet-strategy {self.strategy}."
            )
        if self.strategy not in SHARES:
            raise ValueError(f"Unknown strategy {self.strategy!r}. Known: {', '.join(SHARES)}.")
        for name, known in (
            ("sampler", SAMPLERS),
            ("supernet_strategy", SUPERNET_STRATEGIES),
            ("projections", PROJECTIONS),
            ("kernels", KERNELS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"Unknown {name.replace('_', ' ')} {getattr(self, name)!r}. "
                    f"Known: {', '.join(known)}."
                )
        if not 0 <= self.seed <= MOST_SEED:
            raise ValueError(f"A seed is from 0 to {MOST_SEED}, got {self.seed}.")
        amount = parse_budget(self.budget).amount_seconds
        split_shares(amount, self.shares, strategy=self.strategy)
        quality = TASK_QUALITIES[self.task]
        unknown = sorted(set(self.objectives) - {quality, *OBJECTIVES[1:]})
        is_repeated = len(set(self.objectives)) < len(self.objectives)
        if unknown or is_repeated or quality not in self.objectives or len(self.objectives) < 2:
            raise ValueError(
                f"The objectives are {quality} and at least one of {', '.join(OBJECTIVES[1:])}, "
                f"got {','.join(self.objectives)!r}. Write e.g. '{quality},macs'."
            )
        self._check_latency()
        if self.img_size is not None and self.img_size < 1:
            raise ValueError(f"The side of images is at least one pixel, got {self.img_size}.")
        for name, most in self.limits.items():
            if not 0 < most < math.inf:
                raise ValueError(
                    f"A limit of {name} is a positive number, got {most:g}. Leave it out for none."
                )
        for name in set(self.measured_limits) - set(self.objectives):
            raise ValueError(
                f"A limit of {name} needs the networks to be measured. Add it to the objectives, "
                f"e.g. --objectives {','.join((*self.objectives, name))}."
            )

    def _check_task(self) -> None:
        if self.task not in TASK_QUALITIES:
            raise ValueError(
                f"--task is one of {', '.join(TASK_QUALITIES)}, got {self.task!r}. Write one."
            )
        if not self.classifies and self.data == "digits":
            raise ValueError(
                f"--task {self.task} needs images with {_TRUTHS[self.task]}, got --data digits. "
                "Name a folder in COCO's or ADE20K's layout, or a tar of one."
            )
        timing = ("latency_of", "precision", "batch", "latency_table")
        given = [name for name in timing if getattr(self, name)]
        if not self.classifies and given:
            raise ValueError(
                f"--{given[0].replace('_', '-')} is of classifiers, got --task {self.task}. Leave "
                "it out."
            )
        if self.classifies and self.start:
            raise ValueError(
                "--start is for backbones of another task than classification, got "
                f"{self.start!r}. Add --task, or leave it out."
            )
        if (self.strategy == GRAFT) != bool(self.teacher) or (self.teacher and not self.classifies):
            raise ValueError(
                "A graft replaces blocks of a trained classifier: --strategy graft goes with "
                f"--from CHECKPOINT, got --strategy {self.strategy}, --task {self.task} and "
                f"{'--from ' + self.graft_from if self.teacher else 'no --from'}."
            )
        if self.taught_by and self.graft_from:
            raise ValueError(
                "A graft learns from the network that it begins with (--from), got --teacher "
                f"{self.taught_by} as well. Leave --teacher out."
            )
        if self.unlabelled and self.strategy != GRAFT:
            raise ValueError(
                "What a search learns on images without classes is what the network of --from says "
                f"about them, got --unlabelled {self.unlabelled} and no --from. Add --from "
                "CHECKPOINT, or give them to search retrain --teacher."
            )
        if not self.classifies and self.strategy == "zero-cost":
            raise ValueError(
                f"Zero-cost scores are of classifiers, got --task {self.task}. Choose --strategy "
                "supernet or proxy."
            )

    @property
    def unlabelled_line(self) -> str:
        """How many images without classes a run keeps; empty for none."""
        if not self.unlabelled_kept:
            return ""
        out = f"; {self.num_left_out:,} are judged by, and left out" if self.num_left_out else ""
        return f"{self.num_unlabelled:,} images without classes of {self.unlabelled}{out}"

    @property
    def classifies(self) -> bool:
        """Whether the networks are classifiers."""
        return self.task == "classification"

    def _recipes(self, default: str) -> Mapping[str, str]:
        """Name the recipes of images like these; nothing is read where all of them are given."""
        if not self.classifies:  # one for all
            return dict.fromkeys(RECIPES, self.retrain_recipe or DENSE_RECIPES[self.task])
        if self.strategy == GRAFT:
            is_large = (self.img_size or 0) >= LARGE_PIXELS
            return LARGE_GRAFT_RECIPES if is_large else GRAFT_RECIPES
        small = dict(zip(RECIPES, ("supernet", "quick", default), strict=True))
        if all(getattr(self, name) for name in RECIPES):
            return small
        pixels = self.img_size
        if pixels is None:
            try:
                pixels = load_space(self.space).img_size
            except ValueError:  # said where the space is loaded
                return small
        return LARGE_RECIPES if pixels >= LARGE_PIXELS else small

    def _check_latency(self) -> None:
        """Refuse to say how networks are run where nothing, or a table, asks for it."""
        said: dict[str, object] = {
            "--latency-of": self.latency_of,
            "--precision": self.precision,
            "--batch": self.batch,
            "--latency-table": self.latency_table,
        }
        given = [name for name, value in said.items() if value]
        if given and "latency_ms" not in self.objectives:
            raise ValueError(
                f"{given[0]} says how the latency is found, and the run does not weigh it: the "
                f"objectives are {','.join(self.objectives)}. Add it, e.g. --objectives "
                f"{','.join((*self.objectives, 'latency'))}."
            )
        if self.latency_table and given != ["--latency-table"]:
            raise ValueError(
                f"{self.latency_table} says itself by what, in which precision and in which batch "
                f"networks are run, got {given[0]} as well. Leave {given[0]} out, or the table."
            )
        _ = self.deployment

    @property
    def deployment(self) -> Deployment:
        """How networks will be run, where no table says it.

        On a GPU eager small batches take the time of Python's calls, whichever network it is
        (docs/measurements/gpu.md), so that its kernels are launched at once there. Detectors and
        segmenters are run eagerly: what they compute depends on what they find.
        """
        is_graph = self.parsed_budget.device == "gpu" and self.classifies
        return Deployment(
            target=self.latency_of or ("cuda-graph" if is_graph else "eager"),
            precision=self.precision or "fp32",
            batch=1 if self.batch is None else self.batch,
        )

    def load_table(self) -> LatencyTable | None:
        """Read the table of latencies, if the run has one.

        Raises:
            ValueError: If the file is none.
        """
        return LatencyTable.load(Path(self.latency_table)) if self.latency_table else None

    def describe_latency(self, device: str) -> str:
        """Say whose latency the run weighs: of what, run by what, where.

        Args:
            device: Name of the devices that networks are judged on.
        """
        table = self.load_table()
        if table is None:
            return f"Latency: {self.deployment}, on {device}."
        error = "its error is not known"
        if table.median_error is not None:
            error = (
                f"median error {100 * table.median_error:.1f} % over {table.num_checked} networks"
            )
        return f"Latency: of a table, {table}; {error}."

    @property
    def parsed_budget(self) -> Budget:
        """The budget as a value."""
        return parse_budget(self.budget)

    @property
    def sharing(self) -> WeightSharing:
        """What the choices of a supernet's block share."""
        from supernet.mixers import WeightSharing

        return WeightSharing(projections=self.projections, kernels=self.kernels)

    @property
    def measured_objectives(self) -> tuple[str, ...]:
        """The objectives that are measured of every network that is judged."""
        return tuple(name for name in self.objectives if name in MEASURED)

    @property
    def measured_limits(self) -> dict[str, float]:
        """The limits that only a measurement can check."""
        return {name: most for name, most in self.limits.items() if name in MEASURED}

    def load_space(self, file: Path | None = None) -> SearchSpace:
        """Read the space (or the run's copy of it) with this run's limits and image size."""
        if self.teacher:
            offered = None if self.space == USUAL else load_space(str(file or self.space))
            space = graft_space(read_teacher(Path(self.teacher)).architecture, offered)
        else:
            space = load_space(str(file or self.space))
        limits = {name: most for name, most in self.limits.items() if name in CLOSED_FORM}
        changed = space.replace(
            img_size=space.img_size if self.img_size is None else self.img_size,
            limits={**space.limits, **limits},
        )
        check_colours(changed.in_chans)
        if changed != space:
            check_space(changed)
        return changed

    def to_dict(self) -> dict[str, Any]:
        """Describe the settings with JSON values; `from_dict` inverts it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunSettings:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: If another version wrote it, or it is damaged.
        """
        try:
            return cls(**data)
        except (TypeError, AttributeError) as error:
            raise ValueError(
                "The settings of this run are of another version of mixer-search, or damaged "
                f"({error}). Go on with the version that began the run, or begin another run."
            ) from error


def parse_shares(texts: Iterable[str]) -> dict[str, float]:
    """Read shares like ``supernet=.5``.

    Raises:
        ValueError: If a text is no name and number.
    """
    shares = {}
    for text in texts:
        name, _, number = text.partition("=")
        try:
            shares[name.strip()] = float(number)
        except ValueError as error:
            raise ValueError(
                f"Cannot read the share {text!r}. Write a phase and a number, e.g. 'supernet=.5'."
            ) from error
    return shares
