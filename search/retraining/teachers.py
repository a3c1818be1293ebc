"""Where teachers come from: `find_teacher`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import load_checkpoint
from torch import nn

from search.retraining.finished import find_retrained
from search.retraining.identity import digest_of
from searchspace.presets import PRESETS, preset
from supernet.data import ImageData
from supernet.network import build_subnet
from supernet.training import Teacher

TIMM = "timm:"


def find_teacher(text: str, data: ImageData) -> Teacher:
    """Build a teacher and load its weights.

    Args:
        text: ``timm:NAME`` (with the weights that timm knows), ``timm:NAME:WEIGHTS`` or
            ``PRESET:WEIGHTS`` (a file), ``RUN:ID`` or the folder of a retraining.
        data: What it is to teach: its classes must be these.

    Raises:
        ValueError: If there is none, its weights do not fit, or its classes are others.
    """
    plain, _, weights = text.rpartition(":")
    if text.startswith(TIMM):
        teacher = _of_timm(text, data)
    elif plain in PRESETS:
        teacher = _of_preset(text, plain, Path(weights), data)
    else:
        teacher = _of_retraining(text, data)
    if teacher.num_classes != data.num_classes:
        raise ValueError(
            "A teacher has an opinion on every class of the images: "
            f"{text} has {teacher.num_classes} classes, {data.name} has {data.num_classes}. Name "
            "one that was trained on these classes."
        )
    return teacher


def _of_retraining(text: str, data: ImageData) -> Teacher:
    found = find_retrained(text)
    if found.result.class_names != data.class_names:
        raise ValueError(
            f"The teacher {text} learnt other classes ({', '.join(found.result.class_names[:3])} "
            f"...) than those of {data.name} ({', '.join(data.class_names[:3])} ...), or in "
            "another order. Name one that was trained on these classes."
        )
    size, result = found.architecture.img_size, found.result
    return _teacher(found.network(), text, size, data.num_classes, result.mean, result.std)


def _of_preset(text: str, name: str, weights: Path, data: ImageData) -> Teacher:
    architecture = preset(name).replace(num_classes=data.num_classes)
    network = build_subnet(architecture)
    _load(network, weights, text)
    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return _teacher(network, text, architecture.img_size, data.num_classes, mean, std)


def _of_timm(text: str, data: ImageData) -> Teacher:
    name, _, weights = text.removeprefix(TIMM).partition(":")
    if not timm.is_model(name):
        raise ValueError(f"--teacher {text}: timm knows no model {name!r}. See timm.list_models().")
    if weights:
        network = timm.create_model(name, num_classes=data.num_classes)
        _load(network, Path(weights), text)
    else:
        try:
            network = timm.create_model(name, pretrained=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"The weights of {text} cannot be had ({str(error).splitlines()[0]}). Name a file "
                f"of them: timm:{name}:WEIGHTS."
            ) from error
    config: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    classes = int(network.num_classes)  # type: ignore[arg-type]
    size = int(config["input_size"][-1])
    return _teacher(network, text, size, classes, config["mean"], config["std"])


def _load(network: nn.Module, weights: Path, text: str) -> None:
    """Load a file of weights, as timm reads them: safetensors, or torch's without foreign code."""
    remedy = "Name a file with the weights of this network and these classes."
    if not weights.is_file():
        raise ValueError(f"--teacher {text}: there is no file {str(weights)!r}. {remedy}")
    try:
        load_checkpoint(network, str(weights), use_ema=False, weights_only=True)
    # Whatever an unpickler raises, and what becomes of what it finds, it raises about the file.
    except Exception as error:
        words = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"--teacher {text}: {weights} does not fit ({words}). {remedy}") from error
    for name, value in network.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(
                f"--teacher {text}: {name} in {weights} has values that are no finite numbers. "
                f"{remedy}"
            )


def _teacher(
    network: nn.Module,
    name: str,
    img_size: int,
    num_classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Teacher:
    about = json.dumps([img_size, list(mean), list(std)])
    state = digest_of(network.state_dict())
    return Teacher(
        network=network.eval().to(torch.float32),
        name=name,
        img_size=img_size,
        num_classes=num_classes,
        mean=tuple(mean),
        std=tuple(std),
        fingerprint=hashlib.sha256(f"{about} {state}".encode()).hexdigest(),
    )
