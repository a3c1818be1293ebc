"""`RetrainPlan`: what `search retrain` was asked to do with each network, checked before any trial.

What was asked wrongly is refused here and in `prepare`, where nothing is recorded yet: what a
training meets later is the machine's fault, or the network's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from search.retraining.finished import find_retrained
from search.retraining.graft_source import WEIGHTS_FILE, is_import
from search.retraining.identity import identity_of, label_maps
from search.retraining.network import check_fit
from search.retraining.teachers import check_lesson, look_for_teacher
from search.run_folder import DATA, LIBRARY, BuildsTeacher, RunFolder, StorageError
from searchspace.architecture import Architecture
from searchspace.mixers import Mixer
from supernet.data import ImageData, Unlabelled, mend_data, prepare_unlabelled
from supernet.grafting import assemble, load_library
from supernet.network import Supernet, build_subnet, extract, interpolated_start
from supernet.recipes import Recipe, load_recipe, with_epochs
from supernet.shared_weights import load_supernet
from supernet.training import (
    Teacher,
    check_teacher,
    check_token_labels,
    check_unlabelled,
    with_shards_for,
)

MAX_SEED = 2**63 - 1
# Of a word in the name of a folder: names of files end at 255 bytes.
MAX_WORD = 60
# As a teacher: the network that the run began with.
GRAFTED = "the-graft-s-teacher"


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrainPlan:
    """What `search retrain` was asked to do with each network.

    Attributes:
        recipe: Name or file; None takes the run's.
        epochs: Instead of the recipe's.
        seeds: Of weights and data order; every network is trained with each of them.
        inherit: Start from the weights that the run's supernet has for the network.
        start: Start from this folder of a retraining, or file of weights, of the same network.
        img_size: Another side of the images.
        taps: Turn windows and kernels of the first size into the second.
        token_labels: Folder of label maps.
        teacher: Whom the networks learn from, see `search.retraining.teachers.find_teacher`.
        unlabelled: Folder of images without classes, to learn from the teacher on.
        devices: That train one network together.
        workers: Processes that make batches for a device; None for 0 on CPU, 8 on a GPU.
    """

    recipe: str | None = None
    epochs: int | None = None
    seeds: Sequence[int] = (0,)
    inherit: bool = False
    start: Path | None = None
    img_size: int | None = None
    taps: tuple[int, int] | None = None
    token_labels: Path | None = None
    teacher: str | None = None
    unlabelled: Path | None = None
    devices: int = 1
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.inherit and self.start is not None:
            raise ValueError("A training has one start: give --inherit or --start, not both.")
        for name, number, least in (
            ("--epochs", self.epochs, 1),
            ("--devices", self.devices, 1),
            ("--workers", self.workers, 0),
            ("--img-size", self.img_size, 1),
        ):
            if number is not None and number < least:
                raise ValueError(f"{name} is at least {least}, got {number}. Write a larger one.")
        if wrong := [seed for seed in self.seeds if not 0 <= seed <= MAX_SEED]:
            raise ValueError(f"A seed is a number from 0 to {MAX_SEED}, got {wrong[0]}.")

    def load_recipe(self) -> Recipe:
        """Read the recipe at its length; `recipe` is a name by now."""
        recipe = load_recipe(self.recipe or "")
        return recipe if self.epochs is None else with_epochs(recipe, self.epochs)

    def label(self, recipe: Recipe) -> str:
        """Name what is done, in words that a folder may have."""
        words = [_word(recipe.name), f"{recipe.total_epochs}e"]
        words += ["inherited"] * self.inherit
        words += [] if self.start is None else [f"from-{_word(self.start.name)}"]
        words += [] if self.teacher is None else [f"taught-by-{_word(self.teacher)}"]
        words += [] if self.unlabelled is None else ["unlabelled"]
        words += [] if self.img_size is None else [f"{self.img_size}px"]
        words += [] if self.taps is None else ["{}to{}".format(*self.taps)]
        return "-".join(words)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """A network to retrain.

    Attributes:
        number: Its id in the run.
        architecture: At the size that was asked for.
        start: The weights that it starts from; None for fresh ones.
        identity: Of the training, but for its seed.
    """

    number: int
    architecture: Architecture
    start: Mapping[str, Tensor] | None
    identity: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What the trainings of a command share, and its networks."""

    plan: RetrainPlan
    recipe: Recipe
    data: ImageData
    teacher: Teacher | None
    unlabelled: Unlabelled | None
    networks: tuple[Wanted, ...]


def prepare(run: RunFolder, ids: Sequence[int], plan: RetrainPlan) -> Prepared:
    """Read and check all that the trainings need; each network once.

    Raises:
        ValueError: If anything that was asked for cannot be done; nothing has been recorded.
    """
    plan = replace(plan, recipe=plan.recipe or run.settings.retrain_recipe)
    if run.settings.teacher:
        plan = _healing(run, plan)
    recipe = plan.load_recipe()
    check_token_labels(recipe, given=plan.token_labels is not None)
    is_taught = plan.teacher is not None
    check_teacher(recipe, given=is_taught)
    check_unlabelled(recipe, given=plan.unlabelled is not None, is_taught=is_taught)
    numbers = tuple(dict.fromkeys(ids))
    architectures = [resized(run.architecture(number), plan) for number in numbers]
    starts = [_start(run, number, plan) for number in numbers]
    build_teacher = None if plan.teacher is None else _look_for_teacher(run, plan.teacher)
    data = _data(run, plan)
    teacher = None if build_teacher is None else build_teacher(data)
    for architecture, start in zip(architectures, starts, strict=True):
        check_network(architecture, data, recipe, start=start, teacher=teacher)
    # A damaged test image is found now, and not after the last epoch.
    data.test_split()
    more = None
    if plan.unlabelled is not None:
        more = prepare_unlabelled(plan.unlabelled, data, run.folder)
    num_images = len(data.full_train()) + (0 if more is None else more.count)
    if num_images < 2:
        raise ValueError(f"Training needs at least 2 images, got {num_images}. Add images.")
    recipe = with_shards_for(recipe, num_images, plan.devices)
    maps = label_maps(data, plan.token_labels)
    labels = None if maps is None else maps.fingerprint()
    taught = None if teacher is None else teacher.fingerprint
    return Prepared(
        plan=plan,
        recipe=recipe,
        data=data,
        teacher=teacher,
        unlabelled=more,
        networks=tuple(
            Wanted(
                number=number,
                architecture=architecture,
                start=start,
                identity=identity_of(
                    architecture,
                    data,
                    recipe,
                    start=start,
                    labels=labels,
                    teacher=taught,
                    unlabelled=None if more is None else more.fingerprint,
                ),
            )
            for number, architecture, start in zip(numbers, architectures, starts, strict=True)
        ),
    )


def resized(architecture: Architecture, plan: RetrainPlan) -> Architecture:
    """Return the network at the plan's image size, with its windows and kernels.

    Raises:
        ValueError: If no mixer has the size that is to change, or the sizes do not fit.
    """
    if plan.img_size is not None:
        architecture = architecture.replace(img_size=plan.img_size)
    if plan.taps is None:
        return architecture
    old, new = plan.taps
    changed = [
        replace(stage, mixers=tuple(_with_taps(mixer, old, new) for mixer in stage.mixers))
        for stage in architecture.stages
    ]
    if changed == list(architecture.stages):
        raise ValueError(f"No mixer of this network has the size {old}. Leave --taps out.")
    return architecture.replace(stages=tuple(changed))


def _with_taps(mixer: Mixer, old: int, new: int) -> Mixer:
    for name in ("window_size", "kernel_size"):
        if getattr(mixer, name, None) == old:
            return replace(mixer, **{name: new})  # type: ignore[arg-type]
    return mixer


def _word(text: str) -> str:
    """Leave of a name what every file system takes, and nothing that leads elsewhere."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", text)[:MAX_WORD]


def _data(run: RunFolder, plan: RetrainPlan) -> ImageData:
    # Decoded arrays that were damaged meanwhile are decoded again from their source.
    run.check_classifies()
    data = run.as_taught(mend_data(run.folder / DATA))
    if plan.img_size is None or plan.img_size == data.img_size:
        return data
    return run.as_taught(data.at_size(plan.img_size, run.folder / f"data-{plan.img_size}"))


def _healing(run: RunFolder, plan: RetrainPlan) -> RetrainPlan:
    """Let networks of a graft begin with their parts, beside their teacher, unless told otherwise.

    Without the teacher there is nothing to learn from but labels: a recipe that has no distillation
    takes none.
    """
    learns = load_recipe(plan.recipe or "").distillation is not None
    is_own_size = plan.img_size in (None, run.space().img_size)
    teacher = plan.teacher or (GRAFTED if learns and is_own_size else None)
    return replace(plan, inherit=plan.start is None, teacher=teacher)


def _look_for_teacher(run: RunFolder, text: str) -> BuildsTeacher:
    """Look for whom networks learn from: the network that a graft began with, or another."""
    grafted = run.teacher if text == GRAFTED else None
    return look_for_teacher(text) if grafted is None else lambda data: grafted.mentor()


def assembled(run: RunFolder, number: int) -> Supernet:
    """Build a network of a graft as it is before it is healed.

    Raises:
        ValueError: If its parts have not learned, or cannot be had.
    """
    found, split = run.teacher, run.state.library
    assert found is not None
    if split is None or run.state.library_done < split[0]:
        raise ValueError(
            f"The parts of {run.folder} have not learned yet. Let it go on first: search run "
            "--resume."
        )
    try:
        folders = [run.files.fetch(f"{LIBRARY}/{share}") for share in range(split[0])]
    except StorageError as error:
        raise ValueError(str(error)) from error
    return assemble(run.architecture(number), found.network(), load_library(folders))


def _start(run: RunFolder, number: int, plan: RetrainPlan) -> dict[str, Tensor] | None:
    """Load the weights that a network starts from."""
    if plan.inherit and run.settings.teacher:
        return dict(assembled(run, number).state_dict())
    if plan.inherit:
        try:
            supernet = load_supernet(run.supernet_folder(), run.space())
        except FileNotFoundError as error:
            raise ValueError(
                f"{run.folder} has no trained supernet. Leave --inherit out."
            ) from error
        return dict(extract(supernet, run.architecture(number)).state_dict())
    return None if plan.start is None else start_weights(plan.start)


def start_weights(path: Path) -> dict[str, Tensor]:
    """Load weights that a training starts from.

    Args:
        path: A file of safetensors, the folder of a retraining, or that of `search import`.

    Raises:
        ValueError: If there are none.
    """
    if not path.is_file() and not is_import(path):
        found = find_retrained(str(path))
        return dict(found.network().state_dict())
    weights = path if path.is_file() else path / WEIGHTS_FILE
    try:
        return load_file(weights)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{weights} cannot be read as weights ({error}). Name a file of safetensors, or the "
            "folder of a retraining or of `search import`."
        ) from error


def check_network(
    architecture: Architecture,
    data: ImageData,
    recipe: Recipe,
    *,
    start: Mapping[str, Tensor] | None,
    teacher: Teacher | None,
) -> None:
    """Build the network as its training will, and look whether all fits.

    Raises:
        ValueError: If images, recipe, start or teacher are none for this network.
    """
    check_fit(architecture, data)
    if recipe.token_labels is not None and architecture.family != "volo":
        raise ValueError(
            "Token labels need a network that classifies its tokens, of the family 'volo', got "
            f"{architecture.family!r}. Choose a recipe without token_labels, e.g. swin_300e."
        )
    if start is not None:
        interpolated_start(start, build_subnet(architecture, recipe.drop_path))
    if teacher is not None:
        check_lesson(teacher, recipe, architecture, data)
