"""How a network runs where it is used: by which runtime, in which precision, how many images."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from configs.installation import install_command

# What each runtime computes in; `int8` has 8-bit weights and activations, calibrated.
PRECISIONS_OF: Mapping[str, tuple[str, ...]] = {
    "eager": ("fp32", "bf16", "fp16"),
    "compiled": ("fp32", "bf16", "fp16"),
    "cuda-graph": ("fp32", "bf16", "fp16"),
    "onnxruntime": ("fp32", "int8"),
    "openvino": ("fp32", "bf16", "fp16", "int8"),
    "tensorrt": ("fp32", "fp16", "int8"),
}
TARGETS = tuple(PRECISIONS_OF)
# These run torch's own modules; the others read an ONNX file.
IN_TORCH = ("eager", "compiled", "cuda-graph")
ON_GPU = ("cuda-graph", "tensorrt")
# What must be installed to run a network, beside torch; TensorRT is driven by onnxruntime.
RUNTIMES: Mapping[str, str] = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
}
EXPORTERS = ("onnx", "onnxscript")
MOST_BATCH = 65_536


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """How a network is run.

    Attributes:
        target: The runtime, one of `TARGETS`: ``eager`` and ``compiled`` are torch's.
        precision: Of weights and activations, see `PRECISIONS_OF`.
        batch: Images at a time.

    Raises:
        ValueError: If the target has not this precision, or the batch no image.
    """

    target: str = "eager"
    precision: str = "fp32"
    batch: int = 1

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ValueError(
                f"Networks are timed as run by one of {', '.join(TARGETS)}, got {self.target!r}. "
                "Name one of these with --latency-of (of `search latency`: --target)."
            )
        known = PRECISIONS_OF[self.target]
        if self.precision not in known:
            raise ValueError(
                f"{self.target} is timed in {', '.join(known)}, got {self.precision!r}. "
                "Name one of these with --precision, or another target."
            )
        is_number = isinstance(self.batch, int) and not isinstance(self.batch, bool)
        if not is_number or not 1 <= self.batch <= MOST_BATCH:
            raise ValueError(
                f"A batch has 1 to {MOST_BATCH:,} images, got {self.batch!r}. Write e.g. --batch 1."
            )

    def __str__(self) -> str:
        images = "one image" if self.batch == 1 else f"batches of {self.batch}"
        return f"{images}, {self.target}, {self.precision}"

    @property
    def in_torch(self) -> bool:
        """Whether torch runs it, without an ONNX file."""
        return self.target in IN_TORCH

    def check(self, *, device: str, exports: bool = True) -> None:
        """Refuse what cannot be run here, before any work is done for it.

        Args:
            device: Torch's name of the device, ``cpu`` or ``cuda``.
            exports: Whether networks become ONNX files here, or files are there already.

        Raises:
            ValueError: If a package is missing, or the target is not one of the device.
        """
        if self.target in ON_GPU and device != "cuda":
            raise ValueError(
                f"{self.target} runs on a GPU, and networks would be timed on a processor. Take "
                f"{', '.join(t for t in TARGETS if t not in ON_GPU)}, or a GPU."
            )
        if self.target in ("onnxruntime", "openvino") and device == "cuda":
            raise ValueError(
                f"{self.target} is timed on a processor, and networks would be timed on a GPU. "
                "Measure a table there with `search latency` and give it with --latency-table, "
                f"or take {', '.join(IN_TORCH)} or tensorrt."
            )
        wanted = {RUNTIMES[self.target]} if self.target in RUNTIMES else set[str]()
        if self.target == "tensorrt":
            wanted.add("onnxruntime")
        if exports and not self.in_torch:
            wanted |= {*EXPORTERS, *(("onnxruntime",) if self.precision == "int8" else ())}
        check_packages(sorted(wanted), why=f"Timing networks with {self.target}")


def check_packages(names: list[str], *, why: str) -> None:
    """Refuse work whose packages are not installed.

    Raises:
        ValueError: Then; it names them, and the command that installs them.
    """
    if missing := [name for name in names if find_spec(name) is None]:
        has = "the package" if len(missing) == 1 else "the packages"
        raise ValueError(
            f"{why} needs {has} {', '.join(missing)}. Install: {install_command('latency')}"
        )


def runtime_version(deployment: Deployment) -> str:
    """Name the runtime and its version, e.g. ``onnxruntime 1.32.0``."""
    package = RUNTIMES.get(deployment.target, "torch")
    return f"{package} {importlib.metadata.version(package)}"
