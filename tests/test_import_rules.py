"""The boundaries of the design: who imports whom, and what `search --help` must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FORBIDDEN = {
    "searchspace": {"torch", "supernet", "search", "ray", "optuna"},
    "supernet": {"search", "ray", "optuna"},
    "search": set[str](),
}
ENGINE_FILES = {
    "ray": {
        "search/cluster/connection.py",
        "search/cluster/crew.py",
        "search/cluster/trial_group.py",
        "search/cluster/tune_trials.py",
        "search/cli/doctor.py",
    },
    "optuna": {
        "search/sampling/proposer.py",
        "search/bench/searchers.py",
        "search/bench/problems.py",
        *(f.relative_to(ROOT).as_posix() for f in (ROOT / "search" / "sampling").glob("*.py")),
    },
}
# Each takes from a tenth of a second to some seconds to import.
HEAVY = ("matplotlib", "optuna", "pandas", "plotly", "ray", "scipy", "sklearn", "timm", "torch")


def imports_of(file: Path) -> Iterator[tuple[str, int]]:
    """Yield the top-level package and the line of every import in a file, at any depth."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.partition(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0], node.lineno


def sources(package: str) -> tuple[Path, ...]:
    """List the source files of a package."""
    return tuple(sorted((ROOT / package).rglob("*.py")))


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_import_only_downwards(package: str) -> None:
    files = sources(package)
    assert files

    offences = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for file in files
        for name, line in imports_of(file)
        if name in FORBIDDEN[package]
    ]

    assert offences == []


@pytest.mark.parametrize("library", ENGINE_FILES)
def test_ray_and_optuna_are_imported_only_by_the_engine(library: str) -> None:
    importers = {
        file.relative_to(ROOT).as_posix()
        for package in FORBIDDEN
        for file in sources(package)
        if library in dict(imports_of(file))
    }

    assert importers <= ENGINE_FILES[library]


def test_the_command_line_loads_no_heavy_library() -> None:
    script = "import sys, search.cli.app; print(*{name.partition('.')[0] for name in sys.modules})"

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()).isdisjoint(HEAVY)


def test_images_are_opened_without_torch() -> None:
    script = "import sys, supernet.data; print(*{name.partition('.')[0] for name in sys.modules})"

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()).isdisjoint((*HEAVY, "torchvision"))


@pytest.mark.parametrize("first", ["timm", "supernet", "supernet.network.supernet"])
def test_timm_knows_our_networks_whoever_is_imported_first(first: str) -> None:
    script = (
        f"import {first}, timm, supernet\n"
        "assert timm.is_model('mixer_search') and timm.is_model('elsa_swin_t')\n"
        "print(type(timm.create_model('elsa_swin_t', num_classes=3)).__name__)"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.stdout.strip() == "TimmNetwork", done.stderr


@pytest.mark.parametrize("package", ["searchspace", "supernet"])
def test_a_package_works_where_what_it_may_not_import_is_missing(package: str) -> None:
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for file in sources(package)
    ]
    blocked = sorted(FORBIDDEN[package])
    script = (
        f"import importlib, sys\nsys.modules.update(dict.fromkeys({blocked}))\n"
        f"for name in {modules}: importlib.import_module(name)"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
