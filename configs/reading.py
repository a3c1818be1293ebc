"""YAML and JSON that may come from anybody, read within bounds of time and memory.

A few hundred bytes of YAML can stand for billions of values (aliases of aliases), and a few
kilobytes of brackets are deeper than Python's stack. Both are refused before they are followed.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")

# Ten times the longest shipped file; YAML is read at about half a megabyte a second.
MAX_YAML_BYTES = 2**17
MAX_JSON_BYTES = 2**26
# What all aliases stand for, in characters.
MAX_EXPANDED = 4 * MAX_YAML_BYTES
MAX_DEPTH = 40


def read_text(path: Path, *, limit: int) -> str:
    """Read a regular file of UTF-8 text.

    Raises:
        ValueError: If it is gone, not readable, no regular file, longer than the limit, or no
            UTF-8; it names the file.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{path} is no regular file. Name a file of text.")
        if found.st_size > limit:
            raise ValueError(
                f"{path}: such a file has at most {limit:,} bytes, this one has "
                f"{found.st_size:,}. Name another file."
            )
        # If a pipe has taken its place by now, opening does not wait for a writer.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return file.read(found.st_size).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: the file is not UTF-8 text. Save it as UTF-8.") from error
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}). Check the path and its rights."
        ) from error


def read_yaml(path: Path) -> object:
    """Read a YAML file into plain values.

    Raises:
        ValueError: If it is not one, or not within bounds; it names the file.
    """
    text = read_text(path, limit=MAX_YAML_BYTES)
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_json(path: Path, *, limit: int = MAX_JSON_BYTES) -> object:
    """Read a JSON file into plain values.

    Raises:
        ValueError: If it is not one, or too deep or long; it names the file.
    """
    text = read_text(path, limit=limit)
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse_json(text: str | bytes) -> object:
    """Read JSON text into plain values.

    Raises:
        ValueError: If the text is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply. Write it anew.") from error
    except ValueError as error:
        raise ValueError(f"it is not JSON ({error}). Mend it or write it anew.") from error


def typed(kind: type[T], values: object) -> T:
    """Make plain values what they are to be, a dataclass and those inside of it for instance.

    Raises:
        ValueError: If one is missing or of another kind; it names the first.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise ValueError(f"{place}: {first['msg']}, got {first['input']!r:.60}") from error


def parse_yaml(text: str) -> object:
    """Read YAML text into plain values; a key that occurs twice is an error.

    Raises:
        ValueError: If the text is not YAML, or longer, deeper or larger than settings can be; it
            names the line where there is one.
    """
    if len(text) > MAX_YAML_BYTES:
        raise ValueError(
            f"settings have at most {MAX_YAML_BYTES:,} characters, got {len(text):,}. Shorten them."
        )
    try:
        # A safe loader: it builds plain values only.
        return yaml.load(text, Loader=_BoundedLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(
            f"{place}the file is not YAML: {error.problem}. Mend this line."
        ) from error
    except yaml.YAMLError as error:
        raise ValueError(f"the file is not YAML: {error}. Save it as plain text.") from error
    except RecursionError as error:
        raise ValueError("the file is nested too deeply. Write it flatter.") from error
    # PyYAML's constructors raise these for values that only look like numbers, dates or words.
    except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
        raise ValueError(f"a value of the file cannot be read ({error}). Mend it.") from error


class _BoundedLoader(yaml.SafeLoader):
    """A loader that refuses a key that occurs twice, where YAML would keep the last, and bombs."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _measure(node, {})
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        seen: set[str] = set()
        for key in (key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key in seen:
                problem = f"the key {key!r} occurs twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
            seen.add(key)
        return dict(super().construct_mapping(node, deep))


def _measure(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return how many characters a node stands for and how deep it is, aliases followed.

    Args:
        known: What was found before, by node; a node that is being measured is infinitely deep.
    """
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = (0, MAX_DEPTH)
    size, depth = 1, 0
    for child in _children(node):
        child_size, child_depth = _measure(child, known)
        size, depth = size + child_size, max(depth, child_depth + 1)
    if isinstance(node, yaml.ScalarNode):
        size += len(node.value)
    if size > MAX_EXPANDED or depth > MAX_DEPTH:
        raise yaml.MarkedYAMLError(
            problem=f"it is nested more than {MAX_DEPTH} deep, or its aliases stand for more than "
            f"{MAX_EXPANDED:,} characters",
            problem_mark=node.start_mark,
        )
    known[id(node)] = (size, depth)
    return size, depth


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []
