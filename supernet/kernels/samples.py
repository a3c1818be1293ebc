"""Every primitive on small inputs, so that one formulation's results can be held against another's.

Operands are drawn on the CPU from a fixed seed and rounded to the dtype that is asked about; each
formulation then gets the same numbers, in its own dtype and on its own device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from supernet.kernels.adamw.part import Part, Rule
from supernet.kernels.attention.area import Area

# Called with a module of primitives (``in_c``, ``in_triton``, ``in_torch``) and a drawer.
Sample = Callable[[Any, "Drawer"], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How large the operands are: maps (batch, height, width, heads * depth) and K."""

    batch: int = 2
    height: int = 9
    width: int = 7
    heads: int = 3
    depth: int = 32
    kernel_size: int = 5

    @property
    def taps(self) -> int:
        """K * K."""
        return self.kernel_size**2


class Drawer:
    """Draws operands: the same ones for all that ask for the same shapes in the same order.

    Args:
        sizes: Of the operands.
        rounded: The dtype whose numbers they are.
        dtype, device: What they are handed out as.
    """

    def __init__(
        self, sizes: Sizes, rounded: torch.dtype, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.sizes = sizes
        self._rounded, self._dtype, self._device = rounded, dtype, device
        self._generator = torch.Generator("cpu").manual_seed(0)
        self._drawn: list[Tensor] = []
        self._place = 0

    def __call__(self, *shape: int) -> Tensor:
        """Draw normal numbers."""
        if self._place == len(self._drawn):
            drawn = torch.randn(shape, generator=self._generator, dtype=torch.float64, device="cpu")
            self._drawn.append(drawn.to(self._rounded).to(self._device, self._dtype))
        self._place += 1
        return self._drawn[self._place - 1]

    def again(self) -> Drawer:
        """Hand out the same tensors once more."""
        self._place = 0
        return self

    def map(self) -> Tensor:
        """Draw a map (B, H, W, C)."""
        sizes = self.sizes
        return self(sizes.batch, sizes.height, sizes.width, sizes.heads * sizes.depth)

    def weights(self, *, stride: int = 1, rows: int = 1) -> Tensor:
        """Draw weights (B, H / stride, W / stride, heads, rows * K*K)."""
        sizes = self.sizes
        height, width = (-(-side // stride) for side in (sizes.height, sizes.width))
        return self(sizes.batch, height, width, sizes.heads, rows * sizes.taps)


def _aggregate(module: Any, draw: Drawer) -> object:
    sizes, channels = draw.sizes, draw.sizes.heads * draw.sizes.depth
    multiplier, bias = draw(sizes.taps, channels), draw(channels)
    filters, values = draw.weights(), draw.map()
    own = draw(sizes.batch, sizes.taps, channels)
    size = sizes.kernel_size
    return (
        module.aggregate(filters, values, size, 1, None, None, False),
        module.aggregate(filters, values, size, 2, multiplier, bias, False),
        module.aggregate(filters, values, size, 1, multiplier, None, True),
        module.aggregate(None, values, size, 1, own, bias, False),
    )


def _logits(module: Any, draw: Drawer) -> object:
    sizes, x, values = draw.sizes, draw.map(), draw.map()
    multiplier = draw(sizes.taps, x.shape[-1])
    return (
        module.logits(x, values, sizes.heads, sizes.kernel_size, 1, None),
        module.logits(x, values, x.shape[-1] // 4, sizes.kernel_size, 1, multiplier),
    )


def _multiplier_grad(module: Any, draw: Drawer) -> object:
    filters, x, values = draw.weights(), draw.map(), draw.map()
    size = draw.sizes.kernel_size
    return (
        module.multiplier_grad(filters, x, values, size, 1, False),
        module.multiplier_grad(None, x, values, size, 1, True),
    )


def _depthwise_grad(module: Any, draw: Drawer) -> object:
    size, grad, values = draw.sizes.kernel_size, draw.map(), draw.map()
    multiplier = draw(draw.sizes.taps, values.shape[-1])
    if hasattr(module, "depthwise_grad"):
        return module.depthwise_grad(grad, values, size, 1, multiplier)
    return (
        module.aggregate(None, grad, size, 1, multiplier, None, True),
        module.multiplier_grad(None, grad, values, size, 1, False),
        grad.sum((0, 1, 2)),
    )


def _skew(module: Any, draw: Drawer) -> object:
    terms, size = draw.weights(), draw.sizes.kernel_size
    return module.skew(terms, size, 1, False), module.skew(terms, size, 1, True)


def _attention(module: Any, draw: Drawer) -> object:
    return tuple(module.attention(*case) for case in _attention_cases(draw))


def _attention_grad(module: Any, draw: Drawer) -> object:
    grad = draw.map()
    return tuple(module.attention_grad(grad, *case) for case in _attention_cases(draw))


def _attention_cases(draw: Drawer) -> list[tuple[Any, Area]]:
    """Swin's terms with a softmax, and all terms with filter normalisation."""
    sizes = draw.sizes
    q, k, v = draw.map(), draw.map(), draw.map()
    qr, rk = draw(sizes.taps, v.shape[-1]), draw(sizes.taps, v.shape[-1])
    bias, scale = draw(sizes.taps, sizes.heads), sizes.depth**-0.5
    area = (sizes.heads, sizes.kernel_size, 1, scale, True)
    return [
        ((q, k, v, None, None, bias), Area(*area, "softmax")),
        ((q, k, v, qr, rk, bias), Area(*area, "filter_norm")),
    ]


def _outlook_aggregate(module: Any, draw: Drawer) -> object:
    size = draw.sizes.kernel_size
    weights, values = draw.weights(stride=2, rows=draw.sizes.taps), draw.map()
    weights = weights.unflatten(-1, (size**2, size**2))
    return (
        module.aggregate(weights, values, size, 2, False),
        module.aggregate(weights, values, size, 2, True),
    )


def _outlook_products(module: Any, draw: Drawer) -> object:
    return module.products(draw.map(), draw.map(), draw.sizes.heads, draw.sizes.kernel_size, 2)


def _hadamard_conv(module: Any, draw: Drawer) -> object:
    q, k, channels = draw.map(), draw.map(), draw.sizes.heads * draw.sizes.depth
    return module.hadamard_conv(q, k, draw(draw.sizes.taps, channels, 4), draw(channels), 1)


def _hadamard_conv_grad(module: Any, draw: Drawer) -> object:
    grad, q, k = draw.map(), draw.map(), draw.map()
    return module.hadamard_conv_grad(grad, q, k, draw(draw.sizes.taps, q.shape[-1], 4), 1)


def _adamw_update(module: Any, draw: Drawer) -> object:
    """Take the tenth step of what is used whole, by rows, by columns and by elements."""
    sizes, rule = draw.sizes, Rule(lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.1)
    rows, columns = draw(sizes.taps, 1), draw(1, sizes.depth)
    masks = [(drawn > 0).to(drawn.dtype) for drawn in (rows * columns, rows, columns)]
    masks.append(torch.ones_like(masks[0][0, 0]))
    parts = []
    for mask in masks:
        parameter, gradient, mean, square = (draw(sizes.taps, sizes.depth) for _ in range(4))
        state = (mean.clone(), square.square())
        step = torch.full_like(mask, 9, dtype=torch.float32)
        parts.append(Part(parameter.clone(), gradient * mask, mask, *state, step))
    module.update(parts, rule)
    return tuple((part.parameter, part.mean, part.square, part.step) for part in parts)


# By the package whose modules `in_c`, `in_triton` and `in_torch` have these primitives.
SAMPLES: Mapping[str, Mapping[str, Sample]] = {
    "supernet.kernels.adamw": {"update": _adamw_update},
    "supernet.kernels.aggregation": {
        "aggregate": _aggregate,
        "logits": _logits,
        "multiplier_grad": _multiplier_grad,
        "depthwise_grad": _depthwise_grad,
        "skew": _skew,
    },
    "supernet.kernels.attention": {"attention": _attention, "attention_grad": _attention_grad},
    "supernet.kernels.hadamard": {
        "hadamard_conv": _hadamard_conv,
        "hadamard_conv_grad": _hadamard_conv_grad,
    },
    "supernet.kernels.outlook": {
        "outlook_aggregate": _outlook_aggregate,
        "outlook_products": _outlook_products,
    },
}


def results_of(sample: Sample, module: ModuleType, draw: Drawer) -> list[Tensor]:
    """Run a sample and return all tensors that it makes, in their order."""
    return list(_tensors(sample(module, draw)))


def _tensors(found: object) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    assert found is None or isinstance(found, (tuple, list))
    return [tensor for part in found or () for tensor in _tensors(part)]
