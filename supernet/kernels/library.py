"""The operators' C files for float32 and float64 on a CPU, compiled on demand.

The library of a dtype is built once from the C files of the operators' folders by the user's
compiler and kept in the user's cache folder. Its name hashes what it was made of (sources, commands
and processor) and what is in it: a library that is not what its name says is built anew, since a
truncated one would kill the process with SIGBUS. Code is only loaded from a folder that nobody else
can write; where the user's cache is none, or code may not be run from it, each process builds in a
temporary folder of its own. The library uses the OpenMP runtime that torch has loaded, so that
there is one pool of threads. Without a working compiler `load` says so once in the log and returns
None; then the operators' formulations in torch serve.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from searchspace.cache_folder import own_cache_folder

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
SOURCES = tuple(sorted(FOLDER.rglob("*.c")))
HEADERS = tuple(sorted(FOLDER.rglob("*.h")))
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
    "neighborhood_attention_grad": [_POINTER] * 13 + [_SIZE] + _RULE + [_SIZE] * 7 + [_INT],
    "neighborhood_hadamard": [_POINTER] * 5 + [_SIZE] * 9 + [_INT],
    "neighborhood_hadamard_grad": [_POINTER] * 8 + [_SIZE] * 9 + [_INT],
    "neighborhood_hadamard_widest": [],
    "neighborhood_skew": [_POINTER] * 2 + [_INT] + [_SIZE] * 6 + [_INT],
    "outlook_aggregate": [_POINTER] * 3 + [_INT] + [_SIZE] * 7 + [_INT],
    "outlook_products": [_POINTER] * 3 + [_SIZE] * 7 + [_INT],
    "adamw_axes": [],
    "adamw_update": [_POINTER] * 3 + [_SIZE] * 3 + [ctypes.c_double] * 5 + [_INT],
}


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_available(dtype: torch.dtype) -> bool:
    """Tell whether the primitives run in this dtype on this machine; `torch.compile` asks once."""
    return dtype in DTYPES and load(dtype) is not None


@functools.cache
def load(dtype: torch.dtype) -> ctypes.CDLL | None:
    """Return the library for a dtype of `DTYPES`, built first where need be; None if that fails."""
    try:
        library = _opened(build(dtype), dtype)
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None)
        reason = f"{error}{': ' + output.strip()[-500:] if output else ''}"
        _say_once(
            f"The C kernels are not available, slower torch code runs instead: {reason}. "
            "Install gcc, or name a compiler in CC."
        )
        return None
    for name, arguments in _FUNCTIONS.items():
        getattr(library, name).argtypes = arguments
        getattr(library, name).restype = _INT
    return library


def build(dtype: torch.dtype) -> Path:
    """Compile the library for a dtype unless the cache has it, and return its path.

    Raises:
        OSError: If there is no compiler, or no folder that can be written.
        subprocess.SubprocessError: If the compiler fails.
    """
    recipe = _recipe(dtype)
    try:
        folder = own_cache_folder()
        return _find(folder, recipe.name) or _compile_alone(folder, recipe)
    except OSError as error:
        return _build_privately(recipe, error)


def _opened(path: Path, dtype: torch.dtype) -> ctypes.CDLL:
    """Load a library; from a folder of this process where code of the cache may not be run."""
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        return ctypes.CDLL(str(_build_privately(_recipe(dtype), error)))


def _build_privately(recipe: _Recipe, cause: OSError) -> Path:
    _say_once(
        f"The C kernels are built anew by each process: {cause}. Set XDG_CACHE_HOME to a folder"
        " that you own, and that code may be run from."
    )
    folder = _private_folder()
    return _find(folder, recipe.name) or _compile(folder, recipe)


class _Recipe(NamedTuple):
    """How a library is made; its name hashes all of it."""

    name: str
    compile: tuple[str, ...]
    link: tuple[str, ...]
    runtime: tuple[str, ...]


def _recipe(dtype: torch.dtype) -> _Recipe:
    compiler = find_compiler()
    if compiler is None:
        raise FileNotFoundError("there is no C compiler (neither $CC nor cc nor gcc)")
    real, index = DTYPES[dtype]
    openmp = _torch_openmp()
    compile_ = (*compiler, *FLAGS, "-fopenmp", f"-DREAL={real}", f"-DINDEX={index}")
    link = (*compiler, "-shared", "-lm", *(("-fopenmp",) if openmp is None else ()))
    # Nodes of a cluster share the cache, and not always their C library.
    words = "\n".join((*compile_, *link, str(openmp), *platform.libc_ver(), _processor()))
    texts = [file.read_bytes() for file in (*SOURCES, *HEADERS)]
    digest = hashlib.sha256(b"".join((*texts, words.encode()))).hexdigest()[:20]
    runtime = () if openmp is None else (str(openmp),)
    return _Recipe(f"neighborhood-{real}-{digest}", compile_, link, runtime)


def _find(folder: Path, name: str) -> Path | None:
    """Return a whole library of this name."""
    paths = sorted(folder.glob(f"{name}-*.so"))
    return next((path for path in paths if _is_whole(path, name)), None)


def _is_whole(path: Path, name: str) -> bool:
    """Tell whether a file is the user's own and has the content that the rest of its name says."""
    try:
        entry = path.lstat()
        if not stat.S_ISREG(entry.st_mode) or entry.st_uid != os.geteuid():
            return False  # a link, a pipe, or somebody else's
        return path.name == f"{name}-{hashlib.sha256(path.read_bytes()).hexdigest()}.so"
    except OSError:
        return False


def _compile_alone(folder: Path, recipe: _Recipe) -> Path:
    """Compile one process after the other: the workers of a node begin together."""
    number = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # not every file system has locks
            fcntl.flock(number, fcntl.LOCK_EX)
        # What a process has waited for is there.
        return _find(folder, recipe.name) or _compile(folder, recipe)
    finally:
        os.close(number)


def _compile(folder: Path, recipe: _Recipe) -> Path:
    with tempfile.TemporaryDirectory(dir=folder) as work:
        library = Path(work, "library.so")
        objects = [str(Path(work, source.stem + ".o")) for source in SOURCES]
        for source, object_file in zip(SOURCES, objects, strict=True):
            _run([*recipe.compile, "-c", str(source), "-o", object_file])
        _run([*recipe.link, *objects, *recipe.runtime, "-o", str(library)])
        content = hashlib.sha256(library.read_bytes()).hexdigest()
        target = folder / f"{recipe.name}-{content}.so"
        # Another process may have built the same library: the last one replaces it as a whole.
        os.replace(library, target)
    for broken in folder.glob(f"{recipe.name}-*.so"):
        if not _is_whole(broken, recipe.name):
            with suppress(OSError):
                broken.unlink()
    return target


def find_compiler() -> tuple[str, ...] | None:
    """Return the command of the C compiler: ``$CC``, ``cc`` or ``gcc``; None if there is none."""
    for command in (os.environ.get("CC", ""), "cc", "gcc"):
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return tuple(words)
    return None


def call(name: str, tensors: tuple[Tensor | None, ...], sizes: tuple[float, ...]) -> None:
    """Run a function of the library, with pointers to the tensors (null for None) before the sizes.

    Raises:
        MemoryError: If it could not allocate its buffers.
    """
    dtype = next(tensor.dtype for tensor in tensors if tensor is not None)
    library = load(dtype)
    assert library is not None
    # An empty tensor's pointer may be null, which would say that the operand is not there.
    pointers = [None if tensor is None else tensor.data_ptr() or 1 for tensor in tensors]
    if getattr(library, name)(*pointers, *sizes, torch.get_num_threads()):
        raise MemoryError(f"{name} could not allocate its buffers.")


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)


def _torch_openmp() -> Path | None:
    """Find the OpenMP runtime that came with torch: linking to another one makes a second pool."""
    root = Path(torch.__file__).parent
    for folder in (root / "lib", root.with_name("torch.libs")):
        if found := sorted(folder.glob("libgomp*.so*")):
            return found[0]
    return None


@functools.cache
def _private_folder() -> Path:
    """Make a folder for this process, which is removed when it ends."""
    folder = tempfile.mkdtemp(prefix="mixer-search-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _processor() -> str:
    """Describe what -march=native depends on."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return f"{platform.machine()} {platform.processor()}"
    kept = ("model name", "flags", "Features", "CPU part")
    lines = info.read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(kept))


@functools.cache
def _say_once(message: str) -> None:
    logger.warning("%s", message)
