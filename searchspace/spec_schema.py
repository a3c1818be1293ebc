"""The raw content of a space file: YAML text to typed entries, before their meaning is checked."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from configs.reading import parse_yaml

# No sensible network is near the upper end; it keeps a typing mistake from filling the memory.
_Count = Annotated[int, Field(ge=1, le=100_000)]
_Natural = Annotated[int, Field(ge=0, le=100_000)]
_Ratio = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# One number, or the options of a choice.
_OneOrMore = (
    Field(min_length=1),
    BeforeValidator(lambda value: value if isinstance(value, list) else [value]),
)
_Ratios = Annotated[list[_Ratio], *_OneOrMore]
_Counts = Annotated[list[_Count], *_OneOrMore]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StageEntry(_Entry):
    """One entry of ``stages``."""

    dim: _Counts
    depth: _Counts
    mixers: list[str] | None = None
    mlp_ratio: _Ratios | None = None
    norm: Literal["default", "layer", "batch", "centred_batch"] = "default"
    se_reduction: _Natural = 0
    local_conv: _Natural = 0


class SpaceEntry(_Entry):
    """A whole file."""

    name: str
    about: str = ""
    family: Literal["swin", "volo", "twins"] = "swin"
    stem_dim: _Natural = 0
    img_size: _Count
    patch_size: _Count
    mlp_ratio: _Ratios = [4.0]
    choices_per: Literal["stage", "block"] = "stage"
    stages: Annotated[list[StageEntry], Field(min_length=1)]
    mixers: Annotated[dict[str, dict[str, object]], Field(min_length=1)]
    forbid: list[dict[str, object]] = []
    limits: dict[str, object] = {}


def read_entry(text: str) -> SpaceEntry:
    """Read YAML text into an entry whose keys and types are right.

    Raises:
        ValueError: If the text is not YAML, or a key is unknown, missing or of the wrong type.
    """
    data = parse_yaml(text)
    if not isinstance(data, dict):
        raise ValueError(
            "the file must be a mapping with the keys "
            f"{', '.join(SpaceEntry.model_fields)}, got {data!r:.60}. Start from a shipped space."
        )
    try:
        return SpaceEntry.model_validate(data)
    except ValidationError as error:
        raise ValueError(_explain(error)) from error


def suggest(name: str, known: Iterable[str]) -> str:
    """Write which names are known, and which one was probably meant."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    guess = f"Did you mean {close[0]!r}? " if close else ""
    return f"{guess}Known: {', '.join(names)}."


def _explain(error: ValidationError) -> str:
    """Say one thing that pydantic found, in our words."""
    # A misspelt key is unknown and leaves the right one missing: the former says more.
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    place, key = _place(first["loc"]), str(first["loc"][-1])
    model = StageEntry if first["loc"][0] == "stages" else SpaceEntry
    match first["type"]:
        case "extra_forbidden":
            return f"{place}: unknown key {key!r}. {suggest(key, model.model_fields)}"
        case "missing":
            return f"{place}: the key {key!r} is missing. Add it; the shipped spaces have examples."
        case _:
            return f"{place}: {first['msg']}, got {first['input']!r}. Correct the value."


def _place(location: Sequence[int | str]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return "".join(parts).removeprefix(".")
