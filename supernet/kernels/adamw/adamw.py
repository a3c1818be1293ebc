"""AdamW's step on blocks of weights whose elements count their own steps."""

from __future__ import annotations

from collections.abc import Sequence

from supernet.kernels.adamw import in_c, in_torch
from supernet.kernels.adamw.part import Part, Rule
from supernet.kernels.select import serving


def update_parts(parts: Sequence[Part], rule: Rule) -> None:
    """Change the used elements of some weights as AdamW would each of them alone.

    Loshchilov and Hutter 2019 (https://arxiv.org/abs/1711.05101), algorithm 2, with an element's
    own count of steps. What the mask does not use keeps its value, moments and count.

    Args:
        parts: Of one dtype and device, at least one; a gradient is zero where the mask is.
        rule: The settings.
    """
    is_c = serving(__package__, parts[0].parameter) == "c" and in_c.serves(parts, rule)
    (in_c if is_c else in_torch).update(parts, rule)
