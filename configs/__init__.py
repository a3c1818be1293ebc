"""The shipped YAML files, by folder and name (``spaces``, ``recipes``, ``searches``), and how YAML
is read."""

from __future__ import annotations

import difflib
from pathlib import Path

import yaml

try:  # libyaml reads ten times as fast
    from yaml import CSafeLoader as SafeLoader
except ImportError:
    from yaml import SafeLoader  # type: ignore[assignment]

_ROOT = Path(__file__).parent
_ONE_OF = {"spaces": "space", "recipes": "recipe", "searches": "search"}
_SUFFIXES = (".yaml", ".yml")
# No file of settings is near these; a hostile one is refused before it takes time and memory.
MAX_CHARACTERS, MAX_VALUES, MAX_DEPTH = 1_000_000, 100_000, 50


def config_names(folder: str) -> tuple[str, ...]:
    """Name the shipped files of a folder (``spaces``, ``recipes``), sorted, without suffix."""
    return tuple(sorted(path.stem for path in (_ROOT / folder).glob("*.yaml")))


def config_path(folder: str, name: str) -> Path:
    """Find a shipped file by its name, or take the path of a user's own YAML file as it is.

    Raises:
        ValueError: If there is neither such a name nor such a file.
    """
    if name in config_names(folder):
        return _ROOT / folder / f"{name}.yaml"
    path, what = Path(name), _ONE_OF[folder]
    if path.suffix in _SUFFIXES:
        if path.is_file():
            return path
        raise ValueError(f"There is no {what} file {name!r}. Check the path.")
    known = config_names(folder)
    close = difflib.get_close_matches(name, known, n=1)
    guess = f"Did you mean {close[0]!r}? " if close else ""
    raise ValueError(
        f"Unknown {what} {name!r}. {guess}Known: {', '.join(known)}; "
        "or give the path of a .yaml file."
    )


def read_settings(path: Path) -> str:
    """Read the text of a file of settings, of a larger one only the beginning.

    Raises:
        ValueError: If the file is not UTF-8 text, or too large.
    """
    with path.open(encoding="utf-8") as file:
        text = file.read(MAX_CHARACTERS + 1)
    if len(text) > MAX_CHARACTERS:
        raise ValueError(
            f"a file of settings has at most {MAX_CHARACTERS:,} characters, and this one has more. "
            "Name the right file."
        )
    return text


def parse_yaml(text: str) -> object:
    """Read YAML text into plain values; a key that occurs twice is an error.

    Raises:
        ValueError: If the text is not YAML; it names the line. Also if it is larger or deeper than
            any settings are, with its aliases written out.
    """
    try:
        _check_size(text)
        # A safe loader: it builds plain values only.
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(
            f"{place}the file is not YAML: {error.problem}. Mend this line."
        ) from error
    except yaml.YAMLError as error:
        raise ValueError(f"the file is not YAML: {error}. Save it as plain text.") from error


def _check_size(text: str) -> None:
    """Count the values and the depth of a text with its aliases written out, in one pass."""
    sizes: dict[str, int] = {}
    open_: list[tuple[str | None, int]] = []
    total = 0
    for event in yaml.parse(text, Loader=SafeLoader):
        match event:
            case yaml.CollectionStartEvent():
                open_.append((event.anchor, total))
                total += 1
            case yaml.CollectionEndEvent():
                anchor, before = open_.pop()
                if anchor:
                    sizes[anchor] = total - before
            case yaml.ScalarEvent():
                total += 1
            case yaml.AliasEvent():
                if any(anchor == event.anchor for anchor, _ in open_):
                    raise _oversized("a value cannot hold itself", event)
                total += sizes.get(event.anchor or "", 1)
        if len(open_) > MAX_DEPTH:
            raise _oversized(f"a value is nested in more than {MAX_DEPTH} others", event)
        if total > MAX_VALUES:
            raise _oversized(
                f"there are more than {MAX_VALUES:,} values (aliases written out)", event
            )


def _oversized(problem: str, event: yaml.Event) -> ValueError:
    place = f"line {event.start_mark.line + 1}: " if event.start_mark else ""
    return ValueError(f"{place}{problem}, which no settings need. Write them out plainly.")


class _UniqueKeyLoader(SafeLoader):
    """A loader that refuses a key that occurs twice, where YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if repeated := [key for key in keys if keys.count(key) > 1]:
            problem = f"the key {repeated[0]!r} occurs twice"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return dict(super().construct_mapping(node, deep))
