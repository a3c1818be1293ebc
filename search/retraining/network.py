"""Retraining one architecture with a full recipe, and the folder of weights that it leaves.

Training sees train and search together; the test split is read once, after the last epoch, and is
never chosen by: which weights count, the last or the averaged ones, stands in the recipe.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from search.retraining.finished import read_result
from search.retraining.identity import identity_of, label_maps
from search.retraining.model_card import RetrainResult, model_card
from search.retraining.out_folder import RESULT_FILE, claim_folder, save_weights
from search.retraining.tensorboard import TensorBoard
from search.retraining.together import joined
from searchspace.architecture import Architecture, check_colours
from searchspace.cost import count
from supernet.data import ImageData, Split, Unlabelled
from supernet.network import build_subnet, interpolated_start
from supernet.recipes import Recipe, dump_recipe
from supernet.training import (
    EMA_FILE,
    WEIGHTS_FILE,
    EpochReport,
    LabelMaps,
    Teacher,
    TrainingOptions,
    TrainingResult,
    check_teacher,
    check_token_labels,
    check_unlabelled,
    remove_checkpoints,
    seen_mode,
    seen_share,
    train,
    write_text,
)

__all__ = ["RetrainOptions", "RetrainResult", "retrain"]

CARD_FILE = "README.md"


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrainOptions:
    """Where and how a retraining runs.

    Attributes:
        out: The folder that it leaves; one that was begun goes on, a finished one is kept.
        seed: Of weights and training; None takes the recipe's.
        device: Torch device.
        threads: CPU threads of torch; None leaves them as they are.
        on_epoch: Called after every epoch.
        should_stop: Asked before every epoch.
        start: Weights to start from, of this network at any window, kernel or image size; None
            starts fresh.
        start_name: What they are, for the model card.
        token_labels: Folder of label maps, for a recipe with token labels.
        teacher: Whom it learns from, for a recipe with distillation.
        unlabelled: Images without classes, to learn from the teacher on.
        search_teacher: Whom the trainings of the search that found it learnt from, for the card.
        identity: Of all that decides the training (`identity.identity_of`), where that is known
            already; None computes it.
        loader_workers: Processes that make batches; 0 for the one that trains.
        group: Where the processes that train together meet, their number, and which this one is;
            None for one process, or for the default group where there is one (torchrun).
    """

    out: Path
    seed: int | None = None
    device: str = "cpu"
    threads: int | None = None
    on_epoch: Callable[[EpochReport], None] | None = None
    should_stop: Callable[[], bool] | None = None
    start: Mapping[str, Tensor] | None = None
    start_name: str = "inherited"
    token_labels: Path | None = None
    teacher: Teacher | None = None
    unlabelled: Unlabelled | None = None
    search_teacher: str = ""
    identity: str | None = None
    loader_workers: int = 0
    group: tuple[str, int, int] | None = None


def retrain(
    architecture: Architecture, data: ImageData, recipe: Recipe, options: RetrainOptions
) -> RetrainResult:
    """Train on train and search, evaluate once on test, and leave the folder ``options.out``.

    It holds ``model.safetensors``, ``model_ema.safetensors`` (where the recipe averages),
    ``architecture.json``, ``recipe.yaml``, ``metrics.csv``, ``tensorboard/``, ``README.md`` and
    ``result.json``, which is written last.

    Raises:
        ValueError: If the architecture does not fit the data, or the folder holds something else.
        TrainingStopped: If ``options.should_stop`` said so; calling again goes on.
        FloatingPointError: If the loss is not finite.
    """
    recipe = recipe.model_copy(
        update={"seed": recipe.seed if options.seed is None else options.seed}
    )
    check_fit(architecture, data)
    check_token_labels(recipe, given=options.token_labels is not None)
    taught, more = options.teacher, options.unlabelled
    check_teacher(recipe, given=taught is not None)
    check_unlabelled(recipe, given=more is not None, is_taught=taught is not None)
    maps = label_maps(data, options.token_labels)
    if options.identity is None:
        labels = None if maps is None else maps.fingerprint()
        found = identity_of(
            architecture,
            data,
            recipe,
            start=options.start,
            labels=labels,
            teacher=None if taught is None else taught.fingerprint,
            unlabelled=None if more is None else more.fingerprint,
        )
        options = replace(options, identity=found)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with joined(options.group, options.device) as is_first:
        if is_first:
            claim_folder(options.out, architecture, dump_recipe(recipe), what="retraining")
        if (options.out / RESULT_FILE).exists():
            return _same_training(read_result(options.out), options)
        return _train(architecture, data, recipe, options, maps, is_first=is_first)


def _train(
    architecture: Architecture,
    data: ImageData,
    recipe: Recipe,
    options: RetrainOptions,
    maps: LabelMaps | None,
    *,
    is_first: bool,
) -> RetrainResult:
    """Train, and let the first process write what is left of it."""
    data = data.streamed() if recipe.token_labels else data
    with torch.random.fork_rng([]):
        torch.manual_seed(recipe.seed)
        network = build_subnet(architecture, recipe.drop_path)
    if options.start is not None:
        network.load_state_dict(interpolated_start(options.start, network).state)
    with TensorBoard(options.out if is_first else None) as board:
        training = train(
            network,
            data,
            recipe,
            TrainingOptions(
                train_split=_images(data, options),
                eval_split=data.test_split(),
                seed=recipe.seed,
                device=options.device,
                out=options.out,
                on_epoch=board.after(options.on_epoch),
                should_stop=options.should_stop,
                loader_workers=options.loader_workers,
                maps=maps,
                teacher=options.teacher,
                identity=options.identity or "",
            ),
        )
    result = _result(architecture, data, recipe, options, training)
    if is_first:
        networks = {WEIGHTS_FILE: network, EMA_FILE: training.ema_network}
        result = replace(result, sha256=save_weights(options.out, networks))
        write_text(options.out / CARD_FILE, model_card(architecture, recipe, result))
        write_text(options.out / RESULT_FILE, json.dumps(result.to_dict(), indent=1) + "\n")
        remove_checkpoints(options.out)
    return result


def _images(data: ImageData, options: RetrainOptions) -> Split:
    labelled, more = data.full_train(), options.unlabelled
    return labelled if more is None else more.added_to(labelled)


def _same_training(found: RetrainResult, options: RetrainOptions) -> RetrainResult:
    """Return the result of a finished training, if that was this one."""
    if found.identity != options.identity:
        raise ValueError(
            f"{options.out} holds a retraining from other weights, images or label maps, and "
            "results are never overwritten. Choose another folder, or remove this one."
        )
    return found


def check_fit(architecture: Architecture, data: ImageData) -> None:
    """Refuse images of another size, other colours or other classes than the architecture's."""
    check_colours(architecture.in_chans)
    wanted = (architecture.img_size, architecture.num_classes)
    if wanted != (data.img_size, data.num_classes):
        raise ValueError(
            "An architecture is retrained on images of its size and classes: it has "
            f"{wanted[0]} pixels and {wanted[1]} classes, the data {data.img_size} pixels and "
            f"{data.num_classes} classes. Prepare the data at its size, or replace these fields."
        )


def _result(
    architecture: Architecture,
    data: ImageData,
    recipe: Recipe,
    options: RetrainOptions,
    training: TrainingResult,
) -> RetrainResult:
    cost = count(architecture)
    return RetrainResult(
        key=architecture.key,
        params=cost.params,
        macs=cost.macs,
        recipe=recipe.name,
        epochs=recipe.total_epochs,
        seed=recipe.seed,
        start="fresh" if options.start is None else options.start_name,
        teacher="" if options.teacher is None else options.teacher.name,
        search_teacher=options.search_teacher,
        data=data.name,
        data_fingerprint=data.fingerprint,
        class_names=data.class_names,
        mean=data.mean,
        std=data.std,
        crop_pct=seen_share(data, recipe.crop_pct),
        crop_mode=seen_mode(data, recipe.crop_mode),
        num_train_images=len(data.full_train()),
        num_unlabelled=0 if options.unlabelled is None else options.unlabelled.count,
        device=options.device,
        seconds=training.seconds,
        raw=training.raw,
        ema=training.ema,
        identity=options.identity or "",
    )
