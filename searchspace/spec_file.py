"""Search spaces as YAML files; ``configs/spaces/micro.yaml`` explains the format.

A space is checked completely when it is read, so every point that a search can reach is a network
that can be built. Each error is one `ValueError` with the file, the place in it, the rule, the
value and the remedy.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, replace

from configs import config_path
from configs.reading import MAX_YAML_BYTES, read_text
from searchspace.architecture import Stage
from searchspace.cost import Cost, count
from searchspace.families import FAMILIES
from searchspace.mixers import (
    MIXER_KINDS,
    Setting,
    WindowAttention,
    mixer_from_dict,
    mixer_settings,
)
from searchspace.quantity import parse_quantity
from searchspace.space import MixerChoices, Options, SearchSpace, StageChoices
from searchspace.spec_schema import SpaceEntry, read_entry, suggest

_ALL_SETTINGS = tuple(dict.fromkeys(name for kind in MIXER_KINDS for name in mixer_settings(kind)))
_LIMITS = tuple(field.name for field in fields(Cost))


def load_space(name_or_path: str) -> SearchSpace:
    """Read a shipped space by its name, or a user's own file.

    Raises:
        ValueError: If there is no such file, or the file is not a sound description of a space.
    """
    path = config_path("spaces", name_or_path)
    text = read_text(path, limit=MAX_YAML_BYTES)
    try:
        return parse_space(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse_space(text: str) -> SearchSpace:
    """Read the text of a space file, e.g. the ``source`` that a run keeps.

    Raises:
        ValueError: If the text is not a sound description of a space.
    """
    entry = read_entry(text)
    if entry.img_size % entry.patch_size:
        raise ValueError(
            f"patch_size: it must divide img_size, got {entry.patch_size} and {entry.img_size}. "
            "Change one of them."
        )
    for kind, settings in entry.mixers.items():
        _check_known(kind, MIXER_KINDS, f"mixers.{kind}", "mixer")
        for name in settings:
            _check_known(name, mixer_settings(kind), f"mixers.{kind}.{name}", "setting")
    rules = tuple(_read_rule(rule, f"forbid[{i}]") for i, rule in enumerate(entry.forbid))
    space = SearchSpace(
        name=entry.name,
        about=entry.about,
        img_size=entry.img_size,
        patch_size=entry.patch_size,
        stages=tuple(_read_stage(entry, index, rules) for index in range(len(entry.stages))),
        family=entry.family,
        stem_dim=entry.stem_dim,
        limits=_read_limits(entry.limits),
        source=text,
    )
    if rules:
        _check_rules(space, rules)
    check_space(space)
    return space


def check_space(space: SearchSpace) -> None:
    """Look whether a space, e.g. one at another image size or with more limits, has networks.

    Raises:
        ValueError: If it has none.
    """
    _check_not_empty(space)
    # What concerns several stages at once, e.g. the widths of a family, is checked by a network.
    first = space.first()
    if space.family == "volo":  # whose class blocks have the heads of the last mixer
        *stages, last = first.stages
        for mixer in space.mixers_of(len(stages), 0):
            first.replace(stages=(*stages, replace(last, mixers=(mixer,) * last.depth)))


def _check_known(name: str, known: Iterable[str], place: str, what: str) -> None:
    names = list(known)
    if name not in names:
        raise ValueError(f"{place}: unknown {what} {name!r}. {suggest(name, names)}")


def _read_stage(entry: SpaceEntry, index: int, rules: tuple[Options, ...]) -> StageChoices:
    stage, place = entry.stages[index], f"stages[{index}]"
    kinds = list(entry.mixers) if stage.mixers is None else stage.mixers
    if not kinds:
        raise ValueError(f"{place}.mixers: a stage needs at least one mixer, got []. Name one.")
    for kind in kinds:
        _check_known(kind, entry.mixers, f"{place}.mixers", "mixer")
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"{place}.mixers: a mixer is named twice, got {kinds}. Name it once.")
    options = {kind: _read_settings(entry, kind, index) for kind in kinds}
    mlp_ratios = entry.mlp_ratio if stage.mlp_ratio is None else stage.mlp_ratio
    _check_distinct(mlp_ratios, f"{place}.mlp_ratio")
    _check_distinct(stage.depth, f"{place}.depth")
    _check_distinct(stage.dim, f"{place}.dim")
    _check_widths(entry, index)
    if min(stage.dim) * min(mlp_ratios) < 1:
        raise ValueError(
            f"{place}: mlp_ratio * dim, the hidden width of the MLP, must be >= 1, "
            f"got {min(mlp_ratios)} * {min(stage.dim)}. Enlarge one of them."
        )
    if stage.se_reduction > min(stage.dim):
        raise ValueError(
            f"{place}.se_reduction: it must be at most the stage's dim, "
            f"got {stage.se_reduction} and {min(stage.dim)}. Lower it."
        )
    for kind in kinds:
        _check_fit(kind, options[kind], stage.dim, place)
    return StageChoices(
        dims=tuple(stage.dim),
        depths=tuple(stage.depth),
        mlp_ratios=tuple(mlp_ratios),
        norm=stage.norm,
        se_reduction=stage.se_reduction,
        local_conv=stage.local_conv,
        choices=(MixerChoices(kinds=options, forbid=rules),)
        * (max(stage.depth) if entry.choices_per == "block" else 1),
    )


def _check_widths(entry: SpaceEntry, index: int) -> None:
    """Refuse a choice of width where the family has one width for several stages."""
    dims = entry.stages[index].dim
    if len(dims) > 1 and index >= FAMILIES[entry.family].halvings:
        raise ValueError(
            f"stages[{index}].dim: in the family {entry.family!r} all stages behind the first have "
            f"one dim, got the options {dims}. Write one number."
        )


def _check_distinct(options: Sequence[object], place: str) -> None:
    for index, option in enumerate(options):
        if option in options[:index]:
            raise ValueError(f"{place}: the option {option!r} is there twice. Remove one.")


def _check_fit(kind: str, options: Options, dims: Sequence[int], place: str) -> None:
    """Build every mixer that the options allow, and stages of them all."""
    try:
        mixers = tuple(
            mixer_from_dict({"kind": kind, **dict(zip(options, values, strict=True))})
            for values in itertools.product(*options.values())
        )
        for dim in dims:
            stored = Stage(dim=dim, mixers=mixers).mixers
            if len(set(stored)) < len(set(mixers)):
                raise ValueError(f"two options are the same mixer at dim {dim}. Keep one.")
    except ValueError as error:
        raise ValueError(
            f"mixers.{kind}: an option does not fit {place}: {error} "
            "Change the option, or write options per_stage."
        ) from error


def _read_settings(entry: SpaceEntry, kind: str, index: int) -> Options:
    given = entry.mixers[kind]
    options: dict[str, tuple[Setting, ...]] = {}
    for field in fields(MIXER_KINDS[kind]):
        place = f"mixers.{kind}.{field.name}"
        if field.name in given:
            value, place = _of_stage(given[field.name], place, index, len(entry.stages))
            options[field.name] = _read_options(field.name, value, place)
        elif field.default is MISSING:
            raise ValueError(
                f"{place}: {kind} needs {field.name}, it is missing. List its options."
            )
    return options


def _of_stage(value: object, place: str, index: int, num_stages: int) -> tuple[object, str]:
    """Pick the stage's entry where the value is given per stage; return it with its place."""
    if not isinstance(value, dict):
        return value, place
    entries = value.get("per_stage")
    if set(value) != {"per_stage"} or not isinstance(entries, list):
        raise ValueError(
            f"{place}: write a list of options or {{per_stage: [[...], ...]}}, got {value!r}."
        )
    if len(entries) != num_stages:
        raise ValueError(
            f"{place}.per_stage: there must be one entry for each of the {num_stages} stages, "
            f"got {len(entries)}. Add or remove entries."
        )
    return entries[index], f"{place}.per_stage[{index}]"


def _read_options(setting: str, value: object, place: str) -> tuple[Setting, ...]:
    """Read a list of options, or one option alone, in canonical form."""
    options: list[Setting] = []
    for option in value if isinstance(value, list) else [value]:
        if not isinstance(option, str | int | float):
            raise ValueError(f"{place}: an option is a number or a word, got {option!r}. Mend it.")
        canonical = _canonical(setting, option, place)
        if canonical in options:
            raise ValueError(f"{place}: the option {option!r} is there twice. Remove one.")
        options.append(canonical)
    if not options:
        raise ValueError(f"{place}: there must be at least one option, got []. Add one.")
    return tuple(options)


def _canonical(setting: str, option: Setting, place: str) -> Setting:
    """Bring terms into their canonical order, so that equal options are equal values."""
    if setting != "terms":
        return option
    try:
        return WindowAttention(window_size=1, num_heads=1, terms=str(option)).terms
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _read_rule(rule: Mapping[str, object], place: str) -> Options:
    if not rule:
        raise ValueError(f"{place}: an empty rule would forbid everything. Name a mixer in it.")
    for name in rule:
        _check_known(name, ("mixer", *_ALL_SETTINGS), f"{place}.{name}", "setting")
    return {name: _read_options(name, value, f"{place}.{name}") for name, value in rule.items()}


def _check_rules(space: SearchSpace, rules: Sequence[Options]) -> None:
    """Refuse a rule with a value that no stage offers, or that matches no mixer as a whole."""
    mixers = {
        mixer
        for stage, size in zip(space.stages, space.resolutions, strict=True)
        for mixer in replace(stage.choices[0], forbid=()).mixers(size)
    }
    for index, rule in enumerate(rules):
        place = f"forbid[{index}]"
        for name, values in rule.items():
            offered = {m.kind if name == "mixer" else getattr(m, name, None) for m in mixers}
            for value in values:
                if value not in offered:
                    words = ", ".join(sorted(str(option) for option in offered - {None}))
                    raise ValueError(
                        f"{place}.{name}: impossible condition: no stage offers {value!r}. "
                        f"Offered: {words or 'nothing'}."
                    )
        if all(MixerChoices(kinds={}, forbid=(rule,)).allows(mixer) for mixer in mixers):
            raise ValueError(
                f"{place}: impossible condition: no mixer of the space has all of {dict(rule)}. "
                "Correct the rule or remove it."
            )


def _read_limits(limits: Mapping[str, object]) -> dict[str, float]:
    amounts = {}
    for name, amount in limits.items():
        _check_known(name, _LIMITS, f"limits.{name}", "cost")
        try:
            amounts[name] = parse_quantity(str(amount))
        except ValueError as error:
            raise ValueError(f"limits.{name}: {error}") from error
    return amounts


def _check_not_empty(space: SearchSpace) -> None:
    """Refuse rules that leave a stage nothing, and limits below the smallest network."""
    for index in range(len(space.stages)):
        if not space.mixers_of(index, 0):
            raise ValueError(
                f"forbid: the rules forbid every mixer of stages[{index}]. Loosen one of them."
            )
    # One class: the data decides how many there are, and a smaller head may keep the limit.
    smallest_head = space.replace(num_classes=1)
    for name, limit in space.limits.items():
        least = getattr(count(smallest_head.extreme(name, largest=False)), name)
        if least > limit:
            raise ValueError(
                f"limits.{name}: even the smallest network of the space has {least:,} {name}, "
                f"got the limit {limit:,.0f}. Raise the limit or offer smaller options."
            )
