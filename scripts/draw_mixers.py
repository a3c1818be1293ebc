"""Draw what connects a mixer's outputs with its inputs, measured on the modules themselves.

    python scripts/draw_mixers.py docs/pictures/mixers.png

A row a mixer, on a map of 8 x 8 tokens with four channels, as in Fig. 1 of Han et al. 2022:

* left, which tokens the output at the ringed token depends on (a gradient that is not zero): dark
  where their values are summed, light where they only change the weights;
* then the weights of the four channels at that token, and at its right neighbour. Equal colours are
  equal weights: equal pictures share weights across channels, moved pictures across positions.

A weight is measured by changing one channel of one token that the generators cannot see.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from searchspace.mixers import (
    CONV_KINDS,
    DecoupledDynamicFilter,
    DepthwiseConv,
    DynamicDepthwiseConv,
    Elsa,
    GlobalAttention,
    InhomogeneousDepthwiseConv,
    Involution,
    LocalMlp,
    Mixer,
    NeighborhoodAttention,
    OutlookAttention,
    WindowAttention,
)
from supernet.mixers import MIXERS
from supernet.mixers.sharing import Place

SIZE, DIM = 8, 4
TOKEN = (3, 3)
# Parameters, by the end of their name, whose last axis reads the channels of the mixer's input.
GENERATORS = ("reduce.weight", "spatial_weight", "table_static")

ROWS: tuple[tuple[str, Mixer], ...] = (
    ("window_attention", WindowAttention(window_size=4, num_heads=2)),
    ("neighborhood_attention", NeighborhoodAttention(kernel_size=3, num_heads=2)),
    ("local_mlp", LocalMlp(window_size=4, num_heads=2)),
    ("local_mlp, shared", LocalMlp(window_size=4, num_heads=2, shared_positions=True)),
    ("depthwise_conv", DepthwiseConv(kernel_size=3)),
    ("depthwise_conv, 2 channels a filter", DepthwiseConv(kernel_size=3, channels_per_filter=2)),
    ("depthwise_conv, unshared", DepthwiseConv(kernel_size=3, shared_positions=False)),
    ("dynamic_depthwise_conv", DynamicDepthwiseConv(kernel_size=3)),
    ("inhomogeneous_depthwise_conv", InhomogeneousDepthwiseConv(kernel_size=3, num_groups=2)),
    ("involution", Involution(kernel_size=3, group_channels=4, reduction=1)),
    ("decoupled_dynamic_filter", DecoupledDynamicFilter(kernel_size=3, se_ratio=0.5)),
    ("outlook_attention", OutlookAttention(num_heads=2)),
    ("elsa, no ghost head", Elsa(kernel_size=3, num_heads=2, group_width=2, gamma=0.0)),
    ("elsa", Elsa(kernel_size=3, num_heads=2, group_width=2)),
    ("global_attention", GlobalAttention(num_heads=2)),
)


@dataclass(frozen=True)
class Connections:
    """What is measured of a mixer.

    Attributes:
        depends: Tokens that the output at `TOKEN` depends on, (SIZE, SIZE).
        weights: Of the outputs at `TOKEN` and its right neighbour, (2, DIM, SIZE, SIZE).
    """

    depends: np.ndarray
    weights: np.ndarray


def measure(mixer: Mixer) -> Connections:
    """Measure a freshly drawn module of the mixer, in float64 and eval mode."""
    torch.manual_seed(0)
    module = MIXERS[mixer.kind]([mixer], place=Place(dim=DIM, size=SIZE, block=0)).double().eval()
    for name, parameter in module.named_parameters():
        if "norm" not in name:
            nn.init.normal_(parameter, std=0.7)
    x = torch.rand(1, SIZE, SIZE, DIM, dtype=torch.float64).add(0.5).requires_grad_()
    (gradient,) = torch.autograd.grad(module(x, mixer)[0, TOKEN[0], TOKEN[1]].sum(), x)
    depends = (gradient[0].abs().sum(-1) > 1e-12).numpy()
    return Connections(depends, _weights(module, mixer, x.detach()))


@torch.no_grad()
def _weights(module: nn.Module, mixer: Mixer, x: Tensor) -> np.ndarray:
    if mixer.kind not in CONV_KINDS:
        _pass_values(module, channel=0)
        _blind(module, channel=0)
        return _responses(module, mixer, x, channel=0)
    _pass_through(module)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    found = []
    for channel in range(DIM):
        module.load_state_dict(state)
        _blind(module, channel=channel)
        found.append(_responses(module, mixer, x, channel=channel)[:, channel])
    return np.stack(found, 1)


def _responses(module: nn.Module, mixer: Mixer, x: Tensor, *, channel: int) -> np.ndarray:
    """Change one channel of every token in turn; return (2, DIM, SIZE, SIZE)."""
    base = x.clone()
    base[..., channel] = 0
    changed = base.repeat(SIZE * SIZE, 1, 1, 1)
    index = torch.arange(SIZE * SIZE)
    changed[index, index // SIZE, index % SIZE, channel] = 1
    change = module(changed, mixer) - module(base, mixer)
    row, column = TOKEN
    at_tokens = change[:, row, column : column + 2]  # (SIZE * SIZE, 2, DIM)
    return at_tokens.permute(1, 2, 0).unflatten(-1, (SIZE, SIZE)).numpy()


def _blind(module: nn.Module, *, channel: int) -> None:
    """Let nothing that makes weights see the channel."""
    for name, parameter in module.named_parameters():
        if name.endswith(GENERATORS) or (name == "weight" and parameter.dim() == 4):
            parameter[..., channel] = 0
        if name.endswith("in_proj.weight"):
            parameter[:-DIM, channel] = 0


def _pass_values(module: nn.Module, *, channel: int) -> None:
    """Let every channel's value be the one input channel, and the outputs be what was summed."""
    for name, parameter in module.named_parameters():
        if name.endswith("in_proj.weight") or name == "value.weight":
            parameter[-DIM:] = 0
            parameter[-DIM:, channel] = 1
        elif name.endswith("in_proj.bias") or name == "value.bias":
            parameter[-DIM:] = 0
    projection = next(
        child for name, child in module.named_modules() if name.split(".")[-1] == "proj"
    )
    assert isinstance(projection, nn.Linear)
    nn.init.eye_(projection.weight)
    nn.init.zeros_(projection.bias)


def _pass_through(module: nn.Module) -> None:
    """Make the 1x1 convolutions, norms and ReLUs around a spatial filter the identity."""
    frame = module.get_submodule("pointwise")
    for name in ("conv_in", "conv_out"):
        nn.init.eye_(frame.get_submodule(name).weight)  # type: ignore[arg-type]
    # Far above zero, the ReLU behind the filter changes nothing.
    nn.init.constant_(frame.get_submodule("norm_mid").bias, 1000.0)  # type: ignore[arg-type]


def draw(path: Path) -> None:
    """Draw all rows into a picture."""
    columns = 1 + 2 * DIM
    figure, axes = plt.subplots(
        len(ROWS), columns, figsize=(1.25 * columns + 2.6, 1.3 * len(ROWS)), squeeze=False
    )
    for row, (title, mixer) in zip(axes, ROWS, strict=True):
        found = measure(mixer)
        used = np.abs(found.weights[0]).sum(0) > 1e-9
        _map(row[0], np.where(used, 2, found.depends.astype(int)), "Blues", 2, TOKEN)
        row[0].set_ylabel(title.replace(", ", ",\n"), rotation=0, ha="right", va="center")
        colours = _colours(found.weights)
        for index, axis in enumerate(row[1:]):
            token, channel = divmod(index, DIM)
            place = (TOKEN[0], TOKEN[1] + token)
            _map(axis, colours[token, channel], "nipy_spectral", colours.max() * 1.05, place)
    for axis, title in zip(axes[0], ("depends on", *_titles()), strict=True):
        axis.set_title(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _titles() -> list[str]:
    return [f"{where}\nchannel {c}" for where in ("token", "next token") for c in range(DIM)]


def _colours(weights: np.ndarray) -> np.ndarray:
    """Number equal weights alike; 0 where there is none. Colours follow the order of size."""
    rounded = np.round(weights, 9)
    values = np.unique(rounded[np.abs(rounded) > 0])
    numbers = np.searchsorted(values, rounded) + 1
    return np.where(np.abs(rounded) > 0, numbers, 0)


def _map(axis: Axes, values: np.ndarray, colours: str, top: float, token: tuple[int, int]) -> None:
    shown = np.ma.masked_equal(values, 0)
    axis.imshow(shown, cmap=colours, vmin=0, vmax=max(top, 1), interpolation="nearest")
    axis.set_xticks(np.arange(-0.5, SIZE), [])
    axis.set_yticks(np.arange(-0.5, SIZE), [])
    axis.grid(color="0.85", linewidth=0.5)
    axis.tick_params(length=0)
    frame = (token[1] - 0.5, token[0] - 0.5)
    axis.add_patch(Rectangle(frame, 1, 1, fill=False, edgecolor="black", linewidth=1.5))


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
