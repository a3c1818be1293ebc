"""Architectures as timm models: ``timm.create_model`` builds them after ``import supernet``.

Every preset is registered under its name, and ``mixer_search`` builds any architecture::

    timm.create_model("elsa_swin_t", num_classes=10, drop_path_rate=0.1)
    timm.create_model("mixer_search", architecture="architecture.json", features_only=True)

What ``search export --format safetensors`` writes is loaded with its weights by::

    timm.create_model("local-dir:FOLDER", pretrained=True)

A preset whose name timm has already (``volo_d1_384`` and its like) is timm's own network there;
ours is ``timm.create_model("mixer_search", architecture="volo_d1_384")``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import PretrainedCfg, load_pretrained
from timm.models._features import FeatureGetterNet, FeatureInfo, feature_take_indices
from torch import Tensor, nn

from searchspace.architecture import Architecture
from searchspace.families import FAMILIES
from searchspace.presets import preset
from searchspace.space import SearchSpace
from supernet.mixers.sharing import new_linear
from supernet.network.supernet import Supernet

ArchitectureLike = Architecture | Mapping[str, Any] | str | Path


class TimmNetwork(Supernet):
    """One architecture's own network with the methods that timm's tools expect.

    Its parameters have the names of `Supernet`, so weights go from one to the other.

    Args:
        architecture: The network.
        drop_path_rate: Stochastic depth of the last block; earlier blocks have linearly less.
        drop_rate: Dropout in front of the classifier.
    """

    def __init__(
        self, architecture: Architecture, *, drop_path_rate: float = 0.0, drop_rate: float = 0.0
    ) -> None:
        super().__init__(SearchSpace.of(architecture), drop_path_rate)
        self.architecture = architecture
        self.head_drop = nn.Dropout(drop_rate)
        self.num_classes, self.in_chans = architecture.num_classes, architecture.in_chans
        self.num_features = self.head_hidden_size = architecture.stages[-1].dim
        size = architecture.img_size
        self.default_cfg = self.pretrained_cfg = {
            "input_size": (architecture.in_chans, size, size),
            "num_classes": architecture.num_classes,
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "first_conv": "patch_embed.conv.0" if architecture.stem_dim else "patch_embed.proj",
            "classifier": ("head", "aux_head") if architecture.family == "volo" else "head",
        }
        self.feature_info = FeatureInfo(_feature_info(architecture), tuple(range(len(self.stages))))

    def forward(self, x: Tensor, architecture: Architecture | None = None) -> Tensor:
        """Classify images (B, in_chans, S, S): logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute normed features: (B, H, W, C), or (B, 1 + N, C) where there is a class token."""
        return self.features(x, self.architecture)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Turn features into logits, or into what the classifier sees, (B, C)."""
        if pre_logits or self.num_classes == 0:
            return self.pool(x)
        return self.classify(x, self.architecture)

    def pool(self, features: Tensor) -> Tensor:
        """Turn features into what the classifier sees, (B, C), with dropout in training."""
        return self.head_drop(super().pool(features))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Compute the maps behind chosen stages (arguments as in timm's models)."""
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt must be NCHW or NHWC, got {output_fmt!r}.")
        taken, last = feature_take_indices(len(self.stages), indices)
        found = []
        for index, stage_map in enumerate(self.stage_maps(x, self.architecture)):
            if index in taken:
                is_normed = norm and index == len(self.architecture.stages) - 1
                y = self.norm(stage_map) if is_normed else stage_map
                found.append(y.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else y)
            if index == last and (stop_early or intermediates_only):
                break
        return found if intermediates_only else (self.finish(stage_map, self.architecture), found)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop what the chosen stages do not need."""
        taken, last = feature_take_indices(len(self.stages), indices)
        kept = last + 1
        self.stages, self.merges = self.stages[:kept], self.merges[:last]
        if prune_head:
            self.reset_classifier(0)
        if prune_norm:
            self.norm = nn.Identity()
        return list(taken)

    def get_classifier(self) -> nn.Module:
        """Return the classifier of the whole image."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one; 0 classes leave features (B, C).

        Raises:
            ValueError: If another pooling than the architecture's is asked for.
        """
        if global_pool not in (None, "", "avg"):
            raise ValueError(
                f"global_pool is part of the architecture and stays 'avg', got {global_pool!r}."
            )
        self.num_classes = num_classes
        device = self.norm.weight.device

        def fresh() -> nn.Module:
            if num_classes == 0:
                return nn.Identity()
            return new_linear(self.num_features, num_classes).to(device)

        self.head = fresh()
        if self.architecture.family == "volo":
            self.aux_head = fresh()  # type: ignore[assignment]
        if num_classes:
            self.architecture = self.only = self.architecture.replace(num_classes=num_classes)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their insides."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Name what timm's own networks do not decay, beside what has one dimension.

        Tables of relative positions (Swin), embeddings of positions and the class token (VOLO),
        position encodings (Twins), and biases that are tables here.
        """
        words = ("table", "pos_embed", "cls_token", "encodings.")
        return {
            name
            for name, _ in self.named_parameters()
            if name.endswith("bias") or any(word in name for word in words)
        }

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Group parameters by depth, for layer-wise learning rates, as timm's own networks do.

        What halves a map is of the depth of the block behind it, in VOLO of a depth of its own.
        """
        is_volo = self.architecture.family == "volo"
        merges: list[tuple[str, tuple[int, ...]]] = []
        for index, stage in enumerate(self.architecture.stages[:-1]):
            place = (index, stage.depth) if is_volo else (index + 1, 0)
            pattern = rf"^merges\.{index}\.(?!pos_embed)"
            merges.append((pattern, place[:1] if coarse else place))
        depth = () if coarse else (0,)
        return {
            "stem": r"^patch_embed|^cls_token|^merges\.\d+\.pos_embed",
            "blocks": [
                *merges,
                (r"^encodings\.(\d+)", depth),
                (r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)", None),
                *([] if is_volo else [(r"^norm", (99999,))]),
            ],
            "class_blocks": [(r"^class_blocks\.(\d+)", None), (r"^norm", (99999,))],
        }


def load_architecture(source: ArchitectureLike) -> Architecture:
    """Read an architecture: itself, its description, a preset's name or a JSON file.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(source, Architecture):
        return source
    if isinstance(source, Mapping):
        return Architecture.from_dict(source)
    path = Path(source)
    if path.suffix != ".json":
        return preset(str(source))
    if not path.is_file():
        raise ValueError(f"There is no architecture file {path}. Check the path.")
    found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return Architecture.from_dict(found.get("architecture", found))


def create(
    architecture: ArchitectureLike,
    *,
    pretrained: bool = False,
    pretrained_cfg: PretrainedCfg | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    img_size: int | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    features_only: bool = False,
    out_indices: int | tuple[int, ...] | None = None,
) -> nn.Module:
    """Build a network as ``timm.create_model`` does; what is left out stays the architecture's.

    Args:
        architecture: The network, see `load_architecture`.
        pretrained: Load the weights that ``pretrained_cfg`` names.
        pretrained_cfg: What timm read from a folder or hub: where weights are, and their images.
        num_classes: 0 for pooled features.
        in_chans: Channels of the images.
        img_size: Side of the images in pixels.
        drop_rate: Dropout in front of the classifier.
        drop_path_rate: Stochastic depth of the last block.
        features_only: Return the maps behind the stages instead of logits.
        out_indices: Which stages, with ``features_only``; all by default.

    Raises:
        ValueError: If ``pretrained`` is asked for where there are no weights, or a size does not
            fit the architecture.
    """
    if pretrained and (pretrained_cfg is None or not pretrained_cfg.has_weights):
        raise ValueError(
            "No pretrained weights come with mixer-search. Retrain the network, name an exported "
            "folder as local-dir:FOLDER, or pass checkpoint_path with weights of your own."
        )
    found = load_architecture(architecture)
    changes = {"num_classes": num_classes or None, "in_chans": in_chans, "img_size": img_size}
    found = found.replace(**{name: value for name, value in changes.items() if value is not None})
    network = TimmNetwork(found, drop_path_rate=drop_path_rate, drop_rate=drop_rate)
    if pretrained_cfg is not None:
        given = {name: v for name, v in pretrained_cfg.to_dict().items() if v is not None}
        network.default_cfg = network.pretrained_cfg = network.default_cfg | given
    if pretrained:
        load_pretrained(network, num_classes=found.num_classes, in_chans=found.in_chans)
    if num_classes == 0:
        network.reset_classifier(0)
    if not features_only:
        return network
    return FeatureGetterNet(network, len(found.stages) if out_indices is None else out_indices)


def _feature_info(architecture: Architecture) -> list[dict[str, Any]]:
    halvings = FAMILIES[architecture.family].halvings
    return [
        {
            "num_chs": stage.dim,
            "reduction": architecture.patch_size * 2 ** min(index, halvings),
            "module": f"stages.{index}",
        }
        for index, stage in enumerate(architecture.stages)
    ]


def create_for_timm(
    pretrained: bool,
    pretrained_cfg: PretrainedCfg | Mapping[str, Any] | None,
    settings: Mapping[str, Any],
) -> nn.Module:
    """Call `create` with what ``timm.create_model`` passes on."""
    if isinstance(pretrained_cfg, Mapping):
        pretrained_cfg = PretrainedCfg(**pretrained_cfg)
    return create(pretrained=pretrained, pretrained_cfg=pretrained_cfg, **settings)
