"""``search run --config FILE``: the options of a run in a YAML file, checked like the command line.

The keys are the options without their dashes (``max_macs`` for ``--max-macs``). What stands on the
command line wins. Paths are as on the command line: seen from where the command runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from search.run_folder import RunSettings

_LIMITS = {
    "macs": "max_macs",
    "params": "max_params",
    "latency_ms": "max_latency",
    "memory_mib": "max_memory",
}
# They say where a file or a run is, not what a run does.
_NOT_IN_FILES = {"config", "resume", "help"}


def apply_config(context: typer.Context, value: str | None) -> str | None:
    """Let the values of a file be the defaults of the options, as typer's callback of --config."""
    if value is not None and not context.resilient_parsing:
        options = {
            str(option.name).rstrip("_"): option  # `from` is no name of Python's
            for option in context.command.params
            if option.name not in _NOT_IN_FILES
        }
        context.default_map = read_options(value, options, context)
    return value


def read_options(
    name_or_path: str, options: Mapping[str, Any], context: typer.Context
) -> dict[str, Any]:
    """Read a file of options.

    Args:
        name_or_path: Of a shipped file (``configs/searches``), or the path of a user's own.
        options: Those of the command, by name.
        context: Of the command; its types read the values.

    Raises:
        ValueError: If there is no such file, a key is no option, or a value is not one of its
            option; it names the file.
    """
    from configs import config_path
    from configs.files import reading
    from configs.reading import MAX_YAML_BYTES, parse_yaml, read_text

    path = config_path("searches", name_or_path)
    remedy = "Start from a copy of a shipped one, configs/searches."
    text = read_text(path, limit=MAX_YAML_BYTES)
    with reading(path, "the options of a run", remedy=remedy):
        values = parse_yaml(text)
        if not isinstance(values, dict):
            raise ValueError(f"it must map options to values, got {values!r:.60}")
        for key, value in values.items():
            _check(str(key), value, options, context)
    return {str(options[key].name): _as_typed(value) for key, value in values.items()}


def _check(key: str, value: object, options: Mapping[str, Any], context: typer.Context) -> None:
    from searchspace.spec_schema import suggest

    if key not in options:
        raise ValueError(f"unknown option {key!r}. {suggest(key, options)}")
    option = options[key]
    is_list, is_flag = isinstance(value, list), isinstance(value, bool)
    if value is None or isinstance(value, dict) or is_flag != bool(option.is_flag):
        raise ValueError(f"{key}: {value!r} is not a value of --{key.replace('_', '-')}")
    if is_list != bool(option.multiple):
        wanted = "a list" if option.multiple else "one value"
        raise ValueError(f"{key}: this option takes {wanted}, got {value!r}")
    try:
        option.process_value(context, _as_typed(value))
    except typer.BadParameter as error:
        raise ValueError(f"{key}: {error.message}") from error


def _as_typed(value: Any) -> Any:
    """Write a value as one would type it; a number of YAML is read by its option's own type."""
    if isinstance(value, list):
        return [_as_typed(one) for one in value]
    return value if isinstance(value, bool) else str(value)


def keep_options(folder: Path, settings: RunSettings) -> None:
    """Write what a run was begun with, every default written out, as a file that --config reads."""
    import yaml

    from search.run_folder import OPTIONS
    from searchspace import durable

    values: dict[str, object] = {
        "budget": settings.budget,
        "data": settings.data,
        "task": settings.task,
        "space": settings.space,
        "objectives": ",".join(settings.objectives),
        "strategy": settings.strategy,
        "sampler": settings.sampler,
        "share": [f"{phase}={share!r}" for phase, share in settings.shares.items()],
        "supernet_strategy": settings.supernet_strategy,
        "projections": settings.projections,
        "kernels": settings.kernels,
        "recipe": settings.retrain_recipe,
        "seed": settings.seed,
    }
    values |= {_LIMITS[name]: most for name, most in settings.limits.items()}
    if settings.graft_from:
        values["from"] = settings.graft_from
    if settings.graft_arch:
        values["arch"] = settings.graft_arch
    if settings.taught_by:
        values["teacher"] = settings.taught_by
    if settings.unlabelled:
        values["unlabelled"] = settings.unlabelled
    if settings.start:
        values["start"] = settings.start
    for name in ("latency_of", "precision", "batch", "latency_table"):
        if given := getattr(settings, name):
            values[name] = given
    if settings.img_size is not None:
        values["img_size"] = settings.img_size
    about = "# What this run was begun with. Again: search run --config THIS --out OTHER\n"
    text = about + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    durable.write_text(folder / OPTIONS, text)
