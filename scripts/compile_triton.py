"""Compile every Triton kernel for a GPU that need not be there, and print what it would occupy.

    python scripts/compile_triton.py [--capability 90] [--dtype bfloat16]

Triton's interpreter runs kernels as Python and accepts what its compiler refuses; this is the other
half of a check without a GPU. Printed for each kernel: its settings, registers of a thread (255 at
most; 128 threads of more than 128 leave fewer than four programs on a multiprocessor), bytes that
did not fit into registers and spill to memory, and shared memory.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from supernet.kernels.aggregation import in_triton as aggregation
from supernet.kernels.attention import in_triton as attention
from supernet.kernels.attention.area import NORMS, Area, Operands
from supernet.kernels.hadamard import in_triton as hadamard
from supernet.kernels.outlook import in_triton as outlook

DTYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
}


Case = Callable[[torch.dtype], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """What a kernel occupies: registers of a thread, bytes of a thread and of a program."""

    name: str
    settings: str
    registers: int
    spilled_bytes: int
    shared_bytes: int


def main() -> None:
    """Print a line for each kernel."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capability", type=int, default=90, help="90: H100 and H200, 80: A100")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="bfloat16")
    arguments = parser.parse_args()
    print(f"triton {triton.__version__}, sm_{arguments.capability}, {arguments.dtype}")
    for case in CASES:
        for kernel in compile_kernels(case, getattr(torch, arguments.dtype), arguments.capability):
            print(
                f"{kernel.name:18} {kernel.registers:4} registers, {kernel.spilled_bytes:4} B "
                f"spilled, {kernel.shared_bytes:6} B shared  {case.__name__}: {kernel.settings}",
                flush=True,
            )


def compile_kernels(case: Case, dtype: torch.dtype, capability: int) -> list[Compiled]:
    """Compile the kernels that a case launches on tensors of this dtype.

    The tensors may lie anywhere: nothing is run.
    """
    found: list[Compiled] = []

    def compile_instead(kernel: Any, *arguments: Any, **settings: Any) -> None:
        settings.pop("warmup")
        settings.pop("grid")
        found.append(_compile(kernel, arguments, settings, capability))

    with mock.patch.object(triton.runtime.jit.JITFunction, "run", compile_instead):
        case(dtype)
    return found


def _compile(
    kernel: Any, arguments: tuple[Any, ...], settings: dict[str, Any], capability: int
) -> Compiled:
    names = kernel.arg_names
    options = {key: settings.pop(key) for key in list(settings) if key not in names}
    values = dict(zip(names, arguments, strict=False)) | settings
    constants = {p.name: values[p.name] for p in kernel.params if p.is_constexpr}
    # As at a launch: ones are constants, and multiples of 16 are known to be such.
    ones = {name: 1 for name in names if isinstance(values[name], int) and values[name] == 1}
    signature = {
        name: "constexpr" if name in constants | ones else _type_of(values[name]) for name in names
    }
    divisible = [["tt.divisibility", 16]]
    attributes = {
        (place,): divisible
        for place, name in enumerate(names)
        if signature[name] != "constexpr" and _is_even(values[name])
    }
    source = ASTSource(kernel, signature, constants | ones, attributes)
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options=options)
    usage = _resource_usage(compiled.asm["cubin"])
    shown = {key: value for key, value in constants.items() if not isinstance(value, bool)}
    return Compiled(
        name=kernel.fn.__name__,
        settings=", ".join(f"{key} {value}" for key, value in shown.items()),
        registers=usage["REG"],
        spilled_bytes=usage["STACK"] + usage["LOCAL"],
        shared_bytes=compiled.metadata.shared,
    )


def _is_even(value: object) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0)


def _type_of(value: object) -> str:
    if isinstance(value, Tensor):
        return DTYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def _resource_usage(binary: bytes) -> dict[str, int]:
    """Read REG, STACK, LOCAL and so on of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        command = [str(tool), "-res-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {key: int(number) for key, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}


def _map(dtype: torch.dtype, channels: int = 96) -> Tensor:
    return torch.empty(2, 14, 14, channels, dtype=dtype)


def aggregate(dtype: torch.dtype) -> None:
    """Aggregation with the filters of heads, of narrow groups, and its multipliers."""
    for groups in (3, 32):
        filters = torch.empty(2, 14, 14, groups, 49, dtype=dtype)
        for multiplier in (None, torch.empty(49, 96, dtype=dtype)):
            aggregation.aggregate(filters, _map(dtype), 7, 1, multiplier, None, False)
            aggregation.aggregate(filters, _map(dtype), 7, 1, multiplier, None, True)
        aggregation.logits(_map(dtype), _map(dtype), groups, 7, 1, None)
        aggregation.multiplier_grad(filters, _map(dtype), _map(dtype), 7, 1, False)


def depthwise(dtype: torch.dtype) -> None:
    """Depth-wise convolution with filters of each image, and its gradients."""
    multiplier = torch.empty(2, 9, 96, dtype=dtype)
    bias = torch.empty(96, dtype=dtype)
    aggregation.aggregate(None, _map(dtype), 3, 1, multiplier, bias, False)
    aggregation.aggregate(None, _map(dtype), 3, 1, multiplier, None, True)
    aggregation.multiplier_grad(None, _map(dtype), _map(dtype), 3, 1, True)


def hadamard_conv(dtype: torch.dtype) -> None:
    """The convolution of Hadamard logits with groups of 4 and of 32 channels, and its gradients."""
    for width in (4, 32):
        weight = torch.empty(49, 96, width, dtype=dtype)
        bias = torch.empty(96, dtype=dtype)
        hadamard.hadamard_conv(_map(dtype), _map(dtype), weight, bias, 1)
        hadamard.hadamard_conv_grad(_map(dtype), _map(dtype), _map(dtype), weight, 1)


def neighborhood_attention(dtype: torch.dtype) -> None:
    """Attention with all four terms and with the product alone, heads of 32 and 64 channels."""
    for heads, has_tables in ((3, True), (3, False), (1, True)):
        channels = 96 if heads == 3 else 64
        for norm in NORMS:
            area = Area(heads, 7, 1, 0.2, True, norm)
            operands = _operands(dtype, channels, heads, has_tables=has_tables)
            attention.attention(operands, area)
            attention.attention_grad(_map(dtype, channels), operands, area)


def static_attention(dtype: torch.dtype) -> None:
    """Attention with a table of queries, or of keys, and nothing else."""
    q, k, v, qr, rk, bias = _operands(dtype, 96, 3, has_tables=True)
    area = Area(3, 7, 1, 0.2, False, "softmax")
    for operands in ((q, None, v, qr, None, None), (None, k, v, None, rk, bias)):
        attention.attention(operands, area)
        attention.attention_grad(_map(dtype), operands, area)


def outlook_aggregate(dtype: torch.dtype) -> None:
    """Outlook aggregation, its transpose and its products, heads of 32 and of 96 channels."""
    for heads, size, stride in ((3, 3, 2), (1, 3, 2), (3, 5, 1)):
        tokens = -(-14 // stride)
        weights = torch.empty(2, tokens, tokens, heads, size**2, size**2, dtype=dtype)
        outlook.aggregate(weights, _map(dtype), size, stride, False)
        outlook.aggregate(weights, _map(dtype), size, stride, True)
        outlook.products(_map(dtype), _map(dtype), heads, size, stride)


def _operands(dtype: torch.dtype, channels: int, heads: int, *, has_tables: bool) -> Operands:
    q, k, v = (_map(dtype, channels) for _ in range(3))
    if not has_tables:
        return q, k, v, None, None, None
    qr, rk = (torch.empty(49, channels, dtype=dtype) for _ in range(2))
    return q, k, v, qr, rk, torch.empty(49, heads, dtype=dtype)


CASES = (
    aggregate,
    depthwise,
    hadamard_conv,
    neighborhood_attention,
    static_attention,
    outlook_aggregate,
)

if __name__ == "__main__":
    main()
