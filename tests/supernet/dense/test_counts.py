"""The papers' parameters and FLOPs: closed form = built network = torch's counter = their print.

The built network is run part by part, on tensors without memory, with 1000 proposals and 100 masks
at every stage, as the papers' counters do. FLOPs are the papers' word for multiply-adds.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from searchspace.architecture import Architecture
from searchspace.dense import HEADS
from searchspace.dense_cost import Cost, count_dense
from searchspace.presets import preset
from searchspace.space import SearchSpace
from supernet.dense.network import DenseNetwork, Segmenter, build_dense
from supernet.dense.options import dense_options
from supernet.recipes.dense_recipe import load_dense_recipe

RECIPES = {
    "mask_rcnn": "mask_rcnn_1x",
    "cascade_mask_rcnn": "cascade_mask_rcnn_1x",
    "upernet": "upernet_160k",
}
CLASSES = {"mask_rcnn": 80, "cascade_mask_rcnn": 80, "upernet": 150}
SIZES = {"mask_rcnn": (1280, 800), "cascade_mask_rcnn": (1280, 800), "upernet": (512, 2048)}
# Parameters with mmdetection's and mmsegmentation's own layers (../shared/reference/DOWNSTREAM.md).
PARAMS = {
    "swin_t": (47_794_602, 85_629_804, 59_941_862),
    "swin_s": (69_112_506, 106_947_708, 81_259_766),
    "swin_b": (107_141_800, 144_977_002, 121_279_716),
    "dwconv_t": (43_678_992, 81_514_194, 55_826_252),
    "dwconv_b": (93_720_688, 131_555_890, 107_858_604),
    "d_dwconv_t": (70_638_000, 108_473_202, 82_785_260),
    "d_dwconv_b": (180_971_504, 218_806_706, 195_109_420),
    "id_dwconv_t": (45_750_528, 83_585_730, 57_897_788),
    "id_dwconv_b": (99_627_184, 137_462_386, 113_765_100),
    "elsa_swin_t": (48_647_226, 86_482_428, 60_794_486),
    "elsa_swin_s": (72_380_874, 110_216_076, 84_528_134),
    "elsa_swin_b": (112_056_040, 149_891_242, 126_193_956),
}
TWINS = {"twins_svt_s": 53_856_300, "twins_svt_b": 87_724_460, "twins_svt_l": 132_782_892}
# FLOPs in G as they are printed: with mmcv's counter (Swin's repository; Zhou et al., Tables 9 and
# 10), and with Han's (Table 3).
MMCV_FLOPS = {
    ("swin_t", "mask_rcnn"): 267,
    ("swin_s", "mask_rcnn"): 359,
    ("swin_t", "cascade_mask_rcnn"): 745,
    ("swin_s", "cascade_mask_rcnn"): 838,
    ("swin_b", "cascade_mask_rcnn"): 982,
    ("swin_t", "upernet"): 945,
    ("swin_s", "upernet"): 1038,
    ("swin_b", "upernet"): 1188,
}
HAN_FLOPS = {
    ("swin_t", "cascade_mask_rcnn"): 747,
    ("swin_b", "cascade_mask_rcnn"): 986,
    ("swin_t", "upernet"): 947,
    ("swin_b", "upernet"): 1192,
    ("dwconv_t", "cascade_mask_rcnn"): 730,
    ("dwconv_b", "cascade_mask_rcnn"): 924,
    ("dwconv_t", "upernet"): 928,
    ("dwconv_b", "upernet"): 1129,
    ("d_dwconv_t", "cascade_mask_rcnn"): 730,
    ("d_dwconv_b", "cascade_mask_rcnn"): 924,
    ("d_dwconv_t", "upernet"): 928,
    ("d_dwconv_b", "upernet"): 1129,
}


def build(architecture: Architecture, head: str) -> DenseNetwork:
    options = dense_options(load_dense_recipe(RECIPES[head]), CLASSES[head])
    with torch.device("meta"):
        return build_dense(SearchSpace.of(architecture), options).eval()


def run(network: DenseNetwork, head: str) -> None:
    """Run what the papers count."""
    with torch.no_grad(), torch.device("meta"):
        maps = network.backbone(torch.empty(1, 3, *SIZES[head]))
        if isinstance(network, Segmenter):
            network.head(maps)
            return
        for x in network.pyramid(maps):
            # Without the ReLU between them, a function that the papers' counters do not see.
            hidden = network.proposals.conv(x)
            network.proposals.scores(hidden), network.proposals.moves(hidden)
        for boxes, masks in zip(network.regions.boxes, network.regions.masks, strict=True):
            boxes(torch.empty(1000, 256, 7, 7))
            masks(torch.empty(100, 256, 14, 14))


class PaperCounter(TorchDispatchMode):
    """What the papers' counters add to multiply-adds, as numbers of operations.

    mmcv's adds one for a bias of a convolution, two for a layer norm, one for a ReLU and for an
    input of a pooling; SyncBN is not seen. Han's adds to these 15 for a GELU, 5 for a softmax, and
    2 for an output of a dynamic depth-wise convolution.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mmcvs = self.hans = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        first = out[0] if isinstance(out, tuple) else out
        match func.overloadpacket.__name__:
            case "convolution" if args[2] is not None:
                self.mmcvs += first.numel()
            case "native_layer_norm":
                self.mmcvs += 2 * first.numel()
            case "relu" | "relu_":
                self.mmcvs += first.numel()
            case "_adaptive_avg_pool2d" | "max_pool2d_with_indices":
                self.mmcvs += args[0].numel()
            case "gelu":
                self.hans += 15 * first.numel()
            case "_safe_softmax" | "_softmax":
                self.hans += 5 * first.numel()
            case "aggregate":
                self.hans += 2 * first.numel()
        return out


def measure(name: str, head: str) -> tuple[Cost, int, int]:
    """Run a built network: what torch counts, and G of FLOPs by mmcv's and by Han's rules."""
    network = build(preset(name), head)
    with PaperCounter() as extra, FlopCounterMode(display=False) as counter:
        run(network, head)
    macs = counter.get_total_flops() // 2
    params = sum(parameter.numel() for parameter in network.parameters())
    by_mmcv = macs + extra.mmcvs
    return Cost(params, macs), round(by_mmcv / 1e9), round((by_mmcv + extra.hans) / 1e9)


@pytest.mark.timeout(600)
def test_the_papers_36_parameter_counts_and_20_flops() -> None:
    for name, by_head in PARAMS.items():
        for head, params in zip(RECIPES, by_head, strict=True):
            built, by_mmcv, by_han = measure(name, head)
            closed = count_dense(
                preset(name), HEADS[head], num_classes=CLASSES[head], size=SIZES[head]
            )
            assert closed == built, (name, head)
            assert built.params == params, (name, head)
            assert MMCV_FLOPS.get((name, head), by_mmcv) == by_mmcv, (name, head)
            assert HAN_FLOPS.get((name, head), by_han) == by_han, (name, head)


@pytest.mark.parametrize(("name", "params"), TWINS.items())
def test_twins_in_upernet_has_the_parameters_of_mmsegmentation(name: str, params: int) -> None:
    found = count_dense(preset(name), HEADS["upernet"], num_classes=150, size=SIZES["upernet"])
    assert found == measure(name, "upernet")[0]
    assert found.params == params
