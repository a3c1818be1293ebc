"""Every room has a door: its ``__init__`` has the names that others may use.

A module that is a command of its own, or that loads what the rest of its room does without, is a
door of its own; these stand in `ENTRIES`.
"""

from __future__ import annotations

import ast
import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "doors.txt"
ROOMS = {
    ".".join(door.parent.relative_to(ROOT).parts): door
    for package in ("search", "supernet")
    for door in sorted((ROOT / package).glob("*/__init__.py"))
}
ENTRIES = {
    "search.cli": {"app"},
    "search.phases": {
        *("climb", "finish", "grafting", "horizon", "judging", "measure", "planning", "promote"),
        "session",
        *("step_times", "supernet", "trust"),
    },
    # It loads scipy and scikit-learn.
    "search.results": {"importance"},
    # They load torch, and what writes ONNX.
    "search.deployed": {"exporting", "measuring"},
    # They load Optuna.
    "search.scheduling": {"halving", "judging"},
    # It needs psycopg, which is an extra.
    "search.record": {"postgres"},
    # Commands: `search export` must not load Ray for `search retrain`.
    "search.retraining": {
        "attempt",
        "evaluate",
        "export",
        "finished",
        "graft_source",
        "identity",
        "import_checkpoint",
        "ladder",
        "out_folder",
        "queue",
        "teachers",
        "together",
        "training_queue",
        "wanted",
    },
    "search.transferring": {
        *("alone", "costs", "evaluate", "network", "predicting", "queue", "result", "target"),
    },
    # It needs pycocotools, which is an extra.
    "supernet.dense": {
        *("distillation", "judging", "network", "options", "pictures", "shared", "start"),
        *("target", "teacher_files", "timm_backbone", "training"),
    },
    "supernet.data": {"dense.masks"},
    # timm's import registers our models, also in the middle of ours.
    "supernet.exchange": {
        "export",
        "hub",
        "published",
        "timm_config",
        "timm_layout",
        "timm_models",
    },
}


def room_of(module: str) -> str | None:
    """Return the room that a module is in."""
    return next((room for room in ROOMS if module == room or module.startswith(f"{room}.")), None)


def imports() -> Iterator[tuple[str, str, str]]:
    """Yield importer, module and name of every import between modules of the program."""
    for package in ("search", "supernet"):
        for file in sorted((ROOT / package).rglob("*.py")):
            importer = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.module:
                    for name in node.names:
                        yield importer, node.module, name.name


def test_rooms_are_entered_by_their_doors() -> None:
    past = set()
    for importer, module, name in imports():
        room = room_of(module)
        if room is None or room == room_of(importer) or module == room:
            continue
        is_door = (ROOT / module.replace(".", "/") / "__init__.py").is_file()
        if not is_door and module.removeprefix(f"{room}.") not in ENTRIES.get(room, ()):
            past.add(f"{importer} imports {module}.{name}")

    assert sorted(past) == []


def test_entries_are_used() -> None:
    used = {module for _, module, _ in imports()} | {f"{m}.{name}" for _, m, name in imports()}

    assert [
        f"{r}.{e}" for r, found in ENTRIES.items() for e in found if f"{r}.{e}" not in used
    ] == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_door_has_what_it_says(room: str) -> None:
    door = importlib.import_module(room)

    assert door.__doc__
    for name in getattr(door, "__all__", ()):
        assert hasattr(door, name)


def test_public_names_are_pinned() -> None:
    """Rewrite with ``UPDATE_GOLDEN=1 pytest tests/test_doors.py``."""
    text = "".join(
        f"{room}: {' '.join(sorted(getattr(importlib.import_module(room), '__all__', ())))}\n"
        for room in sorted(ROOMS)
    )
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")

    assert text == GOLDEN.read_text(encoding="utf-8")
