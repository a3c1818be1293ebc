"""`SearchSpace`: which architectures are allowed, and the one walk over their choices.

`SearchSpace.build` asks ``choose(name, options)`` for every choice in turn. A random generator, an
Optuna trial (``trial.suggest_categorical``) and a look-up in saved parameters are all such a
``choose``, so sampling, searching and decoding are the same code. A choice that depends on another
is asked for only where it applies.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar

from searchspace.architecture import SHRINKING, Architecture, BlockNorm, Stage, on_map
from searchspace.cost import count, count_mixer
from searchspace.families import FAMILIES, map_sizes
from searchspace.mixer_text import describe_mixer
from searchspace.mixers import (
    MIXER_KINDS,
    Mixer,
    Setting,
    mixer_from_dict,
    mixer_to_dict,
)

Choose: TypeAlias = Callable[[str, Sequence[Any]], Any]
Options: TypeAlias = Mapping[str, tuple[Setting, ...]]
Number = TypeVar("Number", int, float)

MAX_TRIES = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class MixerChoices:
    """The mixers that one block (or all blocks of a stage) may have.

    Attributes:
        kinds: For each mixer kind the options of each of its settings.
        forbid: Rules; a mixer is refused when all entries of one rule match it. A rule maps
            ``mixer`` or the name of a setting to the values that it covers.
        listed: These mixers and no others, in place of kinds and rules; each as it is on its map.
    """

    kinds: Mapping[str, Options]
    forbid: tuple[Mapping[str, tuple[Setting, ...]], ...] = ()
    listed: tuple[Mixer, ...] = ()
    # What `mixers` has found, by the size of the map: it is asked for each block, again and again.
    _known: dict[int, tuple[Mixer, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def build(self, prefix: str, choose: Choose) -> Mixer:
        """Choose a kind and then only that kind's settings, or one of those that are listed."""
        if self.listed:
            names = tuple(map(describe_mixer, self.listed))
            return self.listed[names.index(choose(f"{prefix}.mixer", names))]
        kind = choose(f"{prefix}.mixer", tuple(self.kinds))
        settings = {
            name: choose(f"{prefix}.{kind}.{name}", options)
            for name, options in self.kinds[kind].items()
        }
        return mixer_from_dict({"kind": kind, **settings})

    def allows(self, mixer: Mixer) -> bool:
        """Tell whether no rule forbids the mixer, and where some are listed, it is one of them."""
        if self.listed:
            return mixer in self.listed
        if not self.forbid:
            return True
        values = mixer_to_dict(mixer)
        values["mixer"] = values.pop("kind")
        return not any(
            all(values.get(name) in covered for name, covered in rule.items())
            for rule in self.forbid
        )

    def mixers(self, size: int) -> tuple[Mixer, ...]:
        """List the distinct allowed mixers on a map of ``size`` x ``size`` tokens."""
        if size in self._known:
            return self._known[size]
        found: dict[Mixer, None] = dict.fromkeys(self.listed)
        for kind, options in self.kinds.items():
            for values in itertools.product(*options.values()):
                settings = dict(zip(options, values, strict=True))
                mixer = on_map(mixer_from_dict({"kind": kind, **settings}), size)
                if self.allows(mixer):
                    found[mixer] = None
        return self._known.setdefault(size, tuple(found))


@dataclass(frozen=True, kw_only=True, slots=True)
class StageChoices:
    """One stage of a space: its sizes, and one `MixerChoices` for the stage or one a block.

    Attributes:
        dims: The options of the width in channels; with one there is no choice. The first is what
            networks of a single mixer have.
        depths: The options of the number of blocks, likewise. A stage of depth d has the first d
            blocks (Cai et al. 2020, Once-for-All).
        mlp_ratios: The options of the stage's MLP ratio; with one there is no choice.
        norm, se_reduction, local_conv: Those of all blocks; see `Stage`.
        block_mlp_ratios: The options of each block's own MLP ratio, in place of the stage's; empty
            where all blocks have the stage's.
    """

    dims: tuple[int, ...]
    depths: tuple[int, ...]
    mlp_ratios: tuple[float, ...] = (4.0,)
    norm: BlockNorm = "default"
    se_reduction: int = 0
    local_conv: int = 0
    choices: tuple[MixerChoices, ...]
    block_mlp_ratios: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "mlp_ratios", tuple(float(ratio) for ratio in self.mlp_ratios))
        if self.block_mlp_ratios and len(self.block_mlp_ratios) != self.max_depth:
            raise ValueError(
                "A stage has MLP ratios for each block, or none of their own: got "
                f"{len(self.block_mlp_ratios)} sets for {self.max_depth} blocks."
            )
        if not self.dims or not self.depths or not self.mlp_ratios:
            raise ValueError("A stage needs at least one dim, depth and MLP ratio, got none.")
        if len(self.choices) not in (1, self.max_depth):
            raise ValueError(
                "A stage has one set of choices, or one a block: "
                f"got {len(self.choices)} sets for {self.max_depth} blocks."
            )

    @property
    def max_dim(self) -> int:
        """The channels of the widest stage, whose first channels are those of all others."""
        return max(self.dims)

    @property
    def max_depth(self) -> int:
        """The number of blocks of the deepest stage, which holds those of all others."""
        return max(self.depths)

    @property
    def is_chosen_by_block(self) -> bool:
        """Whether every block has a mixer of its own."""
        return len(self.choices) > 1

    def choices_of(self, block: int) -> MixerChoices:
        """Return the choices of a block."""
        return self.choices[block if self.is_chosen_by_block else 0]

    def ratios_of(self, block: int) -> tuple[float, ...]:
        """Return the options of a block's MLP ratio."""
        return self.block_mlp_ratios[block] if self.block_mlp_ratios else self.mlp_ratios

    def chosen(
        self,
        dim: int,
        mixers: Sequence[Mixer],
        mlp_ratio: float,
        block_mlp_ratios: Sequence[float] | None = None,
    ) -> Stage:
        """Return the stage that these choices lead to; by default with each block's first ratio."""
        if block_mlp_ratios is None:
            own = self.block_mlp_ratios[: len(mixers)]
            block_mlp_ratios = [ratios[0] for ratios in own]
        return Stage(
            dim=dim,
            mixers=tuple(mixers),
            mlp_ratio=mlp_ratio,
            norm=self.norm,
            se_reduction=self.se_reduction,
            local_conv=self.local_conv,
            block_mlp_ratios=tuple(block_mlp_ratios),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSpace:
    """A set of architectures.

    Attributes:
        limits: Upper limits, by the name of a closed-form cost: ``params`` and ``macs``.
        source: The text of the file that the space was read from; kept with a run.
    """

    name: str
    about: str = ""
    img_size: int
    patch_size: int
    stages: tuple[StageChoices, ...]
    num_classes: int = 1000
    in_chans: int = 3
    family: str = "swin"
    stem_dim: int = 0
    limits: Mapping[str, float] = field(default_factory=dict)
    source: str = ""

    @classmethod
    def of(cls, architecture: Architecture) -> SearchSpace:
        """Return the space whose only point is the architecture."""
        stages = tuple(
            StageChoices(
                dims=(stage.dim,),
                depths=(stage.depth,),
                mlp_ratios=(stage.mlp_ratio,),
                norm=stage.norm,
                se_reduction=stage.se_reduction,
                local_conv=stage.local_conv,
                choices=tuple(_single_choice(mixer) for mixer in stage.mixers),
                block_mlp_ratios=tuple((ratio,) for ratio in stage.block_mlp_ratios),
            )
            for stage in architecture.stages
        )
        return cls(
            name=architecture.key,
            img_size=architecture.img_size,
            patch_size=architecture.patch_size,
            stages=stages,
            num_classes=architecture.num_classes,
            in_chans=architecture.in_chans,
            family=architecture.family,
            stem_dim=architecture.stem_dim,
        )

    def replace(self, **changes: Any) -> SearchSpace:
        """Return a copy with some fields changed, e.g. the ``num_classes`` of the data."""
        return replace(self, **changes)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """The side of each stage's map, in tokens."""
        return map_sizes(self.family, self.img_size // self.patch_size, len(self.stages))

    def build(self, choose: Choose) -> Architecture:
        """Walk over the choices once; the result may still break a rule or a limit (`violation`).

        Names are ``stage<i>[.block<j>].mixer``, ``stage<i>[.block<j>].<kind>.<setting>`` and,
        where there are several, ``stage<i>.dim``, ``stage<i>.depth`` and
        ``stage<i>[.block<j>].mlp_ratio``. Blocks beyond the depth are not asked for.
        """

        def pick(name: str, options: Sequence[Any]) -> Any:
            return choose(name, options) if len(options) > 1 else options[0]

        stages = []
        for index, stage in enumerate(self.stages):
            place = f"stage{index}"
            dim = pick(f"{place}.dim", stage.dims)
            depth = pick(f"{place}.depth", stage.depths)
            if stage.is_chosen_by_block:
                mixers = [
                    choices.build(f"{place}.block{block}", choose)
                    for block, choices in enumerate(stage.choices[:depth])
                ]
            else:
                mixers = [stage.choices[0].build(place, choose)] * depth
            ratio = pick(f"{place}.mlp_ratio", stage.mlp_ratios)
            own = [
                pick(f"{place}.block{block}.mlp_ratio", ratios)
                for block, ratios in enumerate(stage.block_mlp_ratios[:depth])
            ]
            stages.append(stage.chosen(dim, mixers, ratio, own))
        return self._architecture(stages)

    def choices_of(self, architecture: Architecture) -> dict[str, Setting]:
        """Return the choices that `build` turns into the architecture, the inverse of the walk.

        Raises:
            ValueError: If no choices of this space lead to it.
        """
        found: dict[str, Setting] = {}
        settings: dict[tuple[int, int], Mapping[str, Setting]] = {}

        def look_up(name: str, options: Sequence[Setting]) -> Setting:
            place, *setting = name.split(".")
            index = int(place.removeprefix("stage"))
            stage = architecture.stages[index]
            if setting in (["dim"], ["depth"], ["mlp_ratio"]):
                found[name] = _match(setting[0], getattr(stage, setting[0]), options, 0)
                return found[name]
            has_block = setting[0].startswith("block")
            block = int(setting.pop(0).removeprefix("block")) if has_block else 0
            if setting == ["mlp_ratio"]:
                found[name] = _match(setting[0], stage.ratios[block], options, 0)
                return found[name]
            mixer = stage.mixers[min(block, stage.depth - 1)]
            choices = self.stages[index].choices_of(block)
            if setting == ["mixer"]:
                wanted = describe_mixer(mixer) if choices.listed else mixer.kind
                found[name] = _match(setting[0], wanted, options, 0)
                return found[name]
            if (index, block) not in settings:
                settings[index, block] = _settings_of(
                    mixer, choices.kinds[mixer.kind], dim=stage.dim, size=self.resolutions[index]
                )
            found[name] = settings[index, block][setting[-1]]
            return found[name]

        built = self.build(look_up)
        if built != architecture:
            raise ValueError(
                f"The architecture {architecture.key} is not in the space {self.name!r}."
            )
        return found

    def violation(self, architecture: Architecture) -> str | None:
        """Say which rule or limit the architecture breaks, or return None."""
        for index, (stage, choices) in enumerate(
            zip(architecture.stages, self.stages, strict=True)
        ):
            for name in ("dim", "depth", "mlp_ratio"):
                value = getattr(stage, name)
                if name == "mlp_ratio" and choices.block_mlp_ratios:
                    continue
                if value not in getattr(choices, f"{name}s"):
                    return f"stage {index}: {name} {value} is not offered by the space"
            for block, ratio in enumerate(stage.ratios):
                if choices.block_mlp_ratios and ratio not in choices.ratios_of(block):
                    return f"stage {index}, block {block}: mlp_ratio {ratio} is not offered"
            for block, mixer in enumerate(stage.mixers):
                if not choices.choices_of(block).allows(mixer):
                    return f"stage {index}, block {block}: {mixer} is forbidden by the space"
        if self.limits:
            cost = count(architecture)
            for name, limit in self.limits.items():
                if getattr(cost, name) > limit:
                    return f"{name} is {getattr(cost, name):,}, the limit is {limit:,.0f}"
        return None

    def sample(self, rng: random.Random) -> Architecture:
        """Draw an allowed architecture: every choice uniform, forbidden draws repeated."""
        for _ in range(MAX_TRIES):
            architecture = self.build(lambda name, options: rng.choice(options))
            if self.violation(architecture) is None:
                return architecture
        raise ValueError(
            f"The space {self.name!r} allows too few architectures: {MAX_TRIES:,} random ones all "
            f"broke a rule or a limit ({self.violation(architecture)}). Loosen its limits."
        )

    def mixers_of(self, stage: int, block: int) -> tuple[Mixer, ...]:
        """List the distinct mixers that a block may have."""
        return self.stages[stage].choices_of(block).mixers(self.resolutions[stage])

    def size(self) -> int:
        """Count the distinct architectures, before the limits on cost."""
        return math.prod(
            len(set(stage.dims)) * len(set(stage.mlp_ratios)) * _count_mixers(stage, size)
            for stage, size in zip(self.stages, self.resolutions, strict=True)
        )

    def extreme(self, cost: str, *, largest: bool) -> Architecture:
        """Return the allowed-by-rule architecture with the least or most ``params`` or ``macs``.

        Costs add up over blocks and grow with width, so the best choice of every block is the best
        of the whole, and the widest and deepest stage is the largest.
        """
        pick = max if largest else min
        qkv_bias = FAMILIES[self.family].qkv_bias
        stages = []
        for index, (stage, size) in enumerate(zip(self.stages, self.resolutions, strict=True)):
            dim = pick(stage.dims)
            place = {"dim": dim, "size": size, "qkv_bias": qkv_bias, "norm": stage.norm}

            def cost_of(mixer: Mixer, place: dict[str, Any] = place) -> int:
                return int(getattr(count_mixer(mixer, **place), cost))

            mixers = [
                pick(self.mixers_of(index, block), key=cost_of)
                for block in range(pick(stage.depths))
            ]
            ratio = pick(stage.mlp_ratios)
            own = [pick(ratios) for ratios in stage.block_mlp_ratios[: len(mixers)]]
            stages.append(stage.chosen(dim, mixers, ratio, own))
        return self._architecture(stages)

    def single_mixer_architectures(self) -> Iterator[tuple[str, Architecture]]:
        """Yield each kind that all stages allow, with the first settings that the space lists."""
        for kind, only in self.single_mixer_spaces():
            yield kind, only.first()

    def single_mixer_spaces(self) -> Iterator[tuple[str, SearchSpace]]:
        """Yield each kind that all stages allow, and the part of the space with it everywhere."""
        for kind in MIXER_KINDS:
            if all(kind in choices.kinds for stage in self.stages for choices in stage.choices):
                only = self.replace(stages=tuple(_restrict(stage, kind) for stage in self.stages))
                if only.size() > 0:
                    yield kind, only

    def first(self) -> Architecture:
        """Return the architecture of the first allowed option everywhere."""
        stages = [
            stage.chosen(
                stage.dims[0],
                self._first_mixers(index, stage.depths[0]),
                stage.mlp_ratios[0],
            )
            for index, stage in enumerate(self.stages)
        ]
        return self._architecture(stages)

    def sized(self, share: float) -> Architecture:
        """Return the first allowed mixers in stages of a size from the smallest to the largest.

        Args:
            share: 0 takes the least width, depth and MLP ratio of every stage, 1 the most.
        """
        stages = [
            stage.chosen(
                _between(stage.dims, share),
                self._first_mixers(index, _between(stage.depths, share)),
                _between(stage.mlp_ratios, share),
            )
            for index, stage in enumerate(self.stages)
        ]
        return self._architecture(stages)

    def _first_mixers(self, stage: int, depth: int) -> list[Mixer]:
        if self.stages[stage].is_chosen_by_block:
            return [self.mixers_of(stage, block)[0] for block in range(depth)]
        return [self.mixers_of(stage, 0)[0]] * depth

    def _architecture(self, stages: Sequence[Stage]) -> Architecture:
        return Architecture(
            family=self.family,
            img_size=self.img_size,
            patch_size=self.patch_size,
            stages=tuple(stages),
            num_classes=self.num_classes,
            in_chans=self.in_chans,
            stem_dim=self.stem_dim,
        )


def _between(options: Sequence[Number], share: float) -> Number:
    """Return the option at a share of the way from the least to the most, rounded up."""
    ordered = sorted(options)
    return ordered[int(share * (len(ordered) - 1) + 0.5)]


def _settings_of(mixer: Mixer, options: Options, *, dim: int, size: int) -> Mapping[str, Setting]:
    """Find the options that become a mixer on a map of a stage of that width."""
    values = mixer_to_dict(mixer)
    try:
        return {
            name: _match(name, values[name], offered, size) for name, offered in options.items()
        }
    except ValueError:
        # A setting that does nothing, or restates a default of its place, is stored as another.
        for chosen in itertools.product(*options.values()):
            settings = dict(zip(options, chosen, strict=True))
            built = on_map(mixer_from_dict({"kind": mixer.kind, **settings}), size)
            if Stage(dim=dim, mixers=(built,)).mixers == (mixer,):
                return settings
        raise


def _match(name: str, wanted: Setting, options: Sequence[Setting], size: int) -> Setting:
    """Find the option that is stored as ``wanted`` (a window larger than its map is the map)."""
    for option in options:
        if option == wanted or (name in SHRINKING and min(int(option), size) == wanted):
            return option
    raise ValueError(f"The space offers {name} {list(options)}, the architecture has {wanted!r}.")


def _count_mixers(stage: StageChoices, size: int) -> int:
    """Count the sequences of mixers that a stage may have, over all its depths."""
    counts = [len(choices.mixers(size)) for choices in stage.choices]
    if stage.block_mlp_ratios:
        counts = [
            len(stage.choices_of(block).mixers(size)) * len(set(ratios))
            for block, ratios in enumerate(stage.block_mlp_ratios)
        ]
    if len(counts) == 1:
        return len(set(stage.depths)) * counts[0]
    return sum(math.prod(counts[:depth]) for depth in set(stage.depths))


def _single_choice(mixer: Mixer) -> MixerChoices:
    settings = mixer_to_dict(mixer)
    kind = str(settings.pop("kind"))
    return MixerChoices(kinds={kind: {name: (value,) for name, value in settings.items()}})


def _restrict(stage: StageChoices, kind: str) -> StageChoices:
    choices = tuple(replace(c, kinds={kind: c.kinds[kind]}) for c in stage.choices)
    return replace(stage, choices=choices)
