"""ELSA: Hadamard attention with a ghost head (Zhou et al. 2023, Eq. 7-8), as the code runs.

The logits come from the Hadamard product of queries and keys through a grouped K x K convolution,
GELU and a 1x1 convolution (no scale, no tables); softmax over all K*K taps, those outside the map
included. The ghost head turns a head's attention into a filter for every channel:

    filter[c, o] = mul[c, o]^lam * attention[head(c), o] + gamma * add[c, o]

and its additive part is a depth-wise convolution of the values. Head h owns the contiguous
channels h*C/H to (h+1)*C/H, as in the published code (the paper's Algorithm 1 interleaves).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from searchspace.mixers import Elsa, elsa_qk_dim
from supernet.kernels import aggregate, depthwise_conv
from supernet.mixers.sharing import Place, centre_taps, head_rows, new_linear, new_table, state_of


class ElsaMixer(nn.Module):
    """ELSA of every setting in ``options``, weights shared over kernel size, heads, lam and gamma.

    Args:
        options: The settings that the block offers; they must agree on ``group_width``.
        place: Where the mixer stands; any map size works.

    Raises:
        ValueError: If the options have several group widths.
    """

    def __init__(self, options: Sequence[Elsa], *, place: Place) -> None:
        super().__init__()
        dim = place.dim
        widths = sorted({option.group_width for option in options})
        if len(widths) > 1:
            raise ValueError(
                f"elsa: the options of one block must have one group_width, got {widths}. "
                "Give the space one group_width."
            )
        self.qk_dim = elsa_qk_dim(dim, widths[0])
        heads = max(option.num_heads for option in options)
        kernel = max(option.kernel_size for option in options)
        self.in_proj = nn.Linear(dim, 2 * self.qk_dim + dim)
        self.proj = new_linear(dim, dim)
        conv = nn.Conv2d(self.qk_dim, self.qk_dim, kernel, groups=self.qk_dim // widths[0])
        assert conv.bias is not None
        # Tables over taps come first on axis 0, so that one function slices them all.
        self.conv_weight = nn.Parameter(conv.weight.detach().flatten(2).permute(2, 0, 1).clone())
        self.conv_bias = nn.Parameter(conv.bias.detach())
        logits = nn.Linear(self.qk_dim, heads * kernel**2)
        weight = logits.weight.detach().unflatten(0, (heads, -1)).transpose(0, 1)
        self.logit_weight = nn.Parameter(weight.clone())  # (K*K, heads, qk_dim)
        self.logit_bias = nn.Parameter(logits.bias.detach().view(heads, -1).t().clone())
        has_mul = any(option.lam != 0 for option in options)
        has_add = any(option.gamma != 0 for option in options)
        self.mul = nn.Parameter(torch.randn(kernel**2, dim)) if has_mul else None
        self.add = new_table(kernel**2, dim) if has_add else None

    def select(self, mixer: Elsa) -> dict[str, Tensor]:
        """Return the state of the module that has only this setting."""
        return {
            **state_of(self.in_proj, "in_proj"),
            **state_of(self.proj, "proj"),
            "conv_bias": self.conv_bias,
            **self._slices(mixer),
        }

    def forward(self, x: Tensor, mixer: Elsa) -> Tensor:
        """Mix the tokens of a map of shape (B, H, W, C); the shape stays."""
        q, k, v = self.in_proj(x).split((self.qk_dim, self.qk_dim, x.shape[-1]), -1)
        v, taps = v.contiguous(), mixer.kernel_size
        slices = self._slices(mixer)
        attention = self._logits(q * k, slices, mixer).softmax(-1)
        mul = None if mixer.lam == 0 else signed_power(slices["mul"], mixer.lam)
        y = aggregate(attention, v, taps, mul)
        if mixer.gamma != 0:
            kernel = (mixer.gamma * slices["add"]).t().unflatten(1, (taps, taps))
            y = y + depthwise_conv(v, kernel.contiguous())
        return self.proj(y)

    def _logits(self, product: Tensor, slices: dict[str, Tensor], mixer: Elsa) -> Tensor:
        """Generate the logits (B, H, W, heads, K*K) from the Hadamard product (B, H, W, qk_dim)."""
        taps = mixer.kernel_size
        weight = slices["conv_weight"].permute(1, 2, 0).unflatten(-1, (taps, taps))
        groups = self.qk_dim // mixer.group_width
        hidden = F.conv2d(
            product.permute(0, 3, 1, 2), weight, self.conv_bias, padding=taps // 2, groups=groups
        ).permute(0, 2, 3, 1)
        weight = slices["logit_weight"].transpose(0, 1).flatten(0, 1)
        logits = F.linear(F.gelu(hidden), weight, slices["logit_bias"].t().flatten())
        return logits.unflatten(-1, (mixer.num_heads, taps**2))

    def _slices(self, mixer: Elsa) -> dict[str, Tensor]:
        tables: dict[str, Tensor] = {"conv_weight": self.conv_weight}
        tables["logit_weight"] = head_rows(self.logit_weight, mixer.num_heads, dim=1)
        tables["logit_bias"] = head_rows(self.logit_bias, mixer.num_heads, dim=1)
        if mixer.lam != 0 and self.mul is not None:
            tables["mul"] = self.mul
        if mixer.gamma != 0 and self.add is not None:
            tables["add"] = self.add
        return {name: centre_taps(table, mixer.kernel_size) for name, table in tables.items()}


def signed_power(base: Tensor, exponent: float) -> Tensor:
    """Raise to a power >= 0: as published for integers, sign(x) * |x|^p between them.

    The published code gives NaN for a negative base and a fractional exponent.
    """
    if exponent == 1:
        return base
    if float(exponent).is_integer():
        return base ** int(exponent)
    # The floor keeps the gradient finite at zero for exponents below one.
    return base.sign() * base.abs().clamp_min(1e-12) ** exponent
