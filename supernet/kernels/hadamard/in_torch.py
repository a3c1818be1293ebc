"""The convolution of Hadamard logits through PyTorch's: any device, any dtype."""

from __future__ import annotations

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

Grads = tuple[Tensor, Tensor, Tensor, Tensor]


def hadamard_conv(
    queries: Tensor, keys: Tensor, weight: Tensor, bias: Tensor | None, dilation: int
) -> Tensor:
    """Convolve the product, channels_last in memory."""
    image, kernel, padding = _prepare(queries * keys, weight, dilation)
    groups = weight.shape[1] // weight.shape[2]
    y = F.conv2d(image, kernel, bias, padding=padding, dilation=dilation, groups=groups)
    return y.permute(0, 2, 3, 1).contiguous()


def hadamard_conv_grad(
    grad: Tensor, queries: Tensor, keys: Tensor, weight: Tensor, dilation: int
) -> Grads:
    """Compute the gradients of queries, keys, weight and bias; the product is computed again."""
    image, kernel, padding = _prepare(queries * keys, weight, dilation)
    groups = weight.shape[1] // weight.shape[2]
    found = torch.ops.aten.convolution_backward(
        grad.permute(0, 3, 1, 2),
        image,
        kernel,
        [weight.shape[1]],
        [1, 1],
        [padding, padding],
        [dilation, dilation],
        False,
        [0, 0],
        groups,
        [True, True, True],
    )
    before = _border(weight, dilation) - padding
    height, width = grad.shape[1:3]
    cut = found[0].permute(0, 2, 3, 1)[:, before : before + height, before : before + width]
    weight_grad = found[1].flatten(2).permute(2, 0, 1).contiguous()
    return cut * keys, cut * queries, weight_grad, found[2]


def _prepare(product: Tensor, weight: Tensor, dilation: int) -> tuple[Tensor, Tensor, int]:
    """Return the image, the kernel (C, width, K, K) and the padding that is still to be done."""
    size = isqrt(weight.shape[0])
    image, padding = product.permute(0, 3, 1, 2), _border(weight, dilation)
    if size % 2 == 0:
        # An even kernel reaches one tap further up and left.
        after = padding - dilation
        image, padding = F.pad(image, (padding, after, padding, after)), 0
    return image, weight.permute(1, 2, 0).unflatten(-1, (size, size)), padding


def _border(weight: Tensor, dilation: int) -> int:
    return isqrt(weight.shape[0]) // 2 * dilation
