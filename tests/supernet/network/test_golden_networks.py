"""Whole networks of the published code: VOLO, Twins-SVT and ELSA-Swin, in float64.

VOLO and ELSA-Swin go through the product's own reader of published checkpoints.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from searchspace.architecture import Architecture, Stage
from searchspace.mixers import Elsa, GlobalAttention, OutlookAttention, WindowAttention
from supernet.exchange.published import convert
from supernet.network.macro import ClassBlock, PositionEncoding
from supernet.network.supernet import build_subnet
from tests.golden import check, check_parameters, load, read, state_of, take

VOLO = Architecture(
    family="volo",
    img_size=64,
    patch_size=8,
    num_classes=10,
    stem_dim=8,
    stages=(
        Stage(dim=12, mixers=(OutlookAttention(num_heads=2),), mlp_ratio=3),
        *(Stage(dim=24, mixers=(GlobalAttention(num_heads=3),), mlp_ratio=3) for _ in range(3)),
    ),
)
ELSA_SWIN = Architecture(
    img_size=56,
    patch_size=4,
    num_classes=10,
    stages=(
        Stage(dim=12, mixers=(Elsa(kernel_size=7, num_heads=2),) * 2),
        Stage(dim=24, mixers=(WindowAttention(window_size=7, num_heads=4),) * 2),
    ),
)
LOCAL = WindowAttention(window_size=7, num_heads=3, terms="qk")
TWINS = Architecture(
    family="twins",
    img_size=56,
    patch_size=4,
    num_classes=10,
    stages=(
        Stage(dim=12, mixers=(LOCAL, GlobalAttention(num_heads=3, sr_ratio=2))),
        Stage(dim=24, mixers=(LOCAL, GlobalAttention(num_heads=3))),
    ),
)


@pytest.mark.parametrize(
    ("name", "architecture"), [("net_volo_a", VOLO), ("net_elsa_swin_a", ELSA_SWIN)]
)
def test_published_checkpoints_give_the_published_logits(
    name: str, architecture: Architecture
) -> None:
    fixture = read(name)
    network = build_subnet(architecture).double().eval()
    network.load_state_dict(convert(state_of(fixture, "p", "b"), architecture))
    check(network, fixture, (3, architecture.img_size, architecture.img_size))


def test_twins_gives_the_published_logits() -> None:
    fixture = read("net_twins_svt_a")
    network = build_subnet(TWINS).double().eval()
    # The fixture was made with the class's default norms; the published models ask for 1e-6.
    for module in network.modules():
        if isinstance(module, nn.LayerNorm) and module.eps == 1e-6:
            module.eps = 1e-5
    load(network, twins(state_of(fixture, "p")))
    check(network, fixture, (3, 56, 56))


def twins(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found = take(state, "norm", "norm") | take(state, "head", "head")
    for index, ours in enumerate(("patch_embed", "merges.0")):
        found |= {
            name.replace(f"patch_embeds.{index}", ours): value
            for name, value in state.items()
            if name.startswith(f"patch_embeds.{index}.")
        }
        encoding = f"pos_block.{index}.proj.0"
        for part in ("weight", "bias"):
            found[f"encodings.{index}.conv.{part}"] = state[f"{encoding}.{part}"]
        for number in (0, 1):
            source, block = f"blocks.{index}.{number}", f"stages.{index}.{number}"
            found |= take(state, f"{source}.norm1", f"{block}.norms.attention")
            found |= take(state, f"{source}.norm2", f"{block}.norms.attention_mlp")
            for layer in ("mlp.fc1", "mlp.fc2"):
                found |= take(state, f"{source}.{layer}", f"{block}.{layer}")
            if number == 0:
                target = f"{block}.mixers.window_attention.attention"
                found |= take(state, f"{source}.attn.qkv", f"{target}.in_proj")
                found |= take(state, f"{source}.attn.proj", f"{target}.proj")
            else:
                found |= reduced_attention(state, source, f"{block}.mixers.global_attention")
    return found


def reduced_attention(state: dict[str, Tensor], source: str, target: str) -> dict[str, Tensor]:
    found = take(state, f"{source}.attn.proj", f"{target}.proj")
    is_reduced = f"{source}.attn.sr.weight" in state
    for part in ("weight", "bias"):
        query, key_value = (state[f"{source}.attn.{name}.{part}"] for name in ("q", "kv"))
        if not is_reduced:
            found[f"{target}.in_proj.{part}"] = torch.cat([query, key_value])
        else:
            found |= {f"{target}.query.{part}": query, f"{target}.in_proj.{part}": key_value}
            reduction = f"{target}.reductions.2"
            found[f"{reduction}.conv.{part}"] = state[f"{source}.attn.sr.{part}"]
            found[f"{reduction}.norm.{part}"] = state[f"{source}.attn.norm.{part}"]
    return found


def test_class_attention_is_the_published_one() -> None:
    fixture = read("volo_class_block_a")
    block = ClassBlock(12, mlp_ratio=3, norm_eps=1e-5).double()
    load(block, class_block(state_of(fixture, "p")))
    # The published block changes the class token and leaves the others.
    check(lambda x: block(x, 3, 3.0), fixture, (10, 12))
    check_parameters(block, lambda x: block(x, 3, 3.0), fixture, (10, 12), class_block)


def class_block(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"attn.kv": "kv", "attn.q": "q", "attn.proj": "proj"}
    found: dict[str, Tensor] = {}
    for layer in ("norm1", "norm2", "mlp.fc1", "mlp.fc2", *names):
        found |= take(state, layer, names.get(layer, layer))
    return found


def test_position_encoding_is_the_published_one() -> None:
    fixture = read("twins_peg_a")
    encoding = PositionEncoding(12).double()

    def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f"conv.{part}": state[f"proj.0.{part}"] for part in ("weight", "bias")}

    load(encoding, convert(state_of(fixture, "p")))
    check(encoding, fixture, (9, 11, 12))
    check_parameters(encoding, encoding, fixture, (9, 11, 12), convert)
