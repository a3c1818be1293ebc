"""Training one network as a backbone, judging it once, and the folder that is left of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from search.record import Measured
from search.retraining.identity import NOT_DECISIVE
from search.retraining.out_folder import RESULT_FILE, claim_folder, save_weights
from search.retraining.together import joined
from search.transferring.result import (
    PICTURES,
    PREDICTIONS_FILE,
    TransferResult,
    read_result,
)
from search.transferring.target import check_target, count_target
from supernet.data.dense import DenseData, DenseSplit
from supernet.data.dense.masks import require_pycocotools
from supernet.dense.distillation import DenseTeacher, check_dense_teacher
from supernet.dense.judging import Judgement, judge, predict_objects, predict_pixels
from supernet.dense.network import DenseNetwork, Segmenter, build_dense
from supernet.dense.options import dense_options
from supernet.dense.pictures import draw_classes, draw_objects, draw_truth, side_by_side
from supernet.dense.start import load_start
from supernet.dense.target import Target, choices_of
from supernet.dense.training import DenseTrainingOptions, StepReport, train_dense
from supernet.recipes import DenseRecipe, dump_dense_recipe
from supernet.training import WEIGHTS_FILE, digest_of, remove_checkpoints, write_text

NUM_PICTURES = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferOptions:
    """Where and how a transfer runs.

    Attributes:
        out: The folder that it leaves; one that was begun goes on, a finished one is kept.
        seed: Of weights and training; None takes the recipe's.
        data_source: What the user named the data by.
        device: Torch device.
        threads: CPU threads of torch; None leaves them as they are.
        on_report: Called after every checkpoint.
        should_stop: Asked before every step.
        start: Weights of the same network to start from (`supernet.dense.start`); None: fresh.
        start_name: What they are.
        teacher: Whom the network learns from as well.
        loader_workers: Processes that make batches; 0 for the one that trains.
        group: Where the processes that train together meet, their number, and which this one is;
            None for one process, or for the default group where there is one (torchrun).
    """

    out: Path
    seed: int | None = None
    data_source: str = ""
    device: str = "cpu"
    threads: int | None = None
    on_report: Callable[[StepReport], None] | None = None
    should_stop: Callable[[], bool] | None = None
    start: Mapping[str, Tensor] | None = None
    start_name: str = "fresh"
    teacher: DenseTeacher | None = None
    loader_workers: int = 0
    group: tuple[str, int, int] | None = None


def transfer(
    architecture: Target, data: DenseData, recipe: DenseRecipe, options: TransferOptions
) -> TransferResult | None:
    """Train a network as a backbone, judge it once, and leave the folder ``options.out``.

    It holds ``model.safetensors`` (backbone and heads), ``architecture.json``, ``recipe.yaml``,
    ``metrics.csv``, ``predictions.json`` (of detectors, COCO's format), ``pictures/`` and
    ``result.json``, which is written last.

    Returns:
        The result; None in all processes of a group but the first.

    Raises:
        ValueError: If the network is no backbone, the data is another task's, or the folder holds
            something else.
        TrainingStopped: If ``options.should_stop`` said so; calling again goes on.
        FloatingPointError: If a loss is not finite.
    """
    recipe = recipe.model_copy(
        update={"seed": recipe.seed if options.seed is None else options.seed}
    )
    check_transfer(architecture, recipe, data.task)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    taught = None if options.teacher is None else options.teacher.fingerprint
    identity = identity_of_transfer(architecture, data, recipe, options.start, taught)
    with joined(options.group, options.device) as is_first:
        is_done = (options.out / RESULT_FILE).exists()
        # Weights that do not fit are refused before anything is written.
        network = None if is_done else build_network(architecture, data, recipe, options.start)
        if network is not None and options.teacher is not None:
            check_dense_teacher(network, options.teacher)
        if is_first:
            text = dump_dense_recipe(recipe)
            claim_folder(options.out, architecture, text, what="transfer", also={"data"})
        if network is None:
            return _same_transfer(read_result(options.out), identity, options.out)
        history = train_dense(
            network,
            data.train,
            recipe,
            DenseTrainingOptions(
                seed=recipe.seed,
                device=options.device,
                out=options.out,
                on_report=options.on_report,
                should_stop=options.should_stop,
                loader_workers=options.loader_workers,
                identity=identity,
                teacher=options.teacher,
            ),
        )
        if not is_first:
            return None
        seconds = sum(report.seconds for report in history)
        return _finish(network, architecture, data, recipe, options, seconds, identity)


def identity_of_transfer(
    architecture: Target,
    data: DenseData,
    recipe: DenseRecipe,
    start: Mapping[str, Tensor] | None,
    teacher: str | None = None,
) -> str:
    """Hash all that decides a transfer, but for its seed.

    Args:
        start: The weights that it starts from.
        teacher: Fingerprint of whom it learns from.
    """
    decides = {
        "architecture": architecture.to_dict(),
        "recipe": recipe.model_dump(mode="json", exclude=NOT_DECISIVE),
        "data": [data.task, data.fingerprint, list(data.class_names)],
        "start": None if start is None else digest_of(start),
    }
    decides |= {} if teacher is None else {"teacher": teacher}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _same_transfer(found: TransferResult, identity: str, out: Path) -> TransferResult:
    """Return the result of a finished transfer, if that was this one."""
    if found.identity != identity:
        raise ValueError(
            f"{out} holds a transfer of other images or from other weights, and results are never "
            "overwritten. Choose another folder, or remove this one."
        )
    return found


def check_transfer(architecture: Target, recipe: DenseRecipe, task: str) -> None:
    """Check that a network, a recipe and a task go together.

    Raises:
        ValueError: If they do not.
    """
    recipe.check_task(task)
    check_target(architecture)
    if task != "semantic":
        require_pycocotools()


def build_network(
    architecture: Target,
    data: DenseData,
    recipe: DenseRecipe,
    start: Mapping[str, Tensor] | None,
) -> DenseNetwork:
    """Build a detector or segmenter with the weights that it starts from.

    Raises:
        ValueError: If they are those of another network, or no finite numbers.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(recipe.seed)
        network = build_dense(
            choices_of(architecture),
            dense_options(recipe, len(data.class_names)),
            recipe.drop_path,
        )
    if start is not None:
        load_start(network, start)
    return network


def _finish(
    network: DenseNetwork,
    architecture: Target,
    data: DenseData,
    recipe: DenseRecipe,
    options: TransferOptions,
    seconds: float,
    identity: str,
) -> TransferResult:
    """Judge the network and write what is left of the training."""
    judged = judge(network, data.test, recipe, device=options.device)
    draw_pictures(network, data.test, recipe, options.out / PICTURES, device=options.device)
    if judged.predictions:
        write_text(options.out / PREDICTIONS_FILE, json.dumps(judged.predictions) + "\n")
    result = _result(architecture, data, recipe, options, judged, seconds, identity)
    result = replace(result, sha256=save_weights(options.out, {WEIGHTS_FILE: network.cpu()}))
    write_text(options.out / RESULT_FILE, json.dumps(result.to_dict(), indent=1) + "\n")
    remove_checkpoints(options.out)
    return result


def draw_pictures(
    network: DenseNetwork, split: DenseSplit, recipe: DenseRecipe, folder: Path, *, device: str
) -> None:
    """Draw the truth beside what a network finds, for the first images of a split."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(min(NUM_PICTURES, len(split))):
        pixels = split.images[index].pixels()
        if isinstance(network, Segmenter):
            classes = predict_pixels(network, split, index, recipe, device)
            drawn = draw_classes(pixels, classes, len(split.class_names))
        else:
            found = predict_objects(network, split, index, recipe, device)
            drawn = draw_objects(pixels, found, split.class_names)
        truth = draw_truth(split, index, task=recipe.task)
        side_by_side(truth, drawn).save(folder / f"{index}.png")


def _result(
    architecture: Target,
    data: DenseData,
    recipe: DenseRecipe,
    options: TransferOptions,
    judged: Judgement,
    seconds: float,
    identity: str,
) -> TransferResult:
    cost = count_target(architecture, recipe, len(data.class_names))
    qualities: dict[str, Any] = judged.values()
    return TransferResult(
        key=architecture.key,
        task=recipe.task,
        head=recipe.head,
        params=cost.params,
        macs=cost.macs,
        recipe=recipe.name,
        length=recipe.length(),
        seed=recipe.seed,
        start=options.start_name,
        data=data.name,
        data_source=options.data_source,
        data_fingerprint=data.fingerprint,
        split=data.test_name,
        class_names=data.class_names,
        images=judged.images,
        measured=Measured(**qualities),
        by_class=judged.measures[0].by_class,
        device=options.device,
        seconds=seconds,
        identity=identity,
        teacher="" if options.teacher is None else options.teacher.name,
    )
