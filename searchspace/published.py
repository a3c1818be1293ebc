"""What the papers report for the presets: top-1 on ImageNet-1k, trained for 300 epochs there.

Sources: Han et al. 2022 (https://arxiv.org/abs/2106.04263), Zhou et al. 2023
(https://doi.org/10.1007/s11263-023-01813-x). Networks that were pre-trained on ImageNet-22k, and
points that a figure shows without a number, are not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Published:
    """A published accuracy.

    Attributes:
        top1: In percent, on the ImageNet-1k validation images.
        source: Paper and table.
    """

    top1: float
    source: str


def _han(table: int, top1: float) -> Published:
    return Published(top1, f"Han et al. 2022, Table {table}")


def _zhou(table: int, top1: float) -> Published:
    return Published(top1, f"Zhou et al. 2023, Table {table}")


PUBLISHED: Mapping[str, Published] = {
    "swin_t": _han(2, 81.3),
    "swin_s": _zhou(8, 83.0),
    "swin_b": _han(2, 83.3),
    "swin_t_384": _han(13, 82.4),
    "swin_t_384_w7": _han(13, 81.8),
    "swin_n_t": _zhou(3, 81.4),
    "dwconv_t": _han(2, 81.3),
    "dwconv_b": _han(2, 83.2),
    "dwconv_t_384": _han(13, 82.2),
    "id_dwconv_t": _han(2, 81.8),
    "id_dwconv_b": _han(2, 83.4),
    "net1_t": _zhou(1, 80.1),
    "net2_t": _zhou(1, 80.9),
    "net3_t": _zhou(1, 80.9),
    "net4_t": _zhou(1, 79.8),
    "net5_t": _zhou(1, 81.1),
    "net6_t": _zhou(1, 81.3),
    "net7_t": _zhou(1, 81.8),
    "net6n_t": _zhou(3, 82.0),
    "net7n_t": _zhou(3, 82.4),
    "elsa_swin_t_no_ghost": _zhou(4, 82.4),
    "elsa_swin_t": _zhou(4, 82.7),
    "elsa_swin_s": _zhou(8, 83.5),
    "elsa_swin_b": _zhou(8, 84.0),
}
