"""ELSA: Hadamard attention with a ghost head (Zhou et al. 2023, Eq. 7-8), as the code runs.

The logits come from the Hadamard product of queries and keys through a grouped K x K convolution,
GELU and a 1x1 convolution (no scale, no tables); softmax over all K*K taps, those outside the map
included. The ghost head turns a head's attention into a filter for every channel:

    filter[c, o] = mul[c, o]^lam * attention[head(c), o] + gamma * add[c, o]

and its additive part is a depth-wise convolution of the values. Head h owns the contiguous
channels h*C/H to (h+1)*C/H, as in the published code (the paper's Algorithm 1 interleaves). The
dilation is that of the convolution and of the area.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from searchspace.mixers import Elsa, elsa_qk_dim
from supernet.kernels import aggregate, depthwise_conv, hadamard_conv
from supernet.mixers.constants import kept
from supernet.mixers.projections import blocks_of_rows, rows_of
from supernet.mixers.sharing import Place, centre_taps, head_rows, new_linear, new_table


class ElsaMixer(nn.Module):
    """ELSA of every setting in ``options``, weights shared.

    Fewer channels of queries and keys, or of values, are the first ones. An output channel of a
    narrower group, or of logits in groups, uses the weights of the same input channels.

    Args:
        options: The settings that the block offers; every ``group_width`` divides the largest.
        place: Where the mixer stands; any map size works.

    Raises:
        ValueError: If a group width does not divide the largest.
    """

    def __init__(self, options: Sequence[Elsa], *, place: Place) -> None:
        super().__init__()
        dim = self.dim = place.dim
        self.group_width = _widest_group(options)
        self.qk_dim = max(self._qk_dim(option) for option in options)
        self.v_dim = max(option.v_dim or dim for option in options)
        heads = max(option.num_heads for option in options)
        taps = max(option.kernel_size for option in options) ** 2
        # One grouping of the logits is stored as such; several are parts of ungrouped weights.
        groupings = {(o.logit_groups, o.num_heads, o.kernel_size, self._qk_dim(o)) for o in options}
        self.logit_width = self.qk_dim // (options[0].logit_groups if len(groupings) == 1 else 1)
        rows = (self.qk_dim, self.qk_dim, self.v_dim)
        self.in_proj = nn.Linear(dim, sum(rows), bias=place.qkv_bias)
        self.channel_blocks = blocks_of_rows("in_proj", *rows)
        self.proj = new_linear(self.v_dim, dim)
        # Tables over taps come first on axis 0, so that one function slices them all.
        conv_inputs = self.group_width * taps
        self.conv_weight = _uniform(taps, self.qk_dim, self.group_width, inputs=conv_inputs)
        self.conv_bias = _uniform(self.qk_dim, inputs=conv_inputs)
        self.logit_weight = _uniform(taps, heads, self.logit_width, inputs=self.logit_width)
        self.logit_bias = _uniform(taps, heads, inputs=self.logit_width)
        has_mul = any(option.lam != 0 for option in options)
        has_add = any(option.gamma != 0 for option in options)
        self.mul = nn.Parameter(torch.randn(taps, self.v_dim)) if has_mul else None
        self.add = new_table(taps, self.v_dim) if has_add else None

    def select(self, mixer: Elsa) -> dict[str, Tensor]:
        """Return the state of the module that has only this setting."""
        weight, bias = self._in_rows(mixer)
        return {
            "in_proj.weight": weight,
            **({} if bias is None else {"in_proj.bias": bias}),
            "proj.weight": self._out_weight(mixer),
            "proj.bias": self.proj.bias,
            **self._slices(mixer),
        }

    def forward(self, x: Tensor, mixer: Elsa) -> Tensor:
        """Mix the tokens of a map of shape (B, H, W, C); the shape stays."""
        qk_dim, v_dim = self._qk_dim(mixer), mixer.v_dim or self.dim
        q, k, v = self._project_in(x, mixer).split((qk_dim, qk_dim, v_dim), -1)
        v, slices = v.contiguous(), self._slices(mixer)  # one copy, which both operators keep
        attention = self._logits(q, k, slices, mixer).softmax(-1)
        mul = None if mixer.lam == 0 else signed_power(slices["mul"], mixer.lam)
        y = aggregate(attention, v, mixer.kernel_size, mul, dilation=mixer.dilation)
        if mixer.gamma != 0:
            square = (mixer.kernel_size, mixer.kernel_size)
            kernel = (mixer.gamma * slices["add"]).t().unflatten(1, square)
            y = y + depthwise_conv(v, kernel.contiguous(), dilation=mixer.dilation)
        if v_dim == self.v_dim:
            return self.proj(y)
        return F.linear(y, self._out_weight(mixer), self.proj.bias)

    def _logits(self, q: Tensor, k: Tensor, slices: dict[str, Tensor], mixer: Elsa) -> Tensor:
        """Generate the logits (B, H, W, heads, K*K) from queries and keys (B, H, W, qk_dim)."""
        hidden = hadamard_conv(
            q, k, slices["conv_weight"], slices["conv_bias"], dilation=mixer.dilation
        )
        weight = slices["logit_weight"].transpose(0, 1).flatten(0, 1)
        bias = slices["logit_bias"].t().flatten()
        logits = _grouped_linear(F.gelu(hidden), weight, bias, mixer.logit_groups)
        return logits.unflatten(-1, (mixer.num_heads, mixer.kernel_size**2))

    def _qk_dim(self, mixer: Elsa) -> int:
        return mixer.qk_dim or elsa_qk_dim(self.dim, mixer.group_width)

    def _project_in(self, x: Tensor, mixer: Elsa) -> Tensor:
        if (self._qk_dim(mixer), mixer.v_dim or self.dim) == (self.qk_dim, self.v_dim):
            return self.in_proj(x)
        return F.linear(x, *self._in_rows(mixer))

    def _in_rows(self, mixer: Elsa) -> tuple[Tensor, Tensor | None]:
        """Pick the rows of q, k and v: the first of each."""
        qk_dim, v_dim = self._qk_dim(mixer), mixer.v_dim or self.dim
        spans = ((0, qk_dim), (self.qk_dim, qk_dim), (2 * self.qk_dim, v_dim))
        return rows_of(self.in_proj, *spans)

    def _out_weight(self, mixer: Elsa) -> Tensor:
        return self.proj.weight[:, : mixer.v_dim or self.dim]

    def _slices(self, mixer: Elsa) -> dict[str, Tensor]:
        tables = {
            "conv_weight": self.conv_weight[:, : self._qk_dim(mixer)],
            "logit_weight": head_rows(self.logit_weight, mixer.num_heads, dim=1),
            "logit_bias": head_rows(self.logit_bias, mixer.num_heads, dim=1),
        }
        v_dim = mixer.v_dim or self.dim
        if mixer.lam != 0 and self.mul is not None:
            tables["mul"] = self.mul[:, :v_dim]
        if mixer.gamma != 0 and self.add is not None:
            tables["add"] = self.add[:, :v_dim]
        found = {name: centre_taps(table, mixer.kernel_size) for name, table in tables.items()}
        found["conv_weight"] = self._narrow_groups(found["conv_weight"], mixer.group_width)
        found["logit_weight"] = self._narrow_logits(found["logit_weight"], mixer)
        found["conv_bias"] = self.conv_bias[: self._qk_dim(mixer)]
        return found

    def _narrow_groups(self, weight: Tensor, width: int) -> Tensor:
        """Cut (K*K, qk_dim, widest) to the input channels of narrower groups, (..., width)."""
        if width == self.group_width:
            return weight
        inputs = _group_inputs(weight.shape[1], width, self.group_width, weight.device)
        return weight.gather(2, inputs.expand(len(weight), -1, -1))

    def _narrow_logits(self, weight: Tensor, mixer: Elsa) -> Tensor:
        """Cut (K*K, heads, inputs) to the input channels of each logit's group."""
        taps, heads, _ = weight.shape
        width = self._qk_dim(mixer) // mixer.logit_groups
        if width == self.logit_width:
            return weight
        if mixer.logit_groups == 1:
            return weight[..., :width]
        inputs = _logit_inputs(taps, heads, mixer.logit_groups, width, weight.device)
        return weight.gather(2, inputs)


@kept
def _group_inputs(channels: int, width: int, widest: int, device: torch.device) -> Tensor:
    """Number the inputs of each channel's narrow group inside its widest group: (C, width)."""
    start = torch.arange(channels, device=device) // width * width % widest
    return start[:, None] + torch.arange(width, device=device)


@kept
def _logit_inputs(taps: int, heads: int, groups: int, width: int, device: torch.device) -> Tensor:
    """Number the inputs of each logit's group: (taps, heads, width).

    The published 1x1 convolution groups its outputs head by head, tap by tap.
    """
    output = torch.arange(heads * taps, device=device).view(heads, taps).t()
    start = output // (heads * taps // groups) * width
    return start[..., None] + torch.arange(width, device=device)


def signed_power(base: Tensor, exponent: float) -> Tensor:
    """Raise to a power > 0: as published for integers, sign(x) * |x|^p between them.

    The published code gives NaN for a negative base and a fractional exponent. Where a power would
    leave half the exponent range of the dtype (|x|^p > 1e19 in float32) it stays there, so that
    neither it nor its gradient becomes infinite.
    """
    if exponent == 1:
        return base
    limits = torch.finfo(base.dtype)
    if exponent > 1:
        reach = limits.max ** (0.5 / exponent)
        base = base.clamp(-reach, reach)
    if float(exponent).is_integer():
        return base ** int(exponent)
    # The floor keeps the gradient finite at zero for exponents below one.
    return base.sign() * base.abs().clamp_min(max(1e-12, limits.tiny)) ** exponent


def _widest_group(options: Sequence[Elsa]) -> int:
    widths = sorted({option.group_width for option in options})
    if any(widths[-1] % width for width in widths):
        raise ValueError(
            "elsa: every group_width of a block must divide the largest, so that they can share "
            f"weights, got {widths}. Give the space widths like 2, 4 and 8."
        )
    return widths[-1]


def _uniform(*shape: int, inputs: int) -> nn.Parameter:
    """Make weights with the default initialisation of PyTorch's layers of so many inputs."""
    bound = inputs**-0.5
    return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))


def _grouped_linear(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    """Apply a 1x1 convolution in groups to (B, H, W, inputs): weight (outputs, inputs / groups)."""
    if groups == 1:
        return F.linear(x, weight, bias)
    y = F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias, groups=groups)
    return y.permute(0, 2, 3, 1)
