"""``search export``: a retrained network in formats that others load."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch

from search.retraining.finished import Retrained, find_retrained
from search.retraining.graft_source import CONFIG_FILE, WEIGHTS_FILE
from supernet.exchange.export import (
    TOLERANCE,
    check_onnx_installed,
    onnx_error,
    traced,
    write_hub_layout,
    write_onnx,
    write_torch,
)
from supernet.exchange.hub import check_repository, push_to_hub
from supernet.exchange.timm_layout import timm_model, timm_state

FORMATS = ("safetensors", "timm", "onnx", "torch")
EXPORT_FOLDER = "export"
TIMM_FOLDER = "timm"


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that was written, and what was checked about it."""

    path: Path
    checked: str


def export_retrained(
    target: str, formats: Sequence[str], out: Path | None, *, push: str | None = None
) -> list[Exported]:
    """Write a retrained network in some formats.

    Args:
        target: ``RUN:ID`` or the folder of a retraining.
        formats: Of `FORMATS`.
        out: Where to; None takes ``export/`` in the folder of the retraining.
        push: ``USER/NAME`` on a model hub, where the network goes as well: as timm's own class
            where that is among the formats.

    Raises:
        ValueError: If there is no such retraining or format, the folder holds other weights, or a
            check fails.
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ValueError(
            f"Unknown format {unknown[0]!r}. Formats: {', '.join(FORMATS)}; several with commas."
        )
    if push is not None:
        check_repository(push)
        if not {"safetensors", "timm"} & set(formats):
            raise ValueError(
                f"A hub takes --format safetensors or timm, got {', '.join(formats)}. Add one."
            )
    found = find_retrained(target)
    if "onnx" in formats:
        check_onnx_installed()
    if "timm" in formats:
        timm_model(found.architecture)
    folder = out or found.folder / EXPORT_FOLDER
    if "safetensors" in formats:
        _check_free(folder)
    if "timm" in formats:
        _check_free(folder / TIMM_FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    if "safetensors" in formats:
        written.append(_ours(found, folder))
    if "timm" in formats:
        written.append(_timms(found, folder / TIMM_FOLDER))
    if "onnx" in formats or "torch" in formats:
        written += _traced(found, folder, formats)
    if push is not None:
        pushed = folder / TIMM_FOLDER if "timm" in formats else folder
        written.append(Exported(pushed, f"pushed to {push_to_hub(pushed, push)}"))
    return written


def _check_free(folder: Path) -> None:
    """Refuse a folder with weights that no export wrote, such as those of a retraining."""
    if (folder / WEIGHTS_FILE).exists() and not (folder / CONFIG_FILE).exists():
        raise ValueError(
            f"{folder} holds the weights of a training or an import, and results are never "
            "overwritten. Name another folder with --out."
        )


def _ours(found: Retrained, folder: Path) -> Exported:
    description = found.architecture.to_dict()
    config = {
        "architecture": "mixer_search",
        "num_classes": found.architecture.num_classes,
        "model_args": {"architecture": description},
        "pretrained_cfg": pretrained_cfg(found),
    }
    path = write_hub_layout(found.network().state_dict(), folder, config)
    text = json.dumps(description, indent=1) + "\n"
    (folder / "architecture.json").write_text(text, encoding="utf-8")
    return Exported(path, _loaded_again(found, folder))


def _timms(found: Retrained, folder: Path) -> Exported:
    model = timm_model(found.architecture)
    config = {
        "architecture": model.name,
        "num_classes": found.architecture.num_classes,
        "model_args": dict(model.args),
        "pretrained_cfg": pretrained_cfg(found),
    }
    state = timm_state(found.network().state_dict(), found.architecture)
    path = write_hub_layout(state, folder, config)
    return Exported(path, _loaded_again(found, folder))


def _loaded_again(found: Retrained, folder: Path) -> str:
    """Load a folder as timm's users do and compare the logits."""
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = _images(found)
    with torch.no_grad():
        error = float((loaded(images) - found.network()(images)).abs().max())
    _check(error, folder, "timm")
    return f"local-dir:{folder} loaded by timm, largest difference of logits {error:.1e}"


def _images(found: Retrained) -> torch.Tensor:
    size = found.architecture.img_size
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, found.architecture.in_chans, size, size, generator=generator)


def pretrained_cfg(found: Retrained) -> dict[str, Any]:
    """Say as timm does what the network expects of its images."""
    size, recipe, result = found.architecture.img_size, found.recipe, found.result
    return {
        "input_size": [found.architecture.in_chans, size, size],
        "num_classes": found.architecture.num_classes,
        "mean": list(result.mean),
        "std": list(result.std),
        "crop_pct": result.crop_pct,
        "crop_mode": found.crop_mode,
        "interpolation": recipe.eval_interpolation,
        "label_names": list(result.class_names),
    }


def _traced(found: Retrained, folder: Path, formats: Sequence[str]) -> list[Exported]:
    network, images = found.network(), _images(found)
    program = traced(network, images)
    written = []
    if "torch" in formats:
        path = folder / "model.pt2"
        write_torch(program, path, pretrained_cfg(found))
        loaded = torch.export.load(path).module()
        with torch.no_grad():
            error = max(
                float((loaded(batch) - network(batch)).abs().max())
                for batch in (images, images[:1])
            )
        _check(error, path, "torch")
        written.append(Exported(path, f"loaded again, largest difference of logits {error:.1e}"))
    if "onnx" in formats:
        path = folder / "model.onnx"
        write_onnx(program, path, pretrained_cfg(found))
        error = onnx_error(path, network, images)
        _check(error, path, "onnxruntime")
        written.append(Exported(path, f"onnxruntime against torch: {error:.1e} of the logits"))
    return written


def _check(error: float, path: Path, runner: str) -> None:
    if not error <= TOLERANCE:
        raise ValueError(
            f"{path} gives other logits in {runner} than the network: {error:.1e}, allowed is "
            f"{TOLERANCE:.0e}. Do not use it; report this network's architecture.json."
        )
