"""A network as a file that runs without this package: ONNX, torch.export, timm's hub layout.

Operators are traced in their naive formulation (``MIXER_KERNELS=naive``), which is plain torch; the
batch size stays free.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from configs.installation import install_command
from supernet.kernels import VARIABLE

ONNX_MODULES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
# Beside the program in a file of torch.export.
CFG_FILE = "pretrained_cfg.json"


def traced(network: nn.Module, images: Tensor, *, batch_is_free: bool = True) -> ExportedProgram:
    """Trace a network in eval mode with torch.export, for batches of any size or of one.

    Args:
        images: An example, shape (2 or more, C, H, W); where the batch is not free, (any, ...).
        batch_is_free: Whether the program takes batches of any size.
    """
    network.eval()
    for parameter in network.parameters():
        # torch.export.save cannot store a permuted tensor without a warning.
        parameter.data = parameter.data.contiguous()
    with _naive_operators():
        with torch.no_grad():
            # Tensors that are made once and kept must be made before tracing, or traced ones stay.
            network(images)
        free = {"images": {0: Dim.DYNAMIC}} if batch_is_free else None
        return torch.export.export(network, (images,), dynamic_shapes=free)


def write_torch(program: ExportedProgram, path: Path, expects: Mapping[str, Any]) -> None:
    """Write a traced network as a file for ``torch.export.load(path).module()``.

    Args:
        expects: What the network expects of its images, kept as the extra file
            ``pretrained_cfg.json``.
    """
    torch.export.save(program, path, extra_files={CFG_FILE: json.dumps(dict(expects))})


def write_onnx(program: ExportedProgram, path: Path, expects: Mapping[str, Any]) -> None:
    """Write a traced network as ONNX: input ``images``, output ``logits``.

    Args:
        expects: What the network expects of its images, kept as metadata, JSON by key.

    Raises:
        ValueError: If the packages for it are not installed.
    """
    check_onnx_installed()
    converted = torch.onnx.export(
        program,
        dynamo=True,
        input_names=["images"],
        output_names=["logits"],
        external_data=False,
        verbose=False,
    )
    assert converted is not None
    converted.model.metadata_props.update({key: json.dumps(v) for key, v in expects.items()})
    converted.save(str(path))


def onnx_error(path: Path, network: nn.Module, images: Tensor) -> float:
    """Return the largest difference between onnxruntime's logits and torch's, relative to both.

    Differences are divided by the largest logit where that is above 1. Batches of one image and of
    all are compared.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    with torch.no_grad():
        for batch in (images, images[:1]):
            expected = network.eval()(batch)
            (found,) = session.run(None, {"images": batch.numpy()})
            difference = (torch.from_numpy(found) - expected).abs().max()
            worst = max(worst, float(difference / max(float(expected.abs().max()), 1.0)))
    return worst


def check_onnx_installed() -> None:
    """Raise ValueError if the packages for ONNX are missing."""
    if missing := [name for name in ONNX_MODULES if find_spec(name) is None]:
        raise ValueError(
            f"ONNX needs the packages {', '.join(missing)}. Install them: "
            f"{install_command('export')}"
        )


def write_hub_layout(state: Mapping[str, Tensor], folder: Path, config: Mapping[str, Any]) -> Path:
    """Write weights and ``config.json`` as timm's models lie on a model hub; return the weights.

    Args:
        config: ``architecture`` (a name that timm knows), ``num_classes``, ``model_args`` and
            ``pretrained_cfg`` (input size, mean, std, crop, interpolation, classes).
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.safetensors"
    save_file({name: value.detach().clone().contiguous() for name, value in state.items()}, path)
    text = json.dumps(dict(config), indent=1) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    return path


@contextmanager
def _naive_operators() -> Iterator[None]:
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "naive"
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
