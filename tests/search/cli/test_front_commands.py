"""`pareto`, `select` and `compare` on a run: what they print, sort, leave out and refuse."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from search.record import Measured
from search.record.record import Record
from search.run_folder import open_run
from tests.search.cli.test_app import search
from tests.tiny_run import write_run
from tests.tiny_trials import network, trial


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return write_run(tmp_path / "run")


def printed_json(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, object]]:
    assert search(*words, "--json") == 0
    rows: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return rows


def test_the_table_fits_80_columns_and_says_how_sure(capsys: pytest.CaptureFixture[str]) -> None:
    assert search("pareto", "run") == 0
    printed = capsys.readouterr().out

    assert max(map(len, printed.splitlines())) <= 80
    assert "sure" in printed
    assert "1 more network is off the front by no more than noise: --near" in printed


def test_the_columns_sort_in_their_natural_direction(capsys: pytest.CaptureFixture[str]) -> None:
    by_macs = printed_json(capsys, "pareto", "run")
    by_top1 = printed_json(capsys, "pareto", "run", "--sort", "top1")
    by_chance = printed_json(capsys, "pareto", "run", "--sort", "sure")

    macs = [row["macs"] for row in by_macs]
    assert macs == sorted(macs)
    top1 = [row["top1"] for row in by_top1]
    assert top1 == sorted(top1, reverse=True)
    chances = [row["front_probability"] for row in by_chance]
    assert chances == sorted(chances, reverse=True)


def test_limits_leave_out_what_is_larger_and_are_said(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = printed_json(capsys, "pareto", "run")
    limit = int(str(rows[2]["macs"]))

    within = printed_json(capsys, "pareto", "run", "--max-macs", str(limit))

    assert [row["id"] for row in within] == [row["id"] for row in rows[:3]]
    with open_run(run) as folder:
        trials = folder.record.trials(fidelity=str(rows[0]["fidelity"]))
    macs = [one.macs for one in trials if one.state == "done"]
    beyond = sum(one > limit for one in macs)
    assert 0 < beyond < len(macs)
    assert search("pareto", "run", "--max-macs", str(limit)) == 0
    said = (
        f"{beyond} of the {len(macs)} networks that were judged are not within macs <= {limit:,}."
    )
    assert said in " ".join(capsys.readouterr().out.split())
    assert search("pareto", "run", "--max-macs", str(max(macs))) == 0
    assert "not within" not in capsys.readouterr().out


def test_a_limit_below_everything_says_what_the_least_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert search("pareto", "run", "--max-macs", "10") == 2
    error = capsys.readouterr().err

    assert "macs <= 10" in error
    assert f"{trial(1, correct=1).macs:,}" in error


def test_the_knee_is_one_member_of_the_front(capsys: pytest.CaptureFixture[str]) -> None:
    members = printed_json(capsys, "pareto", "run")
    (knee,) = printed_json(capsys, "pareto", "run", "--knee")

    assert knee in members


def test_near_lists_what_only_noise_keeps_off(capsys: pytest.CaptureFixture[str]) -> None:
    rows = printed_json(capsys, "pareto", "run", "--near")

    assert [row["id"] for row in rows if row["near_front"]] == [8]
    assert search("pareto", "run", "--near") == 0
    assert "~8" in capsys.readouterr().out


def test_files_hold_the_rows_that_were_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--csv", "front.csv", "--png", "front.png", "--html", "report.html", "--near")
    rows = printed_json(capsys, "pareto", "run", *words)

    with (tmp_path / "front.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [int(row["id"]) for row in written] == [row["id"] for row in rows]
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    assert "<!doctype html>" in (tmp_path / "report.html").read_text()


def test_watching_a_run_that_is_done_ends_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert search("pareto", "run", "--watch") == 0
    printed = capsys.readouterr().out

    assert "Pareto front" in printed
    assert printed.endswith("\nphase: done\nThe run is done.\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("pareto", "run", "--sort", "colour"), "Cannot sort by 'colour'. Columns: id, top1"),
        (("pareto", "run", "--objectives", "speed"), "Objectives are top1, macs"),
        (
            ("pareto", "run", "--objectives", "top1,latency_ms"),
            "measured for no network here. Leave it out, or add --latency.",
        ),
        (
            ("select", "run", "--top", "0"),
            "should be greater than or equal to 1, got '0'",
        ),
        (("select", "run", "--budget", "1cpu-second"), "No retraining fits in 1 device-seconds"),
        (("select", "run", "--budget", "2gpu-days"), "known in cpu time, as the run counts, got"),
        (("show", "swin_t", "--task", "semantic", "--img-size", "512"), "got --img-size 512"),
        (("show", "timm:resnet18", "--task", "semantic"), "are counted of our networks"),
        (("pareto", "run", "--watch", "--csv", "x.csv"), "--csv is done once, and --watch shows"),
        (("pareto", "run", "--watch", "--json"), "--json is done once"),
        (("compare", "swin_t"), "Compare two or more architectures"),
        (("compare", "swin_t", "swin_q"), "swin_q"),
        (("compare", "run:99", "swin_t"), "no architecture 99"),
    ],
)
def test_wrong_input_gets_one_message(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(*words) == 2
    printed = capsys.readouterr().err

    assert message in printed
    assert sum(line.startswith("Error: ") for line in printed.splitlines()) == 1


def test_the_arguments_of_select_are_those_of_retrain(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = printed_json(capsys, "select", "run", "--top", "3")
    assert search("select", "run", "--top", "3", "--args") == 0

    printed = capsys.readouterr().out
    assert printed == " ".join(f"--arch {row['id']}" for row in chosen) + "\n"


def test_comparing_shows_each_stage_of_each_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert search("compare", "run:1", "run:7", "swin_t") == 0
    printed = capsys.readouterr().out

    assert max(map(len, printed.splitlines())) <= 80
    for text in ("stage0", "stage3", "share", "top-1 %", "train-3e", "81.3", "win7 h3"):
        assert text in printed


def test_latency_is_measured_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    for words, is_measured in ((["--latency"], True), ([], False)):
        for one in printed_json(capsys, "compare", "run:1", "run:2", *words):
            found = [part["latency_ms"] for part in one["parts"]]
            assert all((ms is not None) == is_measured for ms in (*found, one["latency_ms"]))


def test_a_measured_latency_says_on_how_many_threads(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    assert search("compare", "run:1", "run:2", "--latency") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"ms: of one image on this machine, cpu, {torch.get_num_threads()} thread(s)" in said


def test_a_measured_latency_stays_with_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    def latencies(*words: str) -> list[float | None]:
        return [row["latency_ms"] for row in printed_json(capsys, "pareto", "run", *words)]

    assert set(latencies()) == {None}
    measured = latencies("--latency")
    assert all(milliseconds > 0 for milliseconds in measured if milliseconds is not None)
    assert None not in measured
    assert latencies() == measured
    assert latencies("--sort", "latency_ms") == sorted(measured, key=float)
    # It can then be weighed, among the networks that were measured.
    fastest = min(measured, key=float)
    assert fastest in latencies("--objectives", "top1,latency_ms")


def test_compared_parts_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    for one in printed_json(capsys, "compare", "run:2", "elsa_swin_t"):
        parts = one["parts"]
        assert isinstance(parts, list)
        assert sum(part["macs"] for part in parts) == one["macs"]
        assert sum(part["share"] for part in parts) == pytest.approx(1.0)


def test_a_comparison_at_another_image_size_leaves_results_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    own, larger = (
        printed_json(capsys, "compare", "run:1", "run:2", *words)[0]
        for words in ((), ("--img-size", "32"))
    )

    assert own["top1"] == 41.0
    assert larger["top1"] is None
    assert larger["params"] == own["params"]


def test_an_interrupted_run_is_not_watched_for_ever(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import os

    with Record.open(run / "record.db") as record:
        record.set_meta("phase", "search")
    for file in run.glob("record.db*"):
        os.utime(file, (1, 1))

    assert search("pareto", "run", "--watch") == 0

    assert re.search(r"No process has worked on run .* --resume", capsys.readouterr().out, re.S)


def test_the_run_s_networks_are_those_of_the_trials(capsys: pytest.CaptureFixture[str]) -> None:
    rows = printed_json(capsys, "pareto", "run")

    assert [row["key"] for row in rows[:2]] == [network(1).key, network(2).key]


def test_a_front_by_latency_is_of_all_networks_or_says_of_how_many(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_latency = ("pareto", "run", "--objectives", "top1,latency")
    with open_run(run, write=True) as opened:
        opened.state.add_latencies_ms({2: 3.0, 7: 2.0})
    assert search(*by_latency) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "latency_ms was measured for 2 of the 9 networks that were judged; the others" in printed

    assert search(*by_latency, "--latency") == 0
    assert "was measured for" not in capsys.readouterr().out
    with open_run(run) as opened:
        assert len(opened.state.latencies_ms) == 9


def test_the_latencies_that_a_run_weighed_are_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "timed", [trial(1, correct=100, latency_ms=3.0)])
    with Record.open(folder / "record.db") as record:
        record.set_meta(
            "settings", record.get_meta("settings") | {"objectives": ["top1", "latency_ms"]}
        )
    assert search("pareto", "timed") == 0
    assert "Latency: one image, eager, fp32, on an unknown device." in capsys.readouterr().out
    assert search("pareto", "timed", "--latency") == 2
    assert "To time its networks here: search latency timed" in capsys.readouterr().err


def test_a_published_accuracy_is_of_the_paper_s_image_size(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for size, is_said in (("224", True), ("384", False)):
        assert search("compare", "swin_t", "elsa_swin_t", "--img-size", size) == 0
        assert ("81.3" in capsys.readouterr().out) == is_said


def test_an_miou_does_not_stand_in_a_row_of_accuracies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = Measured(miou=40.0, miou_low=38.0, miou_high=42.0, total=50.0)
    write_run(tmp_path / "dense", [replace(trial(1, correct=1), measured=values)])
    assert search("compare", "run:2", "dense:1") == 0
    printed = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines()]
    cells = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in printed if row}
    assert cells["top-1 %"] == ["47.0 ±6.9", "-"]
    assert cells["mIoU %"] == ["-", "40.0 ±2.0"]


def test_networks_are_compared_with_what_their_run_has_measured(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_run(run, write=True) as opened:
        opened.state.add_latencies_ms({2: 3.0})
    assert [row["latency_ms"] for row in printed_json(capsys, "compare", "run:2", "run:3")] == [
        3.0,
        None,
    ]
