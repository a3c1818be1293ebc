"""New members of a finished graft: the best by the scores, within limits, by MACs or by a table."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from search.cli.app import app
from search.front import FrontQuery, judged_by, parse_limits, retarget
from search.run_folder import open_run, own_run
from searchspace.architecture import Architecture
from searchspace.cost import count
from searchspace.graft_space import (
    graft_space,
    offered_replacements,
    replacements,
    with_replacements,
)
from searchspace.latency_table import LatencyTable
from tests.tiny_graft import TEACHER, made_up_score, write_graft, write_table
from tests.tiny_run import write_run


@pytest.fixture(scope="module")
def graft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_graft(tmp_path_factory.mktemp("graft") / "run")


def macs(network: Architecture) -> int:
    return count(network).macs


def least_sum(limit: float) -> float:
    """The smallest sum of made-up scores within a limit, block by block over all costs."""
    offered = offered_replacements(graft_space(TEACHER), TEACHER)
    best = {0: 0.0}
    for stage, block in ((0, 0), (0, 1), (1, 0)):
        own = [one for one in offered if (one.stage, one.block) == (stage, block)]
        mixers = [(one,) for one in own if one.mixer is not None]
        widths = [(one,) for one in own if one.mixer is None]
        grown: dict[int, float] = {}
        for mixer, width in itertools.product([(), *mixers], [(), *widths]):
            both = (*mixer, *width)
            saved = macs(TEACHER) - macs(with_replacements(TEACHER, both))
            score = sum(map(made_up_score, both))
            for known, total in best.items():
                value = grown.get(known + saved, float("inf"))
                grown[known + saved] = min(value, total + score)
        best = grown
    return min(total for saved, total in best.items() if macs(TEACHER) - saved <= limit)


def test_members_are_the_best_within_their_limits(graft: Path) -> None:
    limit = 0.7 * macs(TEACHER)
    with own_run(graft) as run:
        found = retarget(run, {"macs": limit}, None)
    assert found[0].score == pytest.approx(least_sum(limit))
    for one in found:
        assert one.costs["macs"] == macs(one.architecture) <= limit
        assert one.score == pytest.approx(
            sum(map(made_up_score, replacements(TEACHER, one.architecture)))
        )
    assert len({one.architecture.key for one in found}) == len(found) > 1
    with open_run(graft) as run:
        assert [run.architecture(one.id) for one in found] == [one.architecture for one in found]


def test_what_is_beyond_the_limits_of_the_run_is_on_no_front(tmp_path: Path) -> None:
    """The teacher and its single replacements are judged all the same, for their scores."""
    folder, limit = write_graft(tmp_path / "run"), 0.9 * macs(TEACHER)
    with own_run(folder) as run:
        about = run.record.get_meta("settings")
        run.record.set_meta("settings", {**about, "limits": {"macs": limit}})
    with open_run(folder) as run:
        judged = [trial.macs for trial in run.record.trials()]
        found = judged_by(run, FrontQuery())
    assert max(judged) > limit
    assert max(one.macs for one in found) == max(cost for cost in judged if cost <= limit)


def test_another_devices_table_gives_other_members(graft: Path, tmp_path: Path) -> None:
    table = LatencyTable.load(write_table(tmp_path / "table.json"))
    whole = table.predict(TEACHER)
    with own_run(graft) as run:
        found = retarget(run, {"latency": 0.8 * whole}, tmp_path / "table.json")
        both = retarget(
            run, {"latency": 0.9 * whole, "macs": 0.8 * macs(TEACHER)}, tmp_path / "table.json"
        )
    for one in found:
        assert one.costs["latency"] == pytest.approx(table.predict(one.architecture))
        assert one.costs["latency"] <= 0.8 * whole + 1e-9
    for one in both:
        assert macs(one.architecture) <= 0.8 * macs(TEACHER)
        assert table.predict(one.architecture) <= 0.9 * whole + 1e-9


def test_a_table_names_norms_as_the_space_does(tmp_path: Path) -> None:
    """A network of attention alone stores its layer norms as the default; the table covers both."""
    table = LatencyTable.load(write_table(tmp_path / "table.json"))
    assert table.macro["stages"][0]["norm"] == "layer"
    assert TEACHER.stages[0].norm == "default"
    assert table.predict(TEACHER) > 0
    others = TEACHER.replace(stages=tuple(replace(s, norm="batch") for s in TEACHER.stages))
    with pytest.raises(ValueError, match="with stages"):
        table.predict(others)


def test_the_command_says_what_it_chose_and_what_comes_next(graft: Path) -> None:
    words = ["pareto", str(graft), "--limit", f"macs={0.6 * macs(TEACHER):.0f}"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert "not trained" in done.stdout
    assert "search retrain" in done.stdout
    rows = json.loads(CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False).stdout)
    assert all(row["costs"]["macs"] <= 0.6 * macs(TEACHER) for row in rows)
    assert Architecture.from_dict(rows[0]["architecture"]).key == rows[0]["key"]


def test_the_least_that_is_named_is_enough(graft: Path, tmp_path: Path) -> None:
    with own_run(graft) as run:
        for name, table in (("macs", None), ("latency", write_table(tmp_path / "t.json"))):
            with pytest.raises(ValueError, match=f"within {name} <= 0.01; the least") as refused:
                retarget(run, {name: 0.01}, table)
            said = re.search(rf"allow is {name} ([0-9.,]+)\. ", str(refused.value))
            assert said is not None
            least = parse_limits([f"{name}={said[1].replace(',', '')}"])
            assert retarget(run, least, table)


@pytest.mark.parametrize(
    "others",
    [
        ["--max-params", "20M"],
        ["--max-macs", "1M"],
        ["--fidelity", "supernet"],
        ["--sort", "top1"],
        ["--knee"],
        ["--near"],
        ["--watch"],
        ["--latency"],
        ["--device", "cpu"],
    ],
)
def test_what_new_networks_cannot_be_asked_is_refused(others: list[str], graft: Path) -> None:
    words = ["pareto", str(graft), "--limit", "macs=1M", *others]
    with pytest.raises(ValueError, match=f"{others[0]} is of networks that were judged"):
        CliRunner().invoke(app, words, catch_exceptions=False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--limit", "macs=1"], "is within macs <= 1; the least"),
        (["--limit", "speed=3"], "got 'speed=3'"),
        (["--limit", "macs"], "got 'macs'"),
        (["--limit", "macs=0"], "Cannot read the amount"),
        (["--limit", "latency=3ms"], "needs a table of the device"),
        (["--limit", "macs=1M", "--limit", "macs=2M"], "limited twice"),
        (["--latency-table", "x.json"], "Add e.g. --limit"),
        (["--limit", "macs=1M", "--csv", "x.csv"], "--csv is of networks that were judged"),
    ],
)
def test_wrong_limits_are_refused(
    words: list[str], said: str, graft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(graft.parent)
    with pytest.raises(ValueError, match=said):
        CliRunner().invoke(app, ["pareto", str(graft), *words], catch_exceptions=False)


def test_a_run_that_is_no_graft_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    with own_run(tmp_path / "run") as run, pytest.raises(ValueError, match="--max-macs"):
        retarget(run, {"macs": 1e9}, None)


def test_limits_are_read() -> None:
    assert parse_limits(["macs=2G", "latency=3ms", "params=1.5M"]) == {
        "macs": 2e9,
        "latency": 3.0,
        "params": 1.5e6,
    }
