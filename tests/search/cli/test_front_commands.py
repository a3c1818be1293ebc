"""`pareto`, `select` and `compare` on a run: what they print, sort, leave out and refuse."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from search.record.record import Record
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


def test_limits_leave_out_what_is_larger(capsys: pytest.CaptureFixture[str]) -> None:
    rows = printed_json(capsys, "pareto", "run")
    limit = rows[2]["macs"]

    within = printed_json(capsys, "pareto", "run", "--max-macs", str(limit))

    assert [row["id"] for row in within] == [row["id"] for row in rows[:3]]


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
    assert "The run is done." in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("pareto", "run", "--sort", "colour"), "Cannot sort by 'colour'. Columns: id, top1"),
        (("pareto", "run", "--objectives", "speed"), "Objectives are top1, macs"),
        (("pareto", "run", "--objectives", "top1,latency_ms"), "measured for no network"),
        (
            ("select", "run", "--top", "0"),
            "should be greater than or equal to 1, got '0'",
        ),
        (("select", "run", "--budget", "1cpu-second"), "No retraining fits in 1 device-seconds"),
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
