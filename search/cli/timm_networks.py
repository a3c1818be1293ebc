"""Networks of other families through timm: their parameters and MACs, for comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import timm
import torch
from rich.table import Table
from timm.layers import set_fused_attn
from torch.utils.flop_counter import FlopCounterMode

from search.terminal import format_count


@dataclass(frozen=True, slots=True)
class TimmNetwork:
    """A network of timm: its name, cost and image size."""

    name: str
    params: int
    macs: int
    img_size: int

    def to_dict(self) -> dict[str, Any]:
        """Describe it with the keys of ``search show --json``; it has no key and stages of ours."""
        return {
            "key": None,
            "name": self.name,
            "params": self.params,
            "macs": self.macs,
            "img_size": self.img_size,
            "stages": [],
        }


def measure(name: str, img_size: int | None = None) -> TimmNetwork:
    """Build a network of timm without memory and count it.

    MACs are those of convolutions, linear layers and matrix products of one image.

    Args:
        name: As ``timm.create_model`` knows it.
        img_size: Side of the images in pixels; None for the network's own.

    Raises:
        ValueError: If timm does not know the name, or cannot build it for that size.
    """
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        words = f"Close names: {', '.join(close)}." if close else "See timm.list_models()."
        raise ValueError(f"timm knows no model {name!r}. {words}")
    # Only the plain products of attention are counted, on any device.
    set_fused_attn(False)
    try:
        with torch.device("meta"):
            model = timm.create_model(name).eval()
            own: dict[str, Any] = model.default_cfg  # type: ignore[assignment]
            in_chans, size = int(own["input_size"][0]), img_size or int(own["input_size"][-1])
            if img_size is not None:
                model = _rebuilt(name, img_size)
            images = torch.empty(1, in_chans, size, size)
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                model(images)
    # timm's own checks are assertions and errors of all kinds, about the size that was asked for.
    except (AssertionError, ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"timm cannot build {name!r} for images of {img_size or 'its own'} pixels: "
            f"{str(error) or type(error).__name__}. Choose another --img-size, or leave it out."
        ) from error
    finally:
        set_fused_attn(True)
    params = sum(parameter.numel() for parameter in model.parameters())
    return TimmNetwork(name, params, counter.get_total_flops() // 2, size)


def _rebuilt(name: str, img_size: int) -> torch.nn.Module:
    """Build for another image size; networks that take any size have no such argument."""
    try:
        return timm.create_model(name, img_size=img_size).eval()
    except TypeError:
        return timm.create_model(name).eval()


def timm_table(network: TimmNetwork) -> Table:
    """Show the network in a line."""
    table = Table(title=f"timm:{network.name}, {network.img_size} x {network.img_size} pixels")
    for column in ("params", "MACs"):
        table.add_column(column, justify="right")
    table.add_row(format_count(network.params), format_count(network.macs))
    return table
