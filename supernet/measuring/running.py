"""Networks as torch runs them where they are used: as written, compiled, or as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from searchspace.clocks import clock_for
from searchspace.deployment import Deployment

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GRAPH_WARM_UP = 3


def clock_of(device: torch.device) -> Callable[[], float]:
    """Choose the clock of a device; see `searchspace.clocks`."""
    return clock_for(torch.get_num_threads(), on_gpu=device.type != "cpu")


def torch_runner(
    network: nn.Module, example: Tensor, deployment: Deployment
) -> Callable[[], object]:
    """Make what runs a network once and waits for its end.

    Args:
        network: In float32; it is changed to the deployment's precision.
        example: What it is given, of the deployment's batch, on the network's device.
        deployment: One whose target is torch's own.
    """
    dtype = DTYPES[deployment.precision]
    network, example = network.eval().to(dtype), example.to(dtype)
    if deployment.target == "cuda-graph":
        return _graph_runner(network, example)
    called: Callable[[Tensor], object] = network
    if deployment.target == "compiled":
        called = compiled(network, example)

    def run() -> None:
        with torch.inference_mode():
            called(example)
        if example.is_cuda:
            torch.cuda.synchronize()

    return run


def compiled(network: nn.Module, example: Tensor) -> Callable[[Tensor], object]:
    """Compile a network for inputs of one shape.

    It is exported first: `torch.compile` keeps what it makes with the code that it was made from,
    and all networks of a space have the same code, so that later ones would be looked up among
    all earlier ones, and from the ninth on not be compiled at all.
    """
    with torch.no_grad():
        # Tensors that are made once and kept must be made before tracing, or traced ones stay.
        network(example)
        exported = torch.export.export(network, (example,)).module()
    return torch.compile(exported, dynamic=False)


def _graph_runner(network: nn.Module, example: Tensor) -> Callable[[], object]:
    """Capture the network's kernels once; a run launches them all at once."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(GRAPH_WARM_UP):
            network(example)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        network(example)

    def run() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return run
