"""A device whose memory is the processor's, and whose tensors torch keeps apart from its.

What a GPU refuses, it refuses too, such as a sum of a number here and one there. Every operator
runs on the processor.
"""

from __future__ import annotations

import shutil
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import torch

NAME = "second"
SOURCE = Path(__file__).with_name("second_device.cpp")


def build(folder: Path) -> Path:
    """Compile the device.

    Raises:
        LookupError: If there is no compiler of C++ here, or torch came without its headers.
    """
    compiler, torch_folder = shutil.which("g++"), Path(torch.__file__).parent
    if compiler is None or not (torch_folder / "include/torch/library.h").is_file():
        raise LookupError("a second device needs g++ and torch's C++ headers")
    library = folder / "second_device.so"
    include = torch_folder / "include"
    command = [compiler, "-shared", "-fPIC", "-std=c++20", "-O0", str(SOURCE), "-o", str(library)]
    command += [f"-I{include}", f"-I{include}/torch/csrc/api/include"]
    command += [f"-L{torch_folder / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


def register(library: Path) -> None:
    """Give this process the device; once, and for good."""
    torch.ops.load_library(library)
    torch.utils.rename_privateuse1_backend(NAME)
    module = ModuleType(NAME)
    functions = {
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "is_available": lambda: True,
        "get_amp_supported_dtype": lambda: [torch.bfloat16],
        "_is_in_bad_fork": lambda: False,
        "manual_seed_all": lambda seed: None,
        "device": lambda device: nullcontext(),
    }
    for name, function in functions.items():
        setattr(module, name, function)
    torch._register_device_module(NAME, module)
    torch.utils.generate_methods_for_privateuse1_backend()
