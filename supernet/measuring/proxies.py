"""Zero-cost proxies: scores of an untrained network from one batch; higher is predicted better.

All are defined on the networks of this project as follows; what departs from the papers is said.
They are never shown without parameters and MACs, which beat many of them on public tables
(White et al. 2022, "A Deeper Look at Zero-Cost Proxies").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from searchspace.architecture import Architecture
from supernet.network import build_subnet

PROXIES = ("nwot", "synflow", "grad_norm", "zen")
ZEN_STEP = 0.01
NORMS = (nn.LayerNorm, nn.modules.batchnorm._BatchNorm)


def proxy_scores(
    architecture: Architecture,
    images: Tensor,
    labels: Tensor,
    *,
    seed: int,
    names: Sequence[str] = PROXIES,
) -> dict[str, float]:
    """Score an architecture with some proxies, each on the same fresh weights.

    Args:
        images: One normalised batch, shape (B, in_chans, S, S); labels are class indices (B,).
        seed: Of the initial weights and Zen's noise.
        names: Of `PROXIES`.
    """
    functions: dict[str, Callable[[nn.Module], float]] = {
        "nwot": lambda network: nwot(network, images),
        "synflow": lambda network: synflow(network, images[:1]),
        "grad_norm": lambda network: grad_norm(network, images, labels),
        "zen": lambda network: zen(network, images),
    }
    found = {}
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        for name in names:
            torch.manual_seed(seed)
            found[name] = functions[name](build_subnet(architecture).to(images.device))
    return found


def nwot(network: nn.Module, images: Tensor) -> float:
    """NWOT (Mellor et al. 2021, https://arxiv.org/abs/2006.04647): log |det K|.

    K[i, j] counts the units whose sign agrees on images i and j, over the inputs of all ReLU and
    GELU (the paper's networks have ReLU only). Batch norms use the batch.
    """
    network.train()
    kernel = torch.zeros(len(images), len(images), dtype=torch.float64, device=images.device)
    with torch.no_grad(), _ActivationInputs() as seen:
        network(images)
    for value in seen.inputs:
        codes = (value.flatten(1) > 0).float()
        agree = codes @ codes.t() + (1 - codes) @ (1 - codes).t()
        kernel += agree.double()
    return float(torch.linalg.slogdet(kernel).logabsdet)


def synflow(network: nn.Module, images: Tensor) -> float:
    """SynFlow (Tanaka et al. 2020, https://arxiv.org/abs/2006.05467): log of sum |w * dR/dw|.

    R is the sum of the logits of an image of ones, with |w| for every weight and without norms
    (as Abdelfattah et al. 2021 leave out batch norm), in float64. Softmax and filter normalisation
    inside mixers stay. The logarithm keeps the ranking and deep networks finite.
    """
    network.eval().double()
    for parameter in network.parameters():
        parameter.data.abs_()
    with _without_norms(network):
        network(torch.ones_like(images, dtype=torch.float64)).sum().backward()
    total = sum(
        (parameter * parameter.grad).abs().sum().item()
        for parameter in network.parameters()
        if parameter.grad is not None
    )
    return math.log(total) if 0 < total < math.inf else (-math.inf if total <= 0 else math.inf)


def grad_norm(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Gradient norm (Abdelfattah et al. 2021, https://arxiv.org/abs/2101.08134).

    The sum over weights of the Euclidean norm of the loss's gradient, after one batch.
    """
    network.train()
    F.cross_entropy(network(images), labels).backward()
    return float(
        sum(
            p.grad.norm().item() for p in network.parameters() if p.grad is not None and p.dim() > 1
        )
    )


def zen(network: nn.Module, images: Tensor) -> float:
    """Zen-like score (Lin et al. 2021, https://arxiv.org/abs/2102.01063, Algorithm 1).

    log E ||f(x) - f(x + 0.01 e)||_1 of the features before the last norm, for x, e ~ N(0, 1), plus
    for every norm on the way the log of its mean standard deviation, which puts back the scale that
    it took away. Unlike the paper's, the networks keep their own initialisation, their residual
    connections and attention, and layer norms count as batch norms do.
    """
    network.train()
    noise = torch.randn_like(images)
    with torch.no_grad(), _norm_inputs(network) as seen:
        features, scale = _features(network, noise, seen)
        moved, _ = _features(network, noise + ZEN_STEP * torch.randn_like(noise), seen)
    change = (features - moved).abs().flatten(1).sum(1).mean().item()
    return math.log(max(change, 1e-300)) + scale


class _ActivationInputs(TorchDispatchMode):
    """Collects what ReLU and GELU are given, wherever they are called."""

    _OPERATORS = frozenset({torch.ops.aten.relu.default, torch.ops.aten.gelu.default})

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in self._OPERATORS:
            self.inputs.append(args[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def _without_norms(network: nn.Module) -> Iterator[None]:
    """Let every norm return its input."""
    with ExitStack() as hooks:
        for module in network.modules():
            if isinstance(module, NORMS):
                hook = module.register_forward_hook(lambda _module, inputs, _output: inputs[0])
                hooks.callback(hook.remove)
        yield


@contextmanager
def _norm_inputs(network: nn.Module) -> Iterator[list[tuple[nn.Module, Tensor]]]:
    """Collect every norm with its input, in order."""
    seen: list[tuple[nn.Module, Tensor]] = []
    with ExitStack() as hooks:
        for module in network.modules():
            if isinstance(module, NORMS):
                hook = module.register_forward_pre_hook(
                    lambda norm, inputs: seen.append((norm, inputs[0]))
                )
                hooks.callback(hook.remove)
        yield seen


def _features(
    network: nn.Module, images: Tensor, seen: list[tuple[nn.Module, Tensor]]
) -> tuple[Tensor, float]:
    """Return the input of the last norm and the sum of log standard deviations of the others."""
    seen.clear()
    network(images)
    *others, (_, features) = seen
    scale = 0.0
    for norm, value in others:
        variance = value.var(_normed_axes(norm), unbiased=False).mean().item()
        scale += 0.5 * math.log(variance + 1e-5)
    return features, scale


def _normed_axes(norm: nn.Module) -> list[int]:
    """Name the axes of a norm's input that its statistics run over."""
    if isinstance(norm, nn.LayerNorm):
        return [-1]
    # torch's own is channels-first; ours are channels-last (`supernet.mixers.sharing`).
    return [0, 2, 3] if type(norm) is nn.BatchNorm2d else [0, 1, 2]
