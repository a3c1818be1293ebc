"""The study of strategies: its fronts, volumes and tables, and what it does again after a kill."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import compare_strategies
from benchmarks.compare_strategies import main
from benchmarks.strategies import found as finding
from benchmarks.strategies import work
from benchmarks.strategies.found import found_by
from benchmarks.strategies.rows import COLUMNS, Row, read_rows, rows_of, write_rows
from benchmarks.strategies.singles import single_networks
from benchmarks.strategies.study import Found, Member, Study, choose_members
from benchmarks.strategies.tables import (
    best_top1,
    front_hypervolume,
    gain_over_single,
    half_width,
    log_hypervolume,
    tables,
)
from benchmarks.strategies.work import run_study
from search.record.record import Record
from search.retraining.model_card import RetrainResult
from search.retraining.out_folder import RESULT_FILE
from searchspace.cost import count
from searchspace.single_mixer import is_single_mixer
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
    write_run(tmp_path / "proxy-s0", [trial(1, correct=0, state="failed")])
    (empty,) = rows_of(study(tmp_path))
    assert (empty["arm"], empty["front_size"], empty["key"]) == ("proxy", "0", "")
    volumes, _, best = tables([empty, row("supernet", 0, LEAST, "55")]).split("\n\n")
    assert "| proxy - supernet | -50.00 | -50.00 | - |" in volumes
    assert "| proxy | - | - | - |" in best


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
    volumes, _, best = tables(rows).split("\n\n")
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
    """Takes the place of the program, the script and retraining: all end at once."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.commands: list[tuple[str, ...]] = []
        self.retrained: list[tuple[str, int]] = []
        self.kill_at = -1
        patch.setattr(work, "_command", self)
        patch.setattr(work, "_retrain", self.retrain)

    def __call__(self, *words: object) -> None:
        self.commands.append(tuple(map(str, words)))
        folder = Path(str(words[-1]))
        if len(self.commands) == self.kill_at:
            (folder / "data").mkdir(parents=True)  # while it read the images
            raise KeyboardInterrupt
        if "--resume" in words:
            with Record.open(folder / "record.db") as record:
                record.set_meta("phase", "done")
        elif words[0] == "run":
            write_run(folder, [trial(n, correct=60 + 20 * n) for n in (3, 4)])
        else:
            write_script(folder, (4, 5))

    def retrain(self, study: Study, members: Sequence[Member], seed: int) -> Iterator[None]:
        for member in members:
            self.retrained.append((member.key, seed))
            folder = study.out / "retrained" / f"{member.key}-s{seed}"
            finish_retraining(folder, member.key, top1=50.0 + seed)
            yield


def write_script(folder: Path, numbers: Sequence[int]) -> None:
    """Leave what the script of an afternoon leaves: a network after every ten seconds."""
    trials = [
        {
            "key": network(n).key,
            "architecture": network(n).to_dict(),
            "top1": 10.0 * n,
            "macs": count(network(n)).macs,
            "params": 1,
            "spent": 10.0 * place,
        }
        for place, n in enumerate(numbers, start=1)
    ]
    folder.mkdir(parents=True)
    (folder / "trials.json").write_text(json.dumps({"epochs": 4, "trials": trials}))


def finish_retraining(folder: Path, key: str, *, top1: float) -> None:
    """Leave what a retraining leaves of a network."""
    result = RetrainResult(
        key=key,
        recipe="micro",
        epochs=9,
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


def names(commands: list[tuple[str, ...]]) -> list[str]:
    return [Path(words[-1]).name for words in commands]


def test_a_seed_is_finished_before_the_next_and_a_network_is_retrained_once_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, asked = Program(monkeypatch), study(tmp_path, seeds=2)
    run_study(asked, tmp_path / "rows.csv")
    arms = ("supernet", "proxy", "nsga2", "tpe", "random")
    assert names(program.commands) == [f"{arm}-s{seed}" for seed in (0, 1) for arm in arms]
    # Runs have 3 and 4, scripts 4 and 5.
    keys = [network(n).key for n in (3, 4, 5)]
    assert program.retrained == [(key, seed) for seed in (0, 1) for key in keys]
    rows = read_rows(tmp_path / "rows.csv")
    assert rows == rows_of(asked)
    assert len(rows) == 2 * len(arms) * 2
    assert {(row["seed"], row["test_top1"]) for row in rows} == {("0", "50.00"), ("1", "51.00")}
    runs = read_rows(tmp_path / "runs.csv")
    assert [(row["arm"], row["trained"]) for row in runs] == [(a, "2") for a in arms] * 2


def test_a_seed_is_added_to_the_table_of_another_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, table = Program(monkeypatch), tmp_path / "table" / "rows.csv"
    for name in ("table", "monday", "tuesday"):
        (tmp_path / name).mkdir()
    run_study(study(tmp_path / "monday", seeds=1), table)
    monday = read_rows(table)
    asked = replace(study(tmp_path / "tuesday", seeds=2), first_seed=1)
    run_study(asked, table)
    arms = ("supernet", "proxy", "nsga2", "tpe", "random")
    assert names(program.commands) == [f"{arm}-s{seed}" for seed in (0, 1) for arm in arms]
    assert read_rows(table) == [*monday, *rows_of(asked)]
    runs = read_rows(table.with_name("runs.csv"))
    assert [row["seed"] for row in runs] == ["0"] * len(arms) + ["1"] * len(arms)
    run_study(asked, table)
    assert read_rows(table) == [*monday, *rows_of(asked)]


def test_a_table_of_other_settings_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare_strategies, "run_study", lambda study, path: write_rows(path, []))
    monkeypatch.setattr(Study, "prepare", lambda study: SPACE)
    table = str(tmp_path / "rows.csv")
    words = ["--data", "digits", "--cores", "1", "--csv", table]
    main([*words, "--out", str(tmp_path / "monday")])
    main([*words, "--out", str(tmp_path / "tuesday"), "--first-seed", "3", "--seeds", "4"])
    for other in (["--epochs", "9"], ["--budget", "1cpu-minutes"]):
        with pytest.raises(SystemExit):
            main([*words, "--out", str(tmp_path / "wednesday"), *other])
        assert "study with other settings" in capsys.readouterr().err
    main([*words, "--out", str(tmp_path / "wednesday"), "--first-seed", "4", "--seeds", "5"])
    with pytest.raises(SystemExit):
        main([*words, "--out", str(tmp_path / "tuesday"), "--first-seed", "3"])
    assert "--seeds 4" in capsys.readouterr().err
    (tmp_path / "study.json").unlink()
    with pytest.raises(SystemExit):
        main([*words, "--out", str(tmp_path / "monday")])
    assert "says with which settings" in capsys.readouterr().err


def test_a_study_goes_on_after_a_kill_and_does_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, asked = Program(monkeypatch), study(tmp_path)
    for kill_at in (2, 5):
        program.kill_at = kill_at
        with pytest.raises(KeyboardInterrupt):
            run_study(asked, tmp_path / "rows.csv")
    run_study(asked, tmp_path / "rows.csv")
    done = ["supernet-s0", "proxy-s0", "proxy-s0", "nsga2-s0", "tpe-s0", "tpe-s0", "random-s0"]
    assert names(program.commands) == done
    run_study(asked, tmp_path / "rows.csv")
    assert len(program.commands) == len(done)
    assert len(program.retrained) == 3


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


def test_the_script_s_front_is_that_of_its_trials(tmp_path: Path) -> None:
    # 2 costs less than 3 and is as good as it will be; 5 is the best.
    write_script(tmp_path / "tpe-s0", (3, 5, 2))
    found = found_by(study(tmp_path), "tpe", 0)
    assert isinstance(found, Found)
    assert [member.key for member in found.front] == [network(n).key for n in (2, 3, 5)]
    assert found.run["spent_seconds"] == "30"
    assert {member.fidelity for member in found.front} == {"train-4e"}


def test_a_volume_is_reached_when_a_hundredth_is_lacking() -> None:
    spent, volumes = [1.0, 2.0, 3.0, 4.0], [0.5, 0.98, 0.991, 1.0]
    assert finding._until_final(spent, volumes) == 3.0


def test_over_the_logarithm_twice_the_cost_is_as_far_everywhere() -> None:
    middle = math.sqrt(LEAST * MOST)
    assert log_hypervolume([row("proxy", 0, LEAST, "100")]) == pytest.approx(100.0)
    assert log_hypervolume([row("proxy", 0, middle, "100")]) == pytest.approx(50.0)


def test_a_network_is_compared_with_single_mixers_that_cost_no_more() -> None:
    singles = [row("single", 0, macs, top1) for macs, top1 in ((1e6, "50"), (2.1e6, "60"))]
    singles.append(row("single", 0, 2.3e6, "70"))
    ours = [row("supernet", 0, 2e6, "64"), row("supernet", 0, 1e6, "40")]
    assert gain_over_single(ours, singles) == pytest.approx(4.0)
    assert gain_over_single([], singles) is None


def test_single_networks_have_one_mixer_at_sizes_that_span_the_cost() -> None:
    found = single_networks(SPACE, 3)
    assert all(is_single_mixer(one) for one in found)
    assert all(SPACE.violation(one) is None for one in found)
    kernels = {
        tuple(stage.mixers[0].kernel_size for stage in one.stages)
        for one in found
        if one.stages[0].mixers[0].kind == "depthwise_conv"
    }
    assert kernels == {(3, 3, 3), (5, 5, 3), (7, 7, 3)}
    # Five kinds, of which one with three kernels, at three sizes.
    assert len(found) == 7 * 3
    macs = sorted(count(one).macs for one in found)
    assert macs[-1] > 5 * macs[0]


def test_too_few_members_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--members must be at least 2, got 1"):
        replace(study(tmp_path), members=1)
