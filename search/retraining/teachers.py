"""Where teachers come from, and whether a network can learn from them: `find_teacher`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import get_pretrained_cfg, load_checkpoint
from torch import nn

from search.retraining.finished import Retrained, find_retrained
from searchspace.architecture import Architecture
from searchspace.presets import PRESETS, preset
from supernet.data import ImageData
from supernet.network import build_subnet
from supernet.recipes import Distillation, Recipe
from supernet.training import Lesson, Teacher, eval_batches, make_teacher

TIMM = "timm:"
# A teacher is heard on so many images before anything is spent on it.
HEARD_IMAGES = 4


def find_teacher(text: str, data: ImageData) -> Teacher:
    """Build a teacher and load its weights.

    Args:
        text: ``timm:NAME`` (with the weights that timm knows), ``timm:NAME:WEIGHTS`` or
            ``PRESET:WEIGHTS`` (a file), ``RUN:ID`` or the folder of a retraining.
        data: What it is to teach: its classes must be these.

    Raises:
        ValueError: If there is none, its weights do not fit, its classes are others, or it says
            nothing about these images.
    """
    return look_for_teacher(text)(data)


def look_for_teacher(text: str) -> Callable[[ImageData], Teacher]:
    """Look whether there is a teacher, before there are images; see `find_teacher`.

    Returns:
        What builds it, for the images that it is to teach.

    Raises:
        ValueError: If there is none.
    """
    plain, _, weights = text.rpartition(":")
    build: Callable[[ImageData], Teacher]
    if text.startswith(TIMM):
        name, colon, file = text.removeprefix(TIMM).partition(":")
        if not _is_known(name):
            raise ValueError(
                f"--teacher {text}: timm knows no model {name!r}. See timm.list_models()."
            )
        build = partial(_of_timm, text, name, _file(text, file) if colon else None)
    elif plain in PRESETS:
        build = partial(_of_preset, text, plain, _file(text, weights))
    else:
        build = partial(_of_retraining, text, find_retrained(text))
    return lambda data: _heard(build(data), data)


@torch.no_grad()
def check_lesson(
    teacher: Teacher, recipe: Recipe, architecture: Architecture, data: ImageData
) -> None:
    """See that a network can learn from a teacher what a recipe asks for besides logits.

    Raises:
        ValueError: If the teacher has no such maps or features.
    """
    settings = recipe.distillation
    if settings is None or not (settings.tokens or settings.features):
        return
    images = torch.zeros(2, architecture.in_chans, architecture.img_size, architecture.img_size)
    lesson = Lesson(teacher, settings, data.mean, data.std, images.device)
    student = build_subnet(architecture).eval()
    with lesson.watching(student) as seen:
        logits = student(images)
    said, taught = lesson.teach(images)
    lesson.loss(logits, said, logits.mean(), seen=seen, taught=taught, progress=0.0)


def _of_retraining(text: str, found: Retrained, data: ImageData) -> Teacher:
    result = found.result
    if result.class_names != data.class_names:
        raise ValueError(
            f"The teacher {text} learnt other classes ({', '.join(result.class_names[:3])} "
            f"...) than those of {data.name} ({', '.join(data.class_names[:3])} ...), or in "
            "another order. Name one that was trained on these classes."
        )
    return make_teacher(
        found.network(),
        text,
        img_size=found.architecture.img_size,
        num_classes=data.num_classes,
        mean=result.mean,
        std=result.std,
    )


def _of_preset(text: str, name: str, weights: Path, data: ImageData) -> Teacher:
    architecture = preset(name).replace(num_classes=data.num_classes)
    network = build_subnet(architecture)
    _load(network, weights, text)
    return make_teacher(
        network,
        text,
        img_size=architecture.img_size,
        num_classes=data.num_classes,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
    )


def _of_timm(text: str, name: str, weights: Path | None, data: ImageData) -> Teacher:
    if weights is not None:
        network = timm.create_model(name, num_classes=data.num_classes)
        _load(network, weights, text)
    else:
        try:
            network = timm.create_model(name, pretrained=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"The weights of {text} cannot be had ({str(error).splitlines()[0]}). Name a file "
                f"of them: timm:{name}:WEIGHTS."
            ) from error
    config: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    return make_teacher(
        network,
        text,
        img_size=int(config["input_size"][-1]),
        num_classes=int(network.num_classes),  # type: ignore[arg-type]
        mean=config["mean"],
        std=config["std"],
        timm_name=name,
    )


def _is_known(name: str) -> bool:
    """Tell whether timm has a model, and weights of the name behind a dot where there is one."""
    try:
        get_pretrained_cfg(name)
    except RuntimeError:
        return False
    return bool(timm.is_model(name))


def _file(text: str, weights: str) -> Path:
    if not Path(weights).is_file():
        raise ValueError(f"--teacher {text}: there is no file {weights!r}. {_REMEDY}")
    return Path(weights)


_REMEDY = "Name a file with the weights of this network and these classes."


def _load(network: nn.Module, weights: Path, text: str) -> None:
    """Load a file of weights, as timm reads them: safetensors, or torch's without foreign code."""
    try:
        load_checkpoint(network, str(weights), use_ema=False, weights_only=True)
    # Whatever an unpickler raises, and what becomes of what it finds, it raises about the file.
    except Exception as error:
        words = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"--teacher {text}: {weights} does not fit ({words}). {_REMEDY}"
        ) from error
    for name, value in network.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(
                f"--teacher {text}: {name} in {weights} has values that are no finite numbers. "
                f"{_REMEDY}"
            )


@torch.no_grad()
def _heard(teacher: Teacher, data: ImageData) -> Teacher:
    """Return a teacher that has an opinion, a finite one, on every class of the images."""
    rule = "A teacher has an opinion on every class of the images"
    if teacher.num_classes != data.num_classes:
        raise ValueError(
            f"{rule}: {teacher.name} has {teacher.num_classes} classes, {data.name} has "
            f"{data.num_classes}. Name one that was trained on these classes."
        )
    images, _ = next(iter(eval_batches(data.split("train"), data, HEARD_IMAGES)))
    lesson = Lesson(
        teacher, Distillation(weight=1, temperature=1), data.mean, data.std, images.device
    )
    try:
        said = lesson.logits(images)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        words = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"The teacher {teacher.name} cannot look at images of {data.name} ({words}). Name one "
            f"for images of {images.shape[1]} channels."
        ) from error
    if said.shape != (len(images), data.num_classes) or not said.isfinite().all():
        raise ValueError(
            f"{rule}: {teacher.name} says what is no {data.num_classes} finite numbers for each. "
            "Name another, or restore its weights from a copy."
        )
    return teacher
