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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from timm.layers import DropPath
from timm.models import (
    PretrainedCfg,
    build_model_with_cfg,
    register_notrace_module,
    resolve_pretrained_cfg,
)
from timm.models._features import FeatureInfo, feature_take_indices
from timm.models._input import update_model_input_size
from torch import Tensor, nn

from searchspace.architecture import Architecture
from searchspace.presets import preset
from searchspace.space import SearchSpace
from supernet.exchange.timm_config import default_config, feature_info
from supernet.mixers import new_linear
from supernet.network import OPAQUE, Supernet, interpolated_start
from supernet.registration import ANY

ArchitectureLike: TypeAlias = Architecture | Mapping[str, Any] | str | Path
for opaque in OPAQUE:
    register_notrace_module(opaque)
POOLS = {"swin": ("avg", "max"), "twins": ("avg", "max"), "volo": ("token", "avg")}


class TimmNetwork(Supernet):
    """One architecture's own network with the methods that timm's tools expect.

    Its parameters have the names of `Supernet`, so weights go from one to the other.

    Args:
        architecture: The network.
        drop_path_rate: Stochastic depth of the last block; earlier blocks have linearly less.
        drop_rate: Dropout in front of the classifier.
        global_pool: One of `POOLS` of the family, the first by default; empty for maps, which no
            classifier reads.
    """

    output_fmt = "NHWC"
    feature_dim = -1

    def __init__(
        self,
        architecture: Architecture,
        *,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        global_pool: str | None = None,
    ) -> None:
        super().__init__(SearchSpace.of(architecture), drop_path_rate)
        self.architecture = architecture
        self.head_drop = nn.Dropout(drop_rate)
        self.num_classes, self.in_chans = architecture.num_classes, architecture.in_chans
        self.num_features = self.head_hidden_size = architecture.stages[-1].dim
        self.default_cfg = self.pretrained_cfg = PretrainedCfg(
            **default_config(architecture)
        ).to_dict()
        self.dynamic_img_size = not self.default_cfg["fixed_input_size"]
        self.feature_info = FeatureInfo(feature_info(architecture), tuple(range(len(self.stages))))
        self.global_pool = self._checked_pool(global_pool)

    @property
    def _model_args(self) -> dict[str, Any]:
        """What timm notes to build the network again; it writes that as JSON."""
        return self.__dict__.get("_noted_args", {})

    @_model_args.setter
    def _model_args(self, noted: Mapping[str, Any]) -> None:
        args = dict(noted)
        if "architecture" in args:
            args["architecture"] = load_architecture(args["architecture"]).to_dict()
        self.__dict__["_noted_args"] = args

    def forward(self, x: Tensor, architecture: Architecture | None = None) -> Tensor:
        """Classify images (B, in_chans, S, S): logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the map behind the last stage, (B, H, W, C).

        It is normed, but in the family ``volo``, where class attention and norm pool it.
        """
        *_, found = self.stage_maps(x, self.architecture)
        return self._features(found)

    def _features(self, stage_map: Tensor) -> Tensor:
        is_volo = self.architecture.family == "volo"
        return stage_map if is_volo else self.finish(stage_map, self.architecture)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Turn the map of `forward_features` into logits, or what the classifier sees, (B, C)."""
        if not self.global_pool:
            return x
        if self.architecture.family == "volo":
            x = self.finish(x, self.architecture)
        if pre_logits or self.num_classes == 0:
            return self.pool(x)
        return self.classify(x, self.architecture)

    def pool(self, features: Tensor) -> Tensor:
        """Turn features into what the classifier sees, (B, C), with dropout in training."""
        if self.global_pool == POOLS[self.architecture.family][0]:
            return self.head_drop(super().pool(features))
        if self.architecture.family == "volo":
            return self.head_drop(features[:, 1:].mean(1))
        return self.head_drop(features.amax((1, 2)))

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
        return found if intermediates_only else (self._features(stage_map), found)

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
        """Replace the classifier by a fresh one.

        Args:
            num_classes: 0 for features (B, C).
            global_pool: See the class; as it is, if left out.

        Raises:
            ValueError: If the family has no such pooling, or a classifier would read maps.
        """
        if global_pool is not None or (num_classes and not self.global_pool):
            pool = self.global_pool if global_pool is None else global_pool
            self.global_pool = self._checked_pool(pool, has_classifier=num_classes > 0)
        self.num_classes = num_classes
        weight = next(self.parameters())

        def fresh() -> nn.Module:
            if num_classes == 0:
                return nn.Identity()
            return new_linear(self.num_features, num_classes).to(weight)

        self.head = fresh()
        if self.architecture.family == "volo":
            self.aux_head = fresh()  # type: ignore[assignment]
        if num_classes:
            self.architecture = self.only = self.architecture.replace(num_classes=num_classes)

    def _checked_pool(self, pool: str | None, *, has_classifier: bool = False) -> str:
        offered = POOLS[self.architecture.family]
        if pool is None:
            return offered[0]
        if pool not in (*offered, ""):
            raise ValueError(
                f"global_pool of the family {self.architecture.family!r} is one of "
                f"{', '.join(offered)} or empty, got {pool!r}."
            )
        if not pool and has_classifier:
            raise ValueError(
                "A classifier reads pooled features, got global_pool='' and classes. "
                "Write num_classes=0 for maps, or choose a pooling."
            )
        return pool

    def set_input_size(self, img_size: int | Sequence[int]) -> None:
        """Make the network one for images of another size, as if it had been built so.

        Weights of positions are interpolated; networks without such weights run on any size anyway.
        Layers whose weights change are new ones: hooks on them are gone.

        Args:
            img_size: The side in pixels, or (height, width), both the same.

        Raises:
            ValueError: If the architecture does not fit the size, or has weights that cannot be
                interpolated.
        """
        architecture = self.architecture.replace(img_size=_side(img_size))
        other = TimmNetwork(architecture)
        if self.num_classes == 0:
            other.reset_classifier(0)
        start = interpolated_start(self.state_dict(), other)
        if start.interpolated:
            rates = [module.drop_prob for module in self.modules() if isinstance(module, DropPath)]
            other.load_state_dict(start.state)
            for module in other.modules():
                if isinstance(module, DropPath):
                    module.drop_prob = rates.pop(0)
            other.head_drop = self.head_drop
            self._modules.update(other.to(next(self.parameters())).train(self.training)._modules)
        self.architecture, self.space, self.only = architecture, other.space, architecture
        update_model_input_size(self, architecture.img_size)

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
    num_classes: int | None = None,
    in_chans: int | None = None,
    img_size: int | Sequence[int] | None = None,
    global_pool: str | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    dynamic_img_size: bool = False,
) -> TimmNetwork:
    """Build a network as ``timm.create_model`` does; what is left out stays the architecture's.

    Args:
        architecture: The network, see `load_architecture`.
        num_classes: 0 for pooled features.
        in_chans: Channels of the images.
        img_size: Side of the images in pixels, or (height, width), both the same.
        global_pool: See `TimmNetwork`.
        drop_rate: Dropout in front of the classifier.
        drop_path_rate: Stochastic depth of the last block.
        dynamic_img_size: Ask for a network that takes images of any size.

    Raises:
        ValueError: If a setting does not fit the architecture.
    """
    found = load_architecture(architecture)
    changes = {
        "num_classes": num_classes or None,
        "in_chans": in_chans,
        "img_size": None if img_size is None else _side(img_size),
    }
    found = found.replace(**{name: value for name, value in changes.items() if value is not None})
    network = TimmNetwork(
        found, drop_path_rate=drop_path_rate, drop_rate=drop_rate, global_pool=global_pool
    )
    if num_classes == 0 or not network.global_pool:
        # As a fresh classifier does, this refuses one that would read maps.
        network.reset_classifier(0 if num_classes == 0 else found.num_classes)
    if dynamic_img_size and not network.dynamic_img_size:
        raise ValueError(
            "dynamic_img_size=True needs a network without weights of positions; this one has "
            f"some, for images of {found.img_size} pixels. Give img_size, or share the positions."
        )
    return network


def _side(img_size: int | Sequence[int]) -> int:
    sides = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    if len(sides) != 2 or sides[0] != sides[1]:
        raise ValueError(f"img_size is the side of a square, got {img_size}. Write one number.")
    return sides[0]


def create_for_timm(
    name: str,
    pretrained: bool = False,
    pretrained_cfg: str | PretrainedCfg | Mapping[str, Any] | None = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    architecture: ArchitectureLike | None = None,
    **settings: Any,
) -> nn.Module:
    """Build what ``timm.create_model`` asks for under a registered name.

    Args:
        name: `ANY` or a preset.
        pretrained: Load the weights that the configuration names.
        pretrained_cfg: Where weights are, and their images; what it leaves out is the network's.
        pretrained_cfg_overlay: Replaces parts of it.
        architecture: See `load_architecture`; the preset by default.
        settings: Those of `create`, and timm's own (features, caches).

    Raises:
        ValueError: If there is no architecture, or there are no weights.
    """
    if architecture is None and name == ANY:
        raise ValueError(
            f"{ANY} needs an architecture: an architecture.json, a description or the name of "
            f"a preset, e.g. create_model({ANY!r}, architecture='architecture.json')."
        )
    found = load_architecture(name if architecture is None else architecture)
    if isinstance(pretrained_cfg, str):  # a tag behind the name: timm says that there is none
        pretrained_cfg = resolve_pretrained_cfg(name, pretrained_cfg)
    if isinstance(pretrained_cfg, PretrainedCfg):
        pretrained_cfg = vars(pretrained_cfg)
    # What a description leaves out, or has as timm's default, is the network's own.
    unset = vars(PretrainedCfg())
    given = {k: v for k, v in (pretrained_cfg or {}).items() if k not in unset or v != unset[k]}
    config = PretrainedCfg(**(default_config(found) | {"architecture": name} | given))
    overlay = dict(pretrained_cfg_overlay or {})
    _check_weights(pretrained, replace(config, **overlay))
    return build_model_with_cfg(
        partial(create, found),
        name,
        pretrained,
        pretrained_cfg=config,  # type: ignore[arg-type]  # timm takes both
        pretrained_cfg_overlay=overlay,
        feature_cfg={"out_indices": tuple(range(len(found.stages))), "feature_cls": "getter"},
        **settings,
    )


def _check_weights(pretrained: bool, config: PretrainedCfg) -> None:
    if pretrained and not (config.has_weights or config.state_dict):
        raise ValueError(
            "No pretrained weights come with mixer-search. Retrain the network, name an exported "
            "folder as local-dir:FOLDER, or pass checkpoint_path with weights of your own."
        )
