"""The shipped YAML files, by folder and name (``spaces``, ``recipes``), and how YAML is read."""

from __future__ import annotations

import difflib
from pathlib import Path

import yaml

_ROOT = Path(__file__).parent
_SUFFIXES = (".yaml", ".yml")


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
    path, what = Path(name), folder.partition("/")[0].removesuffix("s")
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


def parse_yaml(text: str) -> object:
    """Read YAML text into plain values; a key that occurs twice is an error.

    Raises:
        ValueError: If the text is not YAML; it names the line.
    """
    try:
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


class _UniqueKeyLoader(yaml.SafeLoader):
    """A loader that refuses a key that occurs twice, where YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if repeated := [key for key in keys if keys.count(key) > 1]:
            problem = f"the key {repeated[0]!r} occurs twice"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return dict(super().construct_mapping(node, deep))
