"""ONNX files, run by onnxruntime, OpenVINO or TensorRT: numpy in, numpy out, no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.files import reading
from searchspace.deployment import Deployment

Array = NDArray[np.float32]
REMEDY = "Write it anew with `search latency --export` or `search export --format onnx`."


@dataclass(frozen=True, slots=True)
class OpenNetwork:
    """A network that is ready to run.

    Attributes:
        shape: Of its input; the batch is the first.
        run: Computes the output of an input.
    """

    shape: tuple[int, ...]
    run: Callable[[Array], Array]

    def runner(self) -> Callable[[], object]:
        """Make what runs the network once, on noise."""
        noise = np.random.default_rng(0).standard_normal(self.shape).astype(np.float32)
        return lambda: self.run(noise)


def open_network(path: Path, deployment: Deployment, *, threads: int) -> OpenNetwork:
    """Load an ONNX file whose input has a fixed shape, or else the deployment's batch.

    Args:
        path: Of the file; one of int8 is quantised already.
        deployment: By what it is run.
        threads: Of a CPU.

    Raises:
        ValueError: If the runtime cannot read the file, or cannot compute in the precision.
    """
    opened = _openvino if deployment.target == "openvino" else _onnxruntime
    # Each runtime has exceptions of its own for a file that it cannot read.
    with reading(path, f"a network for {deployment.target}", remedy=REMEDY, errors=(Exception,)):
        return opened(path, deployment, threads)


def _onnxruntime(path: Path, deployment: Deployment, threads: int) -> OpenNetwork:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=_providers(deployment))
    (given,) = session.get_inputs()
    name = given.name
    return OpenNetwork(
        _shape(given.shape, deployment),
        lambda images: session.run(None, {name: images})[0],
    )


def _providers(deployment: Deployment) -> list[Any]:
    if deployment.target != "tensorrt":
        return ["CPUExecutionProvider"]
    import onnxruntime

    if "TensorrtExecutionProvider" not in onnxruntime.get_available_providers():
        raise ValueError("this onnxruntime has no TensorRT; install onnxruntime-gpu in its place")
    precision = {
        "trt_fp16_enable": deployment.precision == "fp16",
        "trt_int8_enable": deployment.precision == "int8",
    }
    return [("TensorrtExecutionProvider", precision), "CUDAExecutionProvider"]


def _openvino(path: Path, deployment: Deployment, threads: int) -> OpenNetwork:
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    shape = _shape(
        [size.get_length() if size.is_static else None for size in model.input(0).partial_shape],
        deployment,
    )
    model.reshape({0: list(shape)})
    # Files of int8 say themselves what is computed in it; the rest of them is float32.
    wanted = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}[deployment.precision]
    compiled = core.compile_model(
        model,
        "CPU",
        {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": wanted,
        },
    )
    used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if used != wanted:
        raise ValueError(f"this processor computes in {used} where {wanted} is asked for")
    request = compiled.create_infer_request()

    def run(images: Array) -> Array:
        found: Array = request.infer({0: images}, share_inputs=True)[0]
        return found

    return OpenNetwork(shape, run)


def _shape(sizes: list[Any], deployment: Deployment) -> tuple[int, ...]:
    """Put the batch where a file leaves it free."""
    batch, *others = sizes
    if not all(isinstance(size, int) for size in others):
        raise ValueError(f"its input must have fixed sizes but for the batch, got {sizes}")
    return (batch if isinstance(batch, int) else deployment.batch, *others)
