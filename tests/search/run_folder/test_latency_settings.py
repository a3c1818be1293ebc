"""Whose latency a run weighs: said at the door, kept with the run, refused for other networks."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from search.run_folder import RunSettings, create_run, open_run
from search.workers.job import make_job
from searchspace.deployment import Deployment
from searchspace.latency_table import Latency, LatencyTable, covering, macro_of, parts_of
from searchspace.space import SearchSpace
from searchspace.spec_file import load_space

BASE: dict[str, Any] = {"data": "digits", "budget": "1cpu-minute"}
WEIGHED: dict[str, Any] = {**BASE, "objectives": ("top1", "latency_ms")}
SEGMENTS: dict[str, Any] = {
    "task": "semantic",
    "data": "cells",
    "objectives": ("miou", "latency_ms"),
}


def write_table(path: Path, space: SearchSpace) -> LatencyTable:
    parts = {part: None for one in covering(space, random.Random(0)) for part in parts_of(one)}
    table = LatencyTable(
        macro=macro_of(space.first()),
        deployment=Deployment(target="onnxruntime", precision="int8", batch=4),
        device="an edge box",
        threads=2,
        versions="onnxruntime 1",
        measured_on="2026-11-29",
        parts=dict.fromkeys(parts, Latency(0.5, 0.4, 0.6)),
        num_checked=50,
        median_error=0.031,
    )
    table.save(path)
    return table


@pytest.fixture(scope="module")
def table_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables") / "table.json"
    write_table(path, load_space("digits").replace(num_classes=10))
    return path


@pytest.mark.parametrize(
    ("option", "value"),
    [("latency_of", "compiled"), ("precision", "bf16"), ("batch", 1), ("latency_table", "t.json")],
)
def test_what_is_not_weighed_is_not_described(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"does not weigh it.*--objectives top1,macs,latency"):
        RunSettings(**BASE, **{option: value})


@pytest.mark.parametrize(
    ("budget", "said", "expected"),
    [
        ("1cpu-minute", {}, Deployment()),
        ("1gpu-minute", {}, Deployment(target="cuda-graph")),
        ("1gpu-minute", {"precision": "bf16"}, Deployment(target="cuda-graph", precision="bf16")),
        ("1gpu-minute", {"latency_of": "eager"}, Deployment()),
        ("1gpu-minute", SEGMENTS, Deployment()),  # what `search.workers.dense_work` measures
    ],
)
def test_on_gpus_a_graph_is_timed_unless_something_else_is_said(
    budget: str, said: dict[str, Any], expected: Deployment
) -> None:
    assert RunSettings(**{**WEIGHED, "budget": budget, **said}).deployment == expected


@pytest.mark.parametrize(("option", "value"), [("latency_of", "eager"), ("batch", 4)])
def test_a_table_says_itself_how_networks_are_run(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"t\.json says itself"):
        RunSettings(**WEIGHED, latency_table="t.json", **{option: value})


def test_a_run_keeps_its_table_and_says_whose_it_is(table_file: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.json"
    mine.write_bytes(table_file.read_bytes())
    settings = RunSettings(**WEIGHED, latency_table=str(mine))
    with create_run(tmp_path / "run", settings):
        mine.unlink()
    with open_run(tmp_path / "run") as run:
        said = run.settings.describe_latency("these devices")
        job = make_job(run.settings, run.folder, run.data())

    assert said == (
        "Latency: of a table, batches of 4, onnxruntime, int8, on an edge box, 2 thread(s), "
        "onnxruntime 1, 2026-11-29; median error 3.1 % over 50 networks."
    )
    assert job.table == LatencyTable.load(table_file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"img_size": 16}, "img_size = 32, got 16"),
        ({"space": "micro_depth"}, "The latency table is for networks with"),
    ],
)
def test_a_table_of_another_space_is_refused_at_the_door(
    change: dict[str, Any], message: str, table_file: Path, tmp_path: Path
) -> None:
    settings = RunSettings(**WEIGHED, latency_table=str(table_file), **change)

    with pytest.raises(ValueError, match=message), create_run(tmp_path / "run", settings):
        pass
    assert not (tmp_path / "run").exists()


def test_a_table_with_other_classes_is_refused_once_they_are_known(tmp_path: Path) -> None:
    write_table(tmp_path / "table.json", load_space("digits").replace(num_classes=1000))
    settings = RunSettings(**WEIGHED, latency_table=str(tmp_path / "table.json"))

    with (
        pytest.raises(ValueError, match=r"table\.json: .*num_classes = 1000, got 10"),
        create_run(tmp_path / "run", settings),
    ):
        pass
    assert not (tmp_path / "run").exists()


def test_a_table_that_misses_a_part_is_refused(table_file: Path, tmp_path: Path) -> None:
    table = LatencyTable.load(table_file)
    first = next(part for part in table.parts if part.mixer)
    fewer = LatencyTable(
        **{
            **{name: getattr(table, name) for name in LatencyTable.__slots__},
            "parts": {part: found for part, found in table.parts.items() if part != first},
        }
    )
    fewer.save(tmp_path / "table.json")
    settings = RunSettings(**WEIGHED, latency_table=str(tmp_path / "table.json"))

    with (
        pytest.raises(ValueError, match="does not cover 'stage0"),
        create_run(tmp_path / "run", settings),
    ):
        pass


def test_a_target_that_cannot_run_here_is_refused_at_the_door(tmp_path: Path) -> None:
    settings = RunSettings(**WEIGHED, latency_of="cuda-graph")

    with (
        pytest.raises(ValueError, match="cuda-graph runs on a GPU"),
        create_run(tmp_path / "run", settings),
    ):
        pass
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"scale": "1"},
        {"scale": float("nan")},
        {"median_error": "none"},
        {"macro": []},
        {"parts": []},
        {"parts": [{}]},
        {"deployment": {"target": "eager", "batch": "4"}},
        {"colour": "red"},
    ],
)
def test_a_wrong_table_is_one_message(
    change: dict[str, Any], table_file: Path, tmp_path: Path
) -> None:
    import json

    data = json.loads(table_file.read_text()) | change
    (tmp_path / "wrong.json").write_text(json.dumps(data))

    with pytest.raises(ValueError, match=r"wrong\.json cannot be read as a latency table"):
        LatencyTable.load(tmp_path / "wrong.json")
