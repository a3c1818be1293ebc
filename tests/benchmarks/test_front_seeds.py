"""The table of fronts by seed says what the runs' records say."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import front_seeds
from benchmarks.front_seeds import make_run, read_front, table
from tests.tiny_run import write_run
from tests.tiny_trials import trial


def test_a_row_says_what_a_run_s_front_spans(tmp_path: Path) -> None:
    # Of 200 images. The second is dearer than the first and worse, so it is on no front.
    three = [trial(1, correct=100), trial(2, correct=90), trial(5, correct=180)]
    cheapest, dearest = (network.macs for network in (three[0], three[2]))

    front = read_front(write_run(tmp_path / "run", three))

    assert [round(member.top1, 1) for member in front.members] == [50.0, 90.0]
    assert front.factor == pytest.approx(dearest / cheapest)
    kinds = {
        mixer.kind
        for one in (three[0], three[2])
        for stage in one.architecture.stages
        for mixer in stage.mixers
    }
    assert set(front.kinds) == kinds
    # One second each, of 600.
    assert (front.num_alone, front.spent_share) == (3, pytest.approx(3 / 600))


def test_the_table_has_a_row_for_each_run(tmp_path: Path) -> None:
    fronts = [read_front(write_run(tmp_path / name)) for name in ("a", "b")]

    lines = table(fronts).splitlines()

    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {11}


def test_a_run_that_is_done_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run")
    monkeypatch.setattr(front_seeds.subprocess, "run", lambda *_, **__: pytest.fail("made again"))

    make_run(run, budget="10cpu-minutes", seed=0)
