"""The supernet: one network that holds every architecture of a space, weights shared.

The architecture is an argument of the call and never hidden state. A subnet is the supernet of a
space with one point, so there is one implementation of everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from searchspace.architecture import Architecture
from searchspace.families import CLASS_BLOCKS, FAMILIES
from searchspace.map_rules import CLASSIFIER, MapRules
from searchspace.mixers import Mixer
from searchspace.space import SearchSpace
from supernet.mixers import NarrowPart, Place, WeightSharing, new_linear, new_table
from supernet.network.blocks import Block, BlockOptions
from supernet.network.gradient_checkpointing import recompute
from supernet.network.macro import (
    ClassBlock,
    ConvStem,
    PatchConv,
    PatchEmbed,
    PatchMerging,
    PositionEncoding,
)


class StageBlocks(nn.ModuleList):
    """The blocks of a stage; who calls it says how they run. A hook on it sees the stage's map."""

    def forward(self, x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        """Compute the map behind the stage, (B, H, W, C)."""
        return run(x)


class Supernet(nn.Module):
    """All networks of a space.

    Args:
        space: The space; its mixers decide which weights exist.
        drop_path_rate: Stochastic depth of the last block; earlier blocks have linearly less. A
            block has the rate of its place in the deepest network, also in shallower ones.
        sharing: What the choices of a block share; by default little.
        backbone: Build no final norm and no classifier, only what `stage_maps` needs, and treat
            maps like this; None builds a classifier.
    """

    def __init__(
        self,
        space: SearchSpace,
        drop_path_rate: float = 0.0,
        *,
        sharing: WeightSharing | None = None,
        backbone: MapRules | None = None,
    ) -> None:
        super().__init__()
        self.space, self.sharing = space, sharing or WeightSharing()
        self.backbone = backbone
        depth = sum(stage.max_depth for stage in space.stages)
        rates = [drop_path_rate * index / max(depth - 1, 1) for index in range(depth)]
        self._builders: dict[str, Callable[[SearchSpace], nn.Module]] = {}
        self._narrow_parts: dict[tuple[str, tuple[int, ...]], NarrowPart] = {}
        numbers = range(len(space.stages))
        self.patch_embed = self._build("patch_embed", _build_stem)
        self.merges = nn.ModuleList(
            self._build(f"merges.{index - 1}", partial(_build_transition, index=index))
            for index in numbers[1:]
        )
        self.stages = nn.ModuleList(
            StageBlocks(
                self._build(
                    f"stages.{index}.{block}",
                    partial(
                        _build_block,
                        index=index,
                        block=block,
                        drop_path=rates.pop(0),
                        sharing=self.sharing,
                        rules=backbone or CLASSIFIER,
                    ),
                )
                for block in range(stage.max_depth)
            )
            for index, stage in enumerate(space.stages)
        )
        dim = space.stages[-1].max_dim
        if space.family == "twins":
            self.encodings = nn.ModuleList(
                self._build(f"encodings.{index}", partial(_build_encoding, index=index))
                for index in numbers
            )
        if space.family == "volo" and backbone is None:
            self.cls_token = new_table(dim)
            ratio = max(space.stages[-1].mlp_ratios)
            self.class_blocks = nn.ModuleList(
                ClassBlock(dim, mlp_ratio=ratio, norm_eps=FAMILIES[space.family].norm_eps)
                for _ in range(CLASS_BLOCKS)
            )
            self.aux_head = new_linear(dim, space.num_classes)
        if backbone is None:
            self.norm = self._build("norm", _build_norm)
            self.head = self._build("head", _build_head)
        self.only = space.first() if space.size() == 1 else None
        self.grad_checkpointing = False

    def forward(self, images: Tensor, architecture: Architecture | None = None) -> Tensor:
        """Classify images with one architecture of the space.

        Args:
            images: Shape (B, in_chans, S, S), normalised.
            architecture: May be left out where the space has only one.

        Returns:
            Logits of shape (B, num_classes).

        Raises:
            ValueError: If the architecture does not fit the space or is missing.
        """
        architecture = self._checked(architecture)
        return self.classify(self.features(images, architecture), architecture)

    def features(self, images: Tensor, architecture: Architecture) -> Tensor:
        """Compute normed features: (B, H, W, C), or (B, 1 + N, C) in the family ``volo``."""
        *_, x = self.stage_maps(images, architecture)
        return self.finish(x, architecture)

    def stage_maps(self, images: Tensor, architecture: Architecture) -> Iterator[Tensor]:
        """Yield the map behind each stage, (B, H, W, C), in turn."""
        return self.maps_behind_stages(self.stem(images, architecture), architecture)

    def stem(self, images: Tensor, architecture: Architecture) -> Tensor:
        """Turn images into the map in front of the first stage, (B, H, W, C)."""
        return self._part("patch_embed", architecture, 0)(images)

    def maps_behind_stages(self, x: Tensor, architecture: Architecture) -> Iterator[Tensor]:
        """Yield the map behind each stage, given the stem's."""
        for index in range(len(architecture.stages)):
            if index:
                x = self._part(f"merges.{index - 1}", architecture, index - 1, index)(x)
            run = partial(self._run_stage, architecture=architecture, index=index)
            x = self.stages[index](x, run)
            yield x

    def _run_stage(self, x: Tensor, architecture: Architecture, index: int) -> Tensor:
        stage = architecture.stages[index]
        for number, mixer in enumerate(stage.mixers):
            block = self._part(f"stages.{index}.{number}", architecture, index)
            x = self._run(block, x, mixer, stage.ratios[number])
            if self.space.family == "twins" and number == 0:
                x = self._part(f"encodings.{index}", architecture, index)(x)
        return x

    def finish(self, x: Tensor, architecture: Architecture) -> Tensor:
        """Turn the last map into features: normed, in the family ``volo`` behind a class token."""
        if self.space.family == "volo":
            x = torch.cat([self.cls_token.expand(x.shape[0], 1, -1), x.flatten(1, 2)], 1)
            # The class blocks have as many heads as the last mixer; heads change no weight.
            num_heads = getattr(architecture.stages[-1].mixers[-1], "num_heads", 1)
            for block in self._class_blocks():
                x = block(x, num_heads, architecture.stages[-1].mlp_ratio)
        return self._part("norm", architecture, len(architecture.stages) - 1)(x)

    def pool(self, features: Tensor) -> Tensor:
        """Turn features into what the classifier sees, (B, C)."""
        return features[:, 0] if self.space.family == "volo" else features.mean((1, 2))

    def classify(self, features: Tensor, architecture: Architecture) -> Tensor:
        """Turn features into logits (B, num_classes)."""
        head = self._part("head", architecture, len(architecture.stages) - 1)
        logits = head(self.pool(features))
        if self.space.family != "volo":
            return logits
        return logits + 0.5 * self.aux_head(features[:, 1:]).amax(1)

    def forward_tokens(
        self, images: Tensor, architecture: Architecture | None = None
    ) -> tuple[Tensor, Tensor]:
        """Classify images and their tokens: what token labelling trains (family ``volo`` only).

        Returns:
            Logits of the class token (B, num_classes) and of each token of the last map
            (B, N, num_classes), row by row.

        Raises:
            ValueError: If the family has no auxiliary head.
        """
        architecture = self._checked(architecture)
        if self.space.family != "volo":
            raise ValueError(
                f"Token labels need the family 'volo', got {self.space.family!r}. "
                "Choose a recipe without token labels."
            )
        features = self.features(images, architecture)
        return self.head(self.pool(features)), self.aux_head(features[:, 1:])

    def _build(self, name: str, build: Callable[[SearchSpace], nn.Module]) -> Any:
        """Build a part at the widest; remember how, for narrower ones."""
        self._builders[name] = build
        return build(self.space)

    def _part(self, name: str, architecture: Architecture, *stages: int) -> Any:
        """Return the module of a part, or the `NarrowPart` where the architecture is narrower.

        Args:
            name: Of the part's module.
            architecture: Of the space.
            stages: Numbers of the stages whose widths are the part's.
        """
        wide = self.get_submodule(name)
        dims = {index: architecture.stages[index].dim for index in stages}
        if all(dim == self.space.stages[index].max_dim for index, dim in dims.items()):
            return wide
        key = (name, tuple(dims.values()))
        if key not in self._narrow_parts:
            with torch.device("meta"):
                narrow = self._builders[name](_narrowed(self.space, dims))
            self._narrow_parts[key] = NarrowPart(wide, narrow)
        return self._narrow_parts[key]

    def _run(self, block: Block | NarrowPart, x: Tensor, mixer: Mixer, mlp_ratio: float) -> Tensor:
        if self.grad_checkpointing and self.training:
            return cast(Tensor, recompute(block, x, mixer, mlp_ratio))
        return cast(Tensor, block(x, mixer, mlp_ratio))

    def select(self, architecture: Architecture) -> dict[str, Tensor]:
        """Return the state dict of the architecture's own network: slices of the shared weights."""
        architecture = self._checked(architecture)
        state = {}
        for name, part, arguments in self._used_parts(architecture):
            has_choices = isinstance(part, NarrowPart) or arguments
            selected = part.select(*arguments) if has_choices else part.state_dict(keep_vars=True)
            state.update({f"{name}.{key}": value for key, value in selected.items()})
        if self.space.family == "volo" and self.backbone is None:
            state["cls_token"] = self.cls_token
        return state

    def _used_parts(self, architecture: Architecture) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
        """Yield the name of each part, the part, and the arguments of its ``select``."""
        last = len(architecture.stages) - 1
        yield "patch_embed", self._part("patch_embed", architecture, 0), ()
        for index, stage in enumerate(architecture.stages):
            if index:
                name = f"merges.{index - 1}"
                yield name, self._part(name, architecture, index - 1, index), ()
            if self.space.family == "twins":
                name = f"encodings.{index}"
                yield name, self._part(name, architecture, index), ()
            for number, mixer in enumerate(stage.mixers):
                name = f"stages.{index}.{number}"
                yield name, self._part(name, architecture, index), (mixer, stage.ratios[number])
        if self.backbone is not None:
            return
        for name in ("norm", "head"):
            yield name, self._part(name, architecture, last), ()
        if self.space.family == "volo":
            yield "aux_head", self.aux_head, ()
            for number, class_block in enumerate(self._class_blocks()):
                yield f"class_blocks.{number}", class_block, (architecture.stages[-1].mlp_ratio,)

    def _class_blocks(self) -> list[ClassBlock]:
        return list(cast(Iterable[ClassBlock], self.class_blocks))

    def _checked(self, architecture: Architecture | None) -> Architecture:
        architecture = architecture or self.only
        if architecture is None:
            raise ValueError("This supernet holds many networks: pass the architecture to run.")
        depths = [stage.depth for stage in architecture.stages]
        offered = [stage.depths for stage in self.space.stages]
        fits = [depth in options for depth, options in zip(depths, offered, strict=False)]
        if len(depths) != len(offered) or not all(fits):
            raise ValueError(
                f"The supernet has stages of depths {list(map(list, offered))}, got {depths}. "
                "Build it from a space that contains the architecture."
            )
        dims, widths = [stage.dim for stage in architecture.stages], self.space.stages
        if not all(dim in stage.dims for dim, stage in zip(dims, widths, strict=True)):
            raise ValueError(
                f"The supernet has stages of widths {[list(stage.dims) for stage in widths]}, got "
                f"{dims}. Build it from a space that contains the architecture."
            )
        return architecture


def _build_stem(space: SearchSpace) -> nn.Module:
    dim = space.stages[0].max_dim
    if FAMILIES[space.family].has_conv_stem:
        return ConvStem(space.in_chans, space.stem_dim, dim, space.patch_size)
    return PatchEmbed(space.in_chans, dim, space.patch_size)


def _build_transition(space: SearchSpace, index: int) -> nn.Module:
    """Build what joins a stage to the one before it."""
    dim, out_dim = space.stages[index - 1].max_dim, space.stages[index].max_dim
    match space.family:
        case "swin":
            return PatchMerging(dim, out_dim)
        case "twins":
            return PatchConv(dim, out_dim, norm=True)
        case _ if index == 1:
            return PatchConv(dim, out_dim, norm=False, embedded_size=space.resolutions[index])
        case _:
            return nn.Identity()


def _build_block(
    space: SearchSpace,
    index: int,
    block: int,
    drop_path: float,
    sharing: WeightSharing,
    rules: MapRules,
) -> Block:
    """Build a block with every mixer that the space offers it."""
    stage, family = space.stages[index], FAMILIES[space.family]
    return Block(
        space.mixers_of(index, block),
        place=Place(
            dim=stage.max_dim,
            size=space.resolutions[index],
            block=block,
            qkv_bias=family.qkv_bias,
            norm=stage.norm,
            sharing=sharing,
            rules=rules,
        ),
        options=BlockOptions(
            mlp_ratio=max(stage.ratios_of(block)),
            drop_path=drop_path,
            norm_eps=family.norm_eps,
            se_reduction=stage.se_reduction,
            local_conv=stage.local_conv,
        ),
    )


def _build_encoding(space: SearchSpace, index: int) -> nn.Module:
    return PositionEncoding(space.stages[index].max_dim)


def _build_norm(space: SearchSpace) -> nn.Module:
    return nn.LayerNorm(space.stages[-1].max_dim, eps=FAMILIES[space.family].norm_eps)


def _build_head(space: SearchSpace) -> nn.Module:
    return new_linear(space.stages[-1].max_dim, space.num_classes)


def _narrowed(space: SearchSpace, dims: Mapping[int, int]) -> SearchSpace:
    """Return the space whose stages of these numbers have these widths alone."""
    stages = (
        replace(stage, dims=(dims[index],)) if index in dims else stage
        for index, stage in enumerate(space.stages)
    )
    return space.replace(stages=tuple(stages))


def build_subnet(
    architecture: Architecture, drop_path_rate: float = 0.0, *, backbone: MapRules | None = None
) -> Supernet:
    """Build an architecture's own network with fresh weights."""
    return Supernet(SearchSpace.of(architecture), drop_path_rate, backbone=backbone)


def build_block(architecture: Architecture, stage: int, block: int) -> Block:
    """Build one block of an architecture's own network, with fresh weights."""
    return _build_block(
        SearchSpace.of(architecture),
        index=stage,
        block=block,
        drop_path=0.0,
        sharing=WeightSharing(),
        rules=CLASSIFIER,
    )


def check_shareable(space: SearchSpace) -> None:
    """Refuse a space whose networks cannot share weights.

    Raises:
        ValueError: If options of a mixer have no weights in common.
    """
    with torch.device("meta"):
        Supernet(space)


def extract(supernet: Supernet, architecture: Architecture) -> Supernet:
    """Copy an architecture's own network out of the supernet.

    Returns:
        A network in the supernet's mode (train or eval) that shares no memory with it and computes
        exactly what the supernet computes for the architecture.
    """
    with torch.device("meta"):
        subnet = build_subnet(architecture, backbone=supernet.backbone)
    state = {name: value.detach().clone() for name, value in supernet.select(architecture).items()}
    subnet.load_state_dict(state, assign=True)
    for parameter in subnet.parameters():
        parameter.requires_grad_(True)
    return subnet.train(supernet.training)


def extraction_error(supernet: Supernet, architecture: Architecture, images: Tensor) -> float:
    """Measure the largest difference of logits between the supernet and the extracted network.

    Both run in eval mode on the same images.
    """
    was_training = supernet.training
    supernet.eval()
    with torch.inference_mode():
        inside = supernet(images, architecture)
        outside = extract(supernet, architecture)(images)
    supernet.train(was_training)
    return float((inside - outside).abs().max())
