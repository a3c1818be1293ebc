"""ONNX files of 8-bit integers: weights and activations, scales found on some images."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Convolutions and products: all else is little work and loses accuracy.
OPERATORS = ["Conv", "Gemm", "MatMul"]
NOISE_INPUTS = 4


class _Inputs:
    """The images that scales are found on, as onnxruntime asks for them."""

    def __init__(self, name: str, images: Sequence[NDArray[np.float32]]) -> None:
        self._rows = iter([{name: one} for one in images])

    def get_next(self) -> dict[str, Any] | None:
        """Return the next input, or None behind the last."""
        return next(self._rows, None)


def quantise(path: Path, out: Path, images: Sequence[NDArray[np.float32]] | None = None) -> None:
    """Write a file of 8-bit integers for one of float32 (static quantisation, QDQ).

    Weights have a scale for each channel. What runs the file reads what is quantised from it.

    Args:
        path: The file of float32.
        out: To write.
        images: Inputs to find the activations' scales on, each of the file's shape; None takes
            noise, which is enough to time the file and not to judge it.
    """
    import onnxruntime
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    # It warns of weights that its own preparation leaves unused.
    onnxruntime.set_default_logger_severity(3)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    if images is None:
        rng = np.random.default_rng(0)
        shape = tuple(given.shape)
        images = [rng.standard_normal(shape).astype(np.float32) for _ in range(NOISE_INPUTS)]
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(out),
            _Inputs(given.name, images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=OPERATORS,
        )
