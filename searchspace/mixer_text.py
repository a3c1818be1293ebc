"""Mixers in few words, for tables: ``nbhd5 h12 qr+rk+b``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from searchspace.mixers import Elsa, Mixer, changed_settings

# How a setting that is not at its default is written, in this order.
_WORDS: dict[str, Callable[[Any], str]] = {
    "num_heads": lambda value: f"h{value}",
    "terms": lambda value: str(value).replace("bias", "b"),
    "norm": {"filter_norm": "fn", "identity": "id"}.__getitem__,
    "conv": str,
    "shared_positions": lambda value: "shared" if value else "unshared",
    "channels_per_filter": lambda value: f"c{value}",
    "num_groups": lambda value: f"g{value}",
    "group_channels": lambda value: f"c{value}",
    "reduction": lambda value: f"r{value}",
    "combine": str,
    "se_ratio": lambda value: f"se{value:g}",
    "stride": lambda value: f"s{value}",
    "sr_ratio": lambda value: f"sr{value}",
    "group_width": lambda value: f"w{value}",
    "dilation": lambda value: f"d{value}",
    "logit_groups": lambda value: f"lg{value}",
    "qk_dim": lambda value: f"qk{value}",
    "v_dim": lambda value: f"v{value}",
}


def describe_mixer(mixer: Mixer) -> str:
    """Write a mixer compactly, e.g. ``nbhd5 h12 qr+rk+b``; defaults are left out."""
    size = getattr(mixer, "window_size", getattr(mixer, "kernel_size", ""))
    changed = changed_settings(mixer)
    words = [f"{mixer.short}{size}"]
    if "num_heads" in changed:
        words.append(f"h{changed.pop('num_heads')}")
    if changed.keys() & {"lam", "gamma"} and isinstance(mixer, Elsa):
        words.append(f"l{mixer.lam:g} g{mixer.gamma:g}")
    words += [write(changed[name]) for name, write in _WORDS.items() if name in changed]
    return " ".join(words)
