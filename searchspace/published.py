"""What the papers report for the presets: top-1 on ImageNet-1k, trained there alone.

Sources: Han et al. 2022 (https://arxiv.org/abs/2106.04263), Zhou et al. 2023
(https://doi.org/10.1007/s11263-023-01813-x). They were trained for 300 epochs, with labels; where
it was otherwise, that is said. Networks that were pre-trained on ImageNet-22k, VOLO's that were
trained on at another resolution, points that a figure shows without a number, and ELSA-VOLO, whose
settings are not published, are not here.
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
        training: What its training had beside 300 epochs with labels; empty for nothing.
    """

    top1: float
    source: str
    training: str = ""

    def __str__(self) -> str:
        return f"{self.source}, {self.training}" if self.training else self.source


TOKEN_LABELS = "with token labels"
LARGER_IMAGES = "trained on from 224 pixels"


def _han(table: int, top1: float, training: str = "") -> Published:
    return Published(top1, f"Han et al. 2022, Table {table}", training)


def _zhou(table: int, top1: float, training: str = "") -> Published:
    return Published(top1, f"Zhou et al. 2023, Table {table}", training)


PUBLISHED: Mapping[str, Published] = {
    "swin_t": _han(2, 81.3),
    "swin_s": _zhou(8, 83.0),
    "swin_b": _han(2, 83.3),
    "swin_n_t": _zhou(3, 81.4),
    "local_mlp_t": _han(2, 80.3),
    "local_mlp_b": _han(2, 82.2),
    "dwconv_t": _han(2, 81.3),
    "dwconv_b": _han(2, 83.2),
    "d_dwconv_t": _han(2, 81.9),
    "d_dwconv_b": _han(2, 83.2),
    "id_dwconv_t": _han(2, 81.8),
    "id_dwconv_b": _han(2, 83.4),
    "id_dwconv_dw_t": _han(6, 82.3),
    "ddf_swin_t": _zhou(6, 82.0),
    "net1_t": _zhou(1, 80.1),
    "net2_t": _zhou(1, 80.9),
    "net3_t": _zhou(1, 80.9),
    "net4_t": _zhou(1, 79.8),
    "net5_t": _zhou(1, 81.1),
    "net6_t": _zhou(1, 81.3),
    "net7_t": _zhou(1, 81.8),
    "net7_t_fn": _zhou(2, 81.4),
    "net6n_t": _zhou(3, 82.0),
    "net7n_t": _zhou(3, 82.4),
    "elsa_swin_t_no_ghost": _zhou(4, 82.4),
    "elsa_swin_t": _zhou(4, 82.7),
    "elsa_swin_s": _zhou(8, 83.5),
    "elsa_swin_b": _zhou(8, 84.0),
    # Of Han's ablations.
    "local_mlp_t_sp": _han(4, 80.3),
    "local_mlp_t_h1_sp": _han(4, 80.2),
    "dwconv_t_c32": _han(4, 81.1),
    "dwconv_t_c32_nosp": _han(4, 80.3),
    "swin_t_bn": _han(11, 80.9),
    "swin_t_ccbn": _han(11, 81.2),
    "dwconv_t_ln": _han(11, 81.2),
    "dwconv_t_ccbn": _han(11, 81.7),
    "swin_t_se": _han(14, 81.2),
    "dwconv_t_se": _han(14, 81.7),
    "swin_t_384": _han(13, 82.4, LARGER_IMAGES),
    "swin_t_384_w7": _han(13, 81.8, LARGER_IMAGES),
    "dwconv_t_384": _han(13, 82.2, LARGER_IMAGES),
    "dwconv_t_384_k12": _han(13, 82.1, LARGER_IMAGES),
    "volo_d1": _han(12, 84.1, TOKEN_LABELS),
    "volo_d1_lsa": _han(12, 84.2, TOKEN_LABELS),
    "volo_d1_dwconv": _han(12, 84.2, TOKEN_LABELS),
    "volo_d3": _zhou(8, 85.4, TOKEN_LABELS),
    "volo_d4": _zhou(8, 85.7, TOKEN_LABELS),
    "volo_d5": _zhou(8, 86.1, TOKEN_LABELS),
    "twins_svt_s": _han(6, 81.7),
    "twins_svt_s_dwconv": _han(12, 81.9),
    "twins_svt_b": _zhou(8, 83.2),
    "twins_svt_l": _zhou(8, 83.7),
}
