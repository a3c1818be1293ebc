"""The space around a trained network: what each of its blocks may be replaced by.

The macro-architecture is the teacher's: stages, widths, depths, image size. Each block offers its
own mixer, others, and no mixer; and its own MLP, a narrower one, or none. A block with neither does
nothing. The norms of a stage are those that the teacher has, also around mixers that would have
others by default, so that its MLPs find what they were trained behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from searchspace.architecture import Architecture, BlockNorm, Stage, describe, on_map
from searchspace.mixer_text import describe_mixer
from searchspace.mixers import (
    CONV_KINDS,
    DepthwiseConv,
    Elsa,
    InhomogeneousDepthwiseConv,
    Mixer,
    NeighborhoodAttention,
    NoMixer,
    WindowAttention,
)
from searchspace.space import MixerChoices, SearchSpace, StageChoices

# What is left of an MLP's hidden channels; of none, there is no MLP.
MLP_SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
HEAD_DIM = 32
KERNEL_SIZES = (3, 7)
IDDW_GROUPS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Replacement:
    """One thing that a block has in place of the teacher's.

    Attributes:
        stage: Number of its stage.
        block: Its number in the stage.
        mixer: Its mixer, or None where the MLP is meant.
        mlp_ratio: Its MLP ratio, 0 for no MLP; without a meaning where the mixer is meant.
    """

    stage: int
    block: int
    mixer: Mixer | None = None
    mlp_ratio: float = 0.0

    def __str__(self) -> str:
        return f"stage {self.stage}, block {self.block}: {self.what}"

    @property
    def what(self) -> str:
        """Name what there is instead."""
        if self.mixer is not None:
            return describe_mixer(self.mixer)
        return f"MLP {self.mlp_ratio:g}" if self.mlp_ratio else "no MLP"


def graft_space(teacher: Architecture, offered: SearchSpace | None = None) -> SearchSpace:
    """Return the space of networks that the teacher's blocks can be turned into.

    Args:
        teacher: The trained network's architecture.
        offered: A space whose mixers are offered, all of them; None offers `usual_mixers`.

    Raises:
        ValueError: If the space has another number of stages than the teacher, or nothing fits.
    """
    if offered is not None and len(offered.stages) != len(teacher.stages):
        raise ValueError(
            "A space offers mixers to the stages of the network that is grafted, so both have as "
            f"many: the space {offered.name!r} has {len(offered.stages)}, the network "
            f"{len(teacher.stages)}. Choose another --space, or leave it out."
        )
    plain = SearchSpace.of(teacher)
    stages = tuple(_stage_choices(teacher, index, offered) for index in range(len(teacher.stages)))
    return plain.replace(
        name=f"graft of {describe(teacher)}",
        about="What the blocks of a trained network may be replaced by",
        stages=stages,
        limits={} if offered is None else offered.limits,
        source="" if offered is None else offered.source,
    )


def usual_mixers(stage: Stage, own: Mixer) -> tuple[Mixer, ...]:
    """List what is offered to a block where no space says it: five kinds, each small and large.

    Heads are the block's own, or one for each 32 channels.
    """
    heads = getattr(own, "num_heads", 0) or max(stage.dim // HEAD_DIM, 1)
    if stage.dim % heads:
        heads = 1
    window = getattr(own, "window_size", 7)
    found: list[Mixer] = [WindowAttention(window_size=window, num_heads=heads)]
    for size in KERNEL_SIZES:
        found += [
            NeighborhoodAttention(kernel_size=size, num_heads=heads),
            Elsa(kernel_size=size, num_heads=heads),
            DepthwiseConv(kernel_size=size),
        ]
        if stage.dim % IDDW_GROUPS == 0:
            found.append(InhomogeneousDepthwiseConv(kernel_size=size, num_groups=IDDW_GROUPS))
    return tuple(found)


def graft_norm(stage: Stage) -> BlockNorm:
    """Name the norm of all blocks of a stage, whichever mixers they get.

    A stage with the default norms of attention alone has layer norms, one with those of
    convolutions alone batch norms. One with both keeps its default, and its blocks their own sort.
    """
    sorts = {mixer.kind in CONV_KINDS for mixer in stage.mixers}
    if stage.norm != "default" or len(sorts) > 1:
        return stage.norm
    return "batch" if sorts == {True} else "layer"


def replacements(teacher: Architecture, architecture: Architecture) -> tuple[Replacement, ...]:
    """List what a network of the teacher's space has in place of the teacher's."""
    return tuple(_replacements(teacher, architecture))


def with_replacements(teacher: Architecture, found: Iterable[Replacement]) -> Architecture:
    """Return the teacher with some things replaced; the inverse of `replacements`."""
    mixers = [list(stage.mixers) for stage in teacher.stages]
    ratios = [list(stage.ratios) for stage in teacher.stages]
    for one in found:
        if one.mixer is None:
            ratios[one.stage][one.block] = one.mlp_ratio
        else:
            mixers[one.stage][one.block] = one.mixer
    stages = [
        replace(stage, mixers=tuple(own), block_mlp_ratios=tuple(widths), norm=graft_norm(stage))
        for stage, own, widths in zip(teacher.stages, mixers, ratios, strict=True)
    ]
    return teacher.replace(stages=tuple(stages))


def offered_replacements(space: SearchSpace, teacher: Architecture) -> tuple[Replacement, ...]:
    """List everything that the space offers beside what the teacher has, block by block."""
    found = []
    for index, stage in enumerate(teacher.stages):
        for block, own in enumerate(stage.mixers):
            found += [
                Replacement(stage=index, block=block, mixer=mixer)
                for mixer in space.mixers_of(index, block)
                if mixer != own
            ]
            found += [
                Replacement(stage=index, block=block, mlp_ratio=ratio)
                for ratio in space.stages[index].ratios_of(block)
                if ratio != stage.ratios[block]
            ]
    return tuple(found)


def _replacements(teacher: Architecture, architecture: Architecture) -> Iterator[Replacement]:
    pairs = zip(teacher.stages, architecture.stages, strict=True)
    for index, (old, new) in enumerate(pairs):
        blocks = zip(old.mixers, new.mixers, old.ratios, new.ratios, strict=True)
        for block, (own, mixer, width, ratio) in enumerate(blocks):
            if mixer != own:
                yield Replacement(stage=index, block=block, mixer=mixer)
            if ratio != width:
                yield Replacement(stage=index, block=block, mlp_ratio=ratio)


def _stage_choices(teacher: Architecture, index: int, offered: SearchSpace | None) -> StageChoices:
    stage, size = teacher.stages[index], teacher.resolutions[index]
    choices = []
    for block, own in enumerate(stage.mixers):
        if isinstance(own, NoMixer):
            others: Sequence[Mixer] = ()  # there is nothing that another one could learn from
        elif offered is None:
            others = usual_mixers(stage, own)
        else:
            given = offered.stages[index]
            # On this network's maps: its images may be of another size than the space's.
            others = given.choices_of(min(block, given.max_depth - 1)).mixers(size)
        listed = _listed(teacher, index, block, others, size)
        choices.append(MixerChoices(kinds={}, listed=listed))
    return StageChoices(
        dims=(stage.dim,),
        depths=(stage.depth,),
        mlp_ratios=(stage.mlp_ratio,),
        norm=graft_norm(stage),
        se_reduction=stage.se_reduction,
        local_conv=stage.local_conv,
        choices=tuple(choices),
        block_mlp_ratios=tuple(_narrower(stage.dim, ratio) for ratio in stage.ratios),
    )


def _listed(
    teacher: Architecture, index: int, block: int, others: Sequence[Mixer], size: int
) -> tuple[Mixer, ...]:
    """List a block's own mixer, the others that fit it, and none."""
    stage = teacher.stages[index]
    own = stage.mixers[block]
    found = {own: None}
    for mixer in (*others, NoMixer()):
        fitted = on_map(mixer, size)
        if _fits(teacher, index, block, fitted):
            found[_as_stored(stage, fitted)] = None
    return tuple(found)


def _fits(teacher: Architecture, index: int, block: int, mixer: Mixer) -> bool:
    stage = teacher.stages[index]
    own = stage.mixers[block]
    keeps_norms = graft_norm(stage) != "default" or (
        (own.kind in CONV_KINDS) == (mixer.kind in CONV_KINDS)
    )
    is_last = index == len(teacher.stages) - 1 and block == stage.depth - 1
    if teacher.family == "volo" and is_last:
        # The class blocks have as many heads as the last mixer.
        keeps_norms &= getattr(mixer, "num_heads", 1) == getattr(own, "num_heads", 1)
    try:
        _as_stored(stage, mixer)
    except ValueError:  # its heads or groups do not divide the channels
        return False
    return keeps_norms


def _as_stored(stage: Stage, mixer: Mixer) -> Mixer:
    """Return a mixer as a stage of this width stores it.

    Raises:
        ValueError: If it does not fit the width.
    """
    return Stage(dim=stage.dim, mixers=(mixer,)).mixers[0]


def _narrower(dim: int, ratio: float) -> tuple[float, ...]:
    """Return an MLP's ratio and those of narrower ones, of different numbers of channels."""
    widths: dict[int, float] = {}
    for share in MLP_SHARES:
        hidden = int(dim * ratio * share)
        if hidden >= 1 or not ratio * share:
            widths.setdefault(hidden, ratio * share)
    return tuple(widths.values())
