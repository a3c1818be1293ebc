"""The study of strategies: its fronts, volumes and tables, and what it does again after a kill."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import compare_strategies
from benchmarks.compare_strategies import (
    COLUMNS,
    Row,
    Study,
    best_top1,
    choose_members,
    front_hypervolume,
    half_width,
    read_rows,
    rows_of,
    run_study,
    tables,
    write_rows,
)
from search.record.record import Record
from search.retraining.model_card import RetrainResult
from search.retraining.out_folder import RESULT_FILE
from searchspace.cost import count
from searchspace.spec_file import load_space
from supernet.training.evaluation import Accuracy
from tests.tiny_run import write_run
from tests.tiny_trials import network, trial

SPACE = load_space("micro").replace(num_classes=10)
LEAST, MOST = (count(SPACE.extreme("macs", largest=end)).macs for end in (False, True))


def row(arm: str, seed: int, macs: float, test_top1: str) -> Row:
    values = {"arm": arm, "seed": str(seed), "key": "k", "macs": str(macs), "test_top1": test_top1}
    return dict.fromkeys(COLUMNS, "") | values | {"img_size": "32"}


def study(out: Path, *, seeds: int = 1) -> Study:
    return Study(
        data="digits",
        budget="10cpu-minutes",
        img_size=32,
        epochs=9,
        members=2,
        seeds=seeds,
        cores=1,
        out=out,
    )


def test_members_are_spread_and_both_ends_are_chosen() -> None:
    assert choose_members("abcdefg", 3) == ("a", "d", "g")
    assert choose_members("abcdefg", 2) == ("a", "g")
    assert choose_members("ab", 3) == ("a", "b")


def test_a_perfect_cheapest_network_fills_the_box_and_chance_none_of_it() -> None:
    assert front_hypervolume([row("proxy", 0, LEAST, "100")]) == pytest.approx(100.0)
    assert front_hypervolume([row("proxy", 0, LEAST, "10")]) == 0.0
    assert front_hypervolume([row("proxy", 0, MOST, "100")]) == 0.0


def test_the_volume_of_two_members_is_the_union_of_their_boxes() -> None:
    middle = (LEAST + MOST) / 2
    members = [row("proxy", 0, LEAST, "55"), row("proxy", 0, middle, "73")]
    # Error 45 of 90 over the whole width, and 18 of 90 more over the dearer half.
    assert front_hypervolume(members) == pytest.approx(50.0 + 0.5 * 20.0)
    # A dominated member adds nothing.
    members.append(row("proxy", 0, middle, "50"))
    assert front_hypervolume(members) == pytest.approx(60.0)
    assert best_top1(members) == 73.0


def test_a_run_that_judged_nothing_has_no_volume(tmp_path: Path) -> None:
    write_run(tmp_path / "random-s0", [trial(1, correct=0, state="failed")])
    (empty,) = rows_of(study(tmp_path))
    assert (empty["arm"], empty["front_size"], empty["key"]) == ("random", "0", "")
    volumes, best = tables([empty, row("supernet", 0, LEAST, "55")]).split("\n\n")
    assert "| random - supernet | -50.00 | -50.00 | - |" in volumes
    assert "| random | - | - | - |" in best


def test_half_width_is_that_of_students_t() -> None:
    # t(0.975, 2) = 4.3027; the standard error of 1, 2, 3 is 1 / sqrt(3).
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert math.isnan(half_width([1.0]))


def test_the_table_pairs_seeds_and_leaves_out_fronts_that_are_not_done() -> None:
    rows = [
        row("supernet", 0, LEAST, "55"),
        row("supernet", 1, LEAST, "64"),
        row("proxy", 0, LEAST, "64"),
        row("proxy", 1, LEAST, "73"),
        row("random", 0, LEAST, "46"),
        row("random", 1, LEAST, "46"),
        row("random", 1, MOST, ""),
    ]
    volumes, best = tables(rows).split("\n\n")
    # Ten points of hypervolume are nine of error at the cheapest network.
    assert "| supernet | 50.00 | 60.00 | 55.00 | ± 63.53 |" in volumes
    assert "| proxy - supernet | +10.00 | +10.00 | +10.00 | ± 0.00 |" in volumes
    assert "| random - supernet | -10.00 | - | -10.00 | - |" in volumes
    assert "| random | 46.00 | - | 46.00 | - |" in best


def test_rows_survive_the_file(tmp_path: Path) -> None:
    rows = [row("proxy", 0, LEAST, "64.25"), row("random", 2, MOST, "")]
    write_rows(tmp_path / "rows.csv", rows)
    assert read_rows(tmp_path / "rows.csv") == rows


class Program:
    """Takes the place of the program: runs end at once with the same front, but for one arm."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.commands: list[tuple[str, ...]] = []
        self.kill_at = -1
        patch.setattr(compare_strategies, "_command", self)

    def __call__(self, *words: object) -> None:
        self.commands.append(tuple(map(str, words)))
        if len(self.commands) == self.kill_at:
            if words[0] == "run":  # while it read the images
                (Path(str(words[-1])) / "data").mkdir(parents=True)
            raise KeyboardInterrupt
        if "--resume" in words:
            with Record.open(Path(str(words[-1])) / "record.db") as record:
                record.set_meta("phase", "done")
        elif words[0] == "run":
            numbers = (4, 5) if "random" in words else (3, 4)
            trials = [trial(n, correct=60 + 20 * n) for n in numbers]
            write_run(Path(str(words[-1])), trials)
        else:
            self._retrain(Path(str(words[1])), [int(str(w)) for w in words[3:-6:2]])

    def _retrain(self, run: Path, ids: list[int]) -> None:
        for number in ids:
            with Record.open(run / "record.db") as record:
                key = record.architecture(number).key
            finish_retraining(run / "retrain" / str(number), key, top1=10.0 * number)


def finish_retraining(folder: Path, key: str, *, top1: float, epochs: int = 9) -> None:
    """Leave what `search retrain` leaves of a network."""
    result = RetrainResult(
        key=key,
        recipe="micro",
        epochs=epochs,
        seed=0,
        start="fresh",
        params=1,
        macs=1,
        data="digits",
        data_fingerprint="",
        crop_pct=1.0,
        device="cpu",
        class_names=(),
        mean=(),
        std=(),
        num_train_images=1,
        seconds=1.0,
        raw=Accuracy(correct=round(top1 * 10), correct_top5=1000, total=1000),
        ema=None,
    )
    folder.mkdir(parents=True)
    (folder / RESULT_FILE).write_text(json.dumps(result.to_dict()))


def names(commands: list[tuple[str, ...]]) -> list[tuple[str, str]]:
    """Return the verb and the run of each command."""
    return [
        (words[0], Path(words[1] if words[0] == "retrain" else words[-1]).name)
        for words in commands
    ]


def test_a_seed_is_finished_before_the_next_and_a_network_is_retrained_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, asked = Program(monkeypatch), study(tmp_path, seeds=2)
    run_study(asked, tmp_path / "rows.csv")
    first = [("run", "supernet-s0"), ("run", "proxy-s0"), ("run", "random-s0")]
    # The front of random search alone has another network; in seed 1 nothing is new.
    retrained = [("retrain", "supernet-s0"), ("retrain", "random-s0")]
    second = [("run", "supernet-s1"), ("run", "proxy-s1"), ("run", "random-s1")]
    assert names(program.commands) == [*first, *retrained, *second]
    rows = read_rows(tmp_path / "rows.csv")
    assert rows == rows_of(asked)
    assert len(rows) == 12
    keys = [network(number).key for number in (3, 4, 5)]
    assert {row["key"]: row["test_top1"] for row in rows} == dict(
        zip(keys, ("10.00", "20.00", "20.00"), strict=True)
    )


def test_a_study_goes_on_after_a_kill_and_does_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, asked = Program(monkeypatch), study(tmp_path)
    for kill_at in (2, 5):
        program.kill_at = kill_at
        with pytest.raises(KeyboardInterrupt):
            run_study(asked, tmp_path / "rows.csv")
    run_study(asked, tmp_path / "rows.csv")
    done = [("run", "supernet-s0"), ("run", "proxy-s0")]
    again = [("run", "proxy-s0"), ("run", "random-s0"), ("retrain", "supernet-s0")]
    assert names(program.commands) == [*done, *again, *again[2:], ("retrain", "random-s0")]
    run_study(asked, tmp_path / "rows.csv")
    assert len(program.commands) == 7


def test_a_run_that_was_begun_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, asked = Program(monkeypatch), study(tmp_path)
    folder = write_run(tmp_path / "supernet-s0")
    with Record.open(folder / "record.db") as record:
        record.set_meta("phase", "search")
    (tmp_path / "proxy-s0").mkdir()
    (tmp_path / "proxy-s0" / "record.db").touch()  # killed before anything was in it
    run_study(asked, tmp_path / "rows.csv")
    assert program.commands[0] == ("run", "--resume", "--out", str(folder))
    assert program.commands[1][:3] == ("run", "--strategy", "proxy")


def test_retrainings_of_another_length_do_not_count(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "proxy-s0")
    for number in (1, 9):
        finish_retraining(folder / "retrain" / str(number), network(number).key, top1=50, epochs=8)
    assert {row["test_top1"] for row in rows_of(study(tmp_path))} == {""}


def test_too_few_members_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--members must be at least 2, got 1"):
        replace(study(tmp_path), members=1)
