"""Published checkpoints under our names: Swin, ELSA and VOLO.

Layouts that are read: Swin as Microsoft published it and as timm keeps it (``swin_*``), ELSA-Swin
as its authors published it, VOLO as its authors published it and as timm keeps it (``volo_*``). The
architecture says which weights to look for; nothing is guessed from sizes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from configs.files import reading
from searchspace.architecture import Architecture
from searchspace.mixers import Elsa, GlobalAttention, Mixer, OutlookAttention, WindowAttention
from supernet.network import build_subnet

State = dict[str, Tensor]
Take = Callable[..., State]  # see `_taker`

_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")


def read_checkpoint(path: Path) -> State:
    """Read the tensors of a ``.safetensors`` file or of a pickled checkpoint of tensors.

    Raises:
        ValueError: If there is no such file or no state dict in it.
    """
    if not path.is_file():
        raise ValueError(f"There is no checkpoint {path}. Check the path.")
    remedy = "Download it again, or name the file of a published checkpoint."
    # Whatever an unpickler raises, it raises about the file.
    with reading(path, "a checkpoint", remedy=remedy, errors=(Exception,)):
        if path.suffix == ".safetensors":
            return load_file(path)
        # Checkpoints of timm's train.py have its arguments beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            found: Any = torch.load(path, map_location="cpu", weights_only=True)
    for name in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
            break
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise ValueError(
            f"{path} holds no state dict: a mapping of names to tensors, alone or under one of "
            f"{', '.join(_WRAPPERS)}. Save one with torch.save(model.state_dict(), path)."
        )
    return {name.removeprefix("module."): value for name, value in found.items()}


def convert(state: Mapping[str, Tensor], architecture: Architecture) -> State:
    """Write a published checkpoint's tensors under the names of the architecture's own network.

    Raises:
        ValueError: If the checkpoint is not that of the architecture.
    """
    with torch.device("meta"):
        wanted = build_subnet(architecture).state_dict()
    try:
        found = _convert(state, architecture)
    except KeyError as error:
        raise ValueError(
            f"The checkpoint has no {error}, which the architecture needs. "
            "Name the preset that the checkpoint was trained as."
        ) from error
    for name, value in wanted.items():
        if name.endswith("num_batches_tracked"):
            found.setdefault(name, torch.zeros((), dtype=torch.long))
        elif name not in found or found[name].shape != value.shape:
            shape = tuple(found[name].shape) if name in found else "nothing"
            raise ValueError(
                f"The architecture's {name} has shape {tuple(value.shape)}, the checkpoint has "
                f"{shape}. Name the preset and size that the checkpoint was trained as."
            )
    return {name: found[name].contiguous() for name in wanted}


def _convert(state: Mapping[str, Tensor], architecture: Architecture) -> State:
    take = _taker(state)
    if architecture.family == "volo":
        return _convert_volo(state, architecture, take)
    if architecture.family != "swin":
        raise ValueError(
            "Published checkpoints are read for Swin, ELSA and VOLO, got an architecture of the "
            f"family {architecture.family!r}."
        )
    found = take("patch_embed.proj", "patch_embed.proj") | take("norm", "norm")
    found |= take("patch_embed.norm", "patch_embed.norm")
    found |= take("head.fc" if "head.fc.weight" in state else "head", "head")
    # Microsoft's stages end with the merging, timm's begin with it.
    first = 0 if "layers.0.downsample.norm.weight" in state else 1
    for index in range(len(architecture.stages) - 1):
        for part in ("norm", "reduction"):
            found |= take(f"layers.{index + first}.downsample.{part}", f"merges.{index}.{part}")
    for index, stage in enumerate(architecture.stages):
        for number, mixer in enumerate(stage.mixers):
            source, ours = f"layers.{index}.blocks.{number}", f"stages.{index}.{number}"
            found |= _convert_block(state, mixer, source, ours, take)
    return found


def _convert_volo(state: Mapping[str, Tensor], architecture: Architecture, take: Take) -> State:
    found = take("patch_embed.proj", "patch_embed.proj")
    for name in state:
        if name.startswith("patch_embed.conv."):
            found[name] = state[name]
    found |= take("network.1.proj", "merges.0.proj")
    found["merges.0.pos_embed"] = state["pos_embed"][0]
    found["cls_token"] = state["cls_token"].flatten()
    for name in ("norm", "head", "aux_head"):
        found |= take(name, name)
    for index, stage in enumerate(architecture.stages):
        for number, mixer in enumerate(stage.mixers):
            source = f"network.{index + (index > 0)}.{number}"
            found |= _convert_block(state, mixer, source, f"stages.{index}.{number}", take)
    for number in range(2):
        source, ours = f"post_network.{number}", f"class_blocks.{number}"
        for theirs, name in (
            ("norm1", "norm1"),
            ("attn.kv", "kv"),
            ("attn.q", "q"),
            ("attn.proj", "proj"),
            ("norm2", "norm2"),
            ("mlp.fc1", "mlp.fc1"),
            ("mlp.fc2", "mlp.fc2"),
        ):
            found |= take(f"{source}.{theirs}", f"{ours}.{name}")
    return found


def _convert_block(
    state: Mapping[str, Tensor], mixer: Mixer, source: str, ours: str, take: Take
) -> State:
    """Convert one pre-norm block and its mixer."""
    found: State = {}
    for theirs, name in (
        ("norm1", "norms.attention"),
        ("norm2", "norms.attention_mlp"),
        ("mlp.fc1", "mlp.fc1"),
        ("mlp.fc2", "mlp.fc2"),
    ):
        found |= take(f"{source}.{theirs}", f"{ours}.{name}")
    attention, target = f"{source}.attn", f"{ours}.mixers.{mixer.kind}"
    match mixer:
        case WindowAttention() if f"{attention}.rb" in state:
            return found | _elsas_window_attention(state, attention, target, take)
        case WindowAttention():
            found |= take(f"{attention}.qkv", f"{target}.attention.in_proj")
            found |= take(f"{attention}.proj", f"{target}.attention.proj")
            table = state[f"{attention}.relative_position_bias_table"]
            # Their offsets are query minus key, ours key minus query.
            return found | {f"{target}.attention.table_bias": table.flip(0)}
        case Elsa():
            return found | _elsa(state, mixer, attention, target, take)
        case GlobalAttention(sr_ratio=1):
            found |= take(f"{attention}.qkv", f"{target}.in_proj")
            return found | take(f"{attention}.proj", f"{target}.proj")
        case OutlookAttention():
            found |= take(f"{attention}.v", f"{target}.value")
            found |= take(f"{attention}.proj", f"{target}.proj")
            area = mixer.kernel_size**2
            for name in ("weight", "bias"):  # (heads * outputs * values, ...)
                value = state[f"{attention}.attn.{name}"]
                parts = value.unflatten(0, (mixer.num_heads, area, area))
                found[f"{target}.{name}"] = parts.permute(1, 2, 0, *range(3, parts.dim()))
            return found
        case _:
            raise ValueError(f"No published checkpoint has the mixer {mixer.kind}.")


def _elsas_window_attention(
    state: Mapping[str, Tensor], attention: str, target: str, take: Take
) -> State:
    """ELSA's own window attention: values, queries, keys in this order; a transposed table."""
    found = {}
    for name, value in take(f"{attention}.pre_proj", f"{target}.attention.in_proj").items():
        values, queries, keys = value.chunk(3)
        found[name] = torch.cat([queries, keys, values])
    found |= take(f"{attention}.post_proj", f"{target}.attention.proj")
    return found | {f"{target}.attention.table_bias": state[f"{attention}.rb"].t()}


def _elsa(
    state: Mapping[str, Tensor], mixer: Elsa, attention: str, target: str, take: Take
) -> State:
    taps = mixer.kernel_size**2
    found = take(f"{attention}.pre_proj", f"{target}.in_proj", flatten=True)
    found |= take(f"{attention}.post_proj", f"{target}.proj")
    found[f"{target}.conv_weight"] = state[f"{attention}.attn.0.weight"].flatten(2).permute(2, 0, 1)
    found[f"{target}.conv_bias"] = state[f"{attention}.attn.0.bias"]
    weight = state[f"{attention}.attn.2.weight"].flatten(1).unflatten(0, (-1, taps))
    found[f"{target}.logit_weight"] = weight.transpose(0, 1)
    found[f"{target}.logit_bias"] = state[f"{attention}.attn.2.bias"].view(-1, taps).t()
    names = ["mul"] * (mixer.lam != 0) + ["add"] * (mixer.gamma != 0)
    if names:
        matrices = state[f"{attention}.ghost_head"].flatten(-2)
        matrices = matrices.reshape(len(names), -1, taps)
        found |= {f"{target}.{name}": matrices[i].t() for i, name in enumerate(names)}
    return found


def _taker(state: Mapping[str, Tensor]) -> Take:
    """Make the function that renames one layer's weight and, where there is one, its bias."""

    def take(theirs: str, ours: str, *, flatten: bool = False) -> State:
        weight = state[f"{theirs}.weight"]
        found = {f"{ours}.weight": weight.flatten(1) if flatten else weight}
        if f"{theirs}.bias" in state:
            found[f"{ours}.bias"] = state[f"{theirs}.bias"]
        return found

    return take
