"""The primitives in C for float32 and float64 on CPU, compiled on demand by the user's compiler.

The library of a dtype is built once from the C files beside this one and kept in the user's cache
folder under a name that hashes what it was made of: sources, commands and processor. It uses the
OpenMP runtime that torch has loaded, so that there is one pool of threads. Without a working
compiler `load` says so once in the log and returns None; then `supernet.kernels.loops` serves.

Signatures and conventions are those of `supernet.kernels.loops`.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from supernet.kernels.area import NORMS, Area, Grads, Operands

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
SOURCES = tuple(FOLDER / name for name in ("aggregate.c", "depthwise.c", "logits.c", "attention.c"))
HEADERS = tuple(FOLDER / name for name in ("neighborhood.h", "product.h", "transpose.h"))
DTYPES = {torch.float32: ("float", "int"), torch.float64: ("double", "long long")}
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fPIC")

_POINTER, _SIZE, _INT = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int
_RULE = [_SIZE] * 3 + [ctypes.c_double, _INT, _INT]
_FUNCTIONS = {
    "neighborhood_aggregate": [_POINTER] * 5 + [_INT] * 2 + [_SIZE] * 7 + [_INT],
    "neighborhood_logits": [_POINTER] * 4 + [_INT] + [_SIZE] * 7 + [_INT],
    "neighborhood_multiplier_grad": [_POINTER] * 4 + [_INT] + [_SIZE] * 7 + [_INT],
    "neighborhood_depthwise_grad": [_POINTER] * 6 + [_INT] + [_SIZE] * 6 + [_INT],
    "neighborhood_attention": [_POINTER] * 7 + _RULE + [_SIZE] * 7 + [_INT],
    "neighborhood_attention_grad": [_POINTER] * 13 + _RULE + [_SIZE] * 7 + [_INT],
    "neighborhood_skew": [_POINTER] * 2 + [_INT] + [_SIZE] * 6 + [_INT],
}


def aggregate(
    filters: Tensor | None,
    values: Tensor,
    kernel_size: int,
    dilation: int,
    multiplier: Tensor | None,
    bias: Tensor | None,
    transposed: bool,
) -> Tensor:
    """Compute ``y[i] = sum_o f[i, o] v[i + o]``, or transposed ``sum_o f[i - o, o] v[i - o]``."""
    values = values.contiguous()
    result = torch.empty(values.shape, dtype=values.dtype)
    groups = 1 if filters is None else filters.shape[3]
    tensors = (result, _dense(filters), values, _dense(multiplier), _dense(bias))
    sizes = (*values.shape, groups, kernel_size, dilation)
    _call("neighborhood_aggregate", tensors, (_per_image(multiplier), transposed, *sizes))
    return result


def logits(
    x: Tensor,
    values: Tensor,
    groups: int,
    kernel_size: int,
    dilation: int,
    multiplier: Tensor | None,
) -> Tensor:
    """Compute ``s[i, g, o] = sum over c in g of multiplier[o, c] x[i, c] values[i + o, c]``."""
    x, values = x.contiguous(), values.contiguous()
    result = torch.empty((*x.shape[:3], groups, kernel_size**2), dtype=x.dtype)
    sizes = (_per_image(multiplier), *x.shape, groups, kernel_size, dilation)
    _call("neighborhood_logits", (result, x, values, _dense(multiplier)), sizes)
    return result


def multiplier_grad(
    filters: Tensor | None,
    x: Tensor,
    values: Tensor,
    kernel_size: int,
    dilation: int,
    per_image: bool,
) -> Tensor:
    """Compute ``m[o, c] = sum_i filters[i, g(c), o] x[i, c] values[i + o, c]``, (K*K, C).

    With ``per_image`` the sum is over the pixels of each image: (B, K*K, C).
    """
    x, values = x.contiguous(), values.contiguous()
    images = x.shape[:1] if per_image else ()
    result = torch.empty((*images, kernel_size**2, x.shape[-1]), dtype=x.dtype)
    groups = 1 if filters is None else filters.shape[3]
    sizes = (per_image, *x.shape, groups, kernel_size, dilation)
    _call("neighborhood_multiplier_grad", (result, _dense(filters), x, values), sizes)
    return result


def depthwise_grad(
    grad: Tensor, values: Tensor, kernel_size: int, dilation: int, multiplier: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of a depth-wise convolution's values, multiplier and bias at once."""
    grad, values, multiplier = grad.contiguous(), values.contiguous(), multiplier.contiguous()
    shapes = values.shape, multiplier.shape, values.shape[-1:]
    results = tuple(torch.empty(shape, dtype=values.dtype) for shape in shapes)
    sizes = (_per_image(multiplier), *grad.shape, kernel_size, dilation)
    _call("neighborhood_depthwise_grad", (*results, grad, values, multiplier), sizes)
    return results[0], results[1], results[2]


def skew(terms: Tensor, kernel_size: int, dilation: int, transposed: bool) -> Tensor:
    """Compute ``s[i, g, o] = terms[i + o, g, o]``, or its transpose ``terms[i - o, g, o]``."""
    terms = terms.contiguous()
    result = torch.empty(terms.shape, dtype=terms.dtype)
    sizes = (transposed, *terms.shape[:4], kernel_size, dilation)
    _call("neighborhood_skew", (result, terms), sizes)
    return result


def attention(operands: Operands, area: Area) -> Tensor:
    """Compute `supernet.kernels.composed.attention` in one pass."""
    dense, rule = _lay_out(operands, area)
    values = operands[2]
    result = torch.empty(values.shape, dtype=values.dtype)
    _call("neighborhood_attention", (result, *dense), (*rule, *values.shape, *area[:3]))
    return result


def attention_grad(grad: Tensor, operands: Operands, area: Area) -> Grads:
    """Compute `supernet.kernels.composed.attention_grad`, with the weights computed again."""
    dense, rule = _lay_out(operands, area)
    results = tuple(None if x is None else torch.empty(x.shape, dtype=x.dtype) for x in operands)
    sizes = (*rule, *grad.shape, *area[:3])
    _call("neighborhood_attention_grad", (*results, grad.contiguous(), *dense), sizes)
    return results


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_available(dtype: torch.dtype) -> bool:
    """Tell whether the primitives run in this dtype on this machine; `torch.compile` asks once."""
    return dtype in DTYPES and load(dtype) is not None


@functools.cache
def load(dtype: torch.dtype) -> ctypes.CDLL | None:
    """Return the library for a dtype of `DTYPES`, built first where need be; None if that fails."""
    try:
        library = ctypes.CDLL(str(build(dtype)))
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None)
        _say_once(f"{error}{': ' + output.strip()[-500:] if output else ''}")
        return None
    for name, arguments in _FUNCTIONS.items():
        getattr(library, name).argtypes = arguments
        getattr(library, name).restype = _INT
    return library


def build(dtype: torch.dtype) -> Path:
    """Compile the library for a dtype unless the cache has it, and return its path.

    Raises:
        OSError: If there is no compiler, or the cache folder cannot be written.
        subprocess.SubprocessError: If the compiler fails.
    """
    compiler = find_compiler()
    if compiler is None:
        raise FileNotFoundError("there is no C compiler (neither $CC nor cc nor gcc)")
    real, index = DTYPES[dtype]
    compile_flags = (*FLAGS, "-fopenmp", f"-DREAL={real}", f"-DINDEX={index}")
    openmp = _torch_openmp()
    link_flags = ("-shared", "-fopenmp") if openmp is None else ("-shared",)
    recipe = "\n".join((*compiler, *compile_flags, *link_flags, str(openmp), _processor()))
    texts = [file.read_bytes() for file in (*SOURCES, *HEADERS)]
    digest = hashlib.sha256(b"".join((*texts, recipe.encode()))).hexdigest()[:20]
    target = _cache_folder() / f"neighborhood-{real}-{digest}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        library = Path(folder, target.name)
        objects = [str(Path(folder, source.stem + ".o")) for source in SOURCES]
        for source, object_file in zip(SOURCES, objects, strict=True):
            _run([*compiler, *compile_flags, "-c", str(source), "-o", object_file])
        runtime = () if openmp is None else (str(openmp),)
        _run([*compiler, *link_flags, *objects, *runtime, "-o", str(library)])
        # Another process may have built the same file: the last one replaces it as a whole.
        os.replace(library, target)
    return target


def find_compiler() -> tuple[str, ...] | None:
    """Return the command of the C compiler: ``$CC``, ``cc`` or ``gcc``; None if there is none."""
    for command in (os.environ.get("CC", ""), "cc", "gcc"):
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return tuple(words)
    return None


def _call(name: str, tensors: tuple[Tensor | None, ...], sizes: tuple[float, ...]) -> None:
    dtype = next(tensor.dtype for tensor in tensors if tensor is not None)
    library = load(dtype)
    assert library is not None
    # An empty tensor's pointer may be null, which would say that the operand is not there.
    pointers = [None if tensor is None else tensor.data_ptr() or 1 for tensor in tensors]
    if getattr(library, name)(*pointers, *sizes, torch.get_num_threads()):
        raise MemoryError(f"{name} could not allocate its buffers.")


def _lay_out(operands: Operands, area: Area) -> tuple[tuple[Tensor | None, ...], tuple[float, ...]]:
    """Bring the operands into memory as C wants them; return the maps' pitches and the rule too."""
    maps = [None if x is None else _pixels(x) for x in operands[:3]]
    pitches = [0 if x is None else x.stride(2) for x in maps]
    rule = (*pitches, area.scale, area.has_product, NORMS.index(area.norm))
    return (*maps, *(_dense(x) for x in operands[3:])), rule


def _pixels(map_: Tensor) -> Tensor:
    """Copy a map (B, H, W, C) unless its pixels lie evenly, as those of a packed projection do."""
    _, height, width, channels = map_.shape
    pitch = map_.stride(2)
    strides = (height * width * pitch, width * pitch, pitch, 1)
    return map_ if map_.stride() == strides and pitch >= channels else map_.contiguous()


def _per_image(multiplier: Tensor | None) -> bool:
    return multiplier is not None and multiplier.dim() == 3


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)


def _torch_openmp() -> Path | None:
    """Find the OpenMP runtime that came with torch: linking to another one makes a second pool."""
    root = Path(torch.__file__).parent
    for folder in (root / "lib", root.with_name("torch.libs")):
        if found := sorted(folder.glob("libgomp*.so*")):
            return found[0]
    return None


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "mixer-search"


def _processor() -> str:
    """Describe what -march=native depends on."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return f"{platform.machine()} {platform.processor()}"
    kept = ("model name", "flags", "Features", "CPU part")
    lines = info.read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(kept))


@functools.cache
def _say_once(reason: str) -> None:
    logger.warning(
        "The C kernels are not available, slower torch code runs instead: %s. "
        "Install gcc, or name a compiler in CC.",
        reason,
    )
