"""The main job as a user runs it: a whole search on real digits, killed, resumed, extended."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from search.plan import PHASES
from search.record.record import Record

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

SPACE = """
name: tiny
img_size: 8
patch_size: 2
mlp_ratio: [1, 0.5, 2]
stages: [{dim: 8, depth: 1}, {dim: 16, depth: 1}]
mixers:
  window_attention: {window_size: 4, num_heads: [1, 2, 4], terms: [qk+bias, qr+bias, rk, bias]}
  depthwise_conv: {kernel_size: [3, 5]}
  elsa: {kernel_size: [3, 5], num_heads: [1, 2], lam: [0, 1, 2], gamma: [0, 1]}
"""
BUDGET_SECONDS = 100.0
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "80"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was interrupted in one phase, killed in another, and resumed to its end."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "tiny.yaml").write_text(SPACE)
    first = ("run", "--budget", f"{BUDGET_SECONDS}cpu-seconds", "--space", "tiny.yaml")
    # A machine that is busy has no time to check the supernet: then both stop it in the search.
    assert stop_in(folder, first, ("trust", "search"), signal.SIGINT) == 130
    assert stop_in(folder, ("run", "--resume"), ("search",), signal.SIGKILL) == -signal.SIGKILL
    with Record.open(folder / "run" / "record.db") as record:
        before = record.spent(PHASES)
    done = search(folder, "run", "--resume")
    assert done.returncode == 0, done.stderr
    (folder / "before.txt").write_text(str(before))
    (folder / "output.txt").write_text(done.stdout)
    return folder


def stop_in(folder: Path, words: tuple[str, ...], phases: tuple[str, ...], number: int) -> int:
    """Start a run, send it a signal when one of some phases has begun; return its exit status."""
    with (folder / f"{phases[0]}.log").open("w") as log:
        process = subprocess.Popen(
            command(*words), cwd=folder, env=ENVIRONMENT, stdout=log, stderr=log
        )
        try:
            wait_for_phase(folder / "run", phases, process)
            process.send_signal(number)
            return process.wait(60)
        finally:
            process.kill()
            process.wait()


def command(*words: str, out: str = "run") -> list[str]:
    options = ["--out", out] if words[0] == "run" else []
    return [sys.executable, "-m", "search", *words, *options]


def search(folder: Path, *words: str, out: str = "run") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words, out=out),
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def wait_for_phase(run: Path, phases: tuple[str, ...], process: subprocess.Popen[bytes]) -> None:
    """Wait until one of some phases has been charged."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be killed"
        if (run / "record.db").exists():
            with Record.open(run / "record.db") as record:
                if not record.spent_by_phase().keys().isdisjoint(phases):
                    return
        time.sleep(0.2)
    raise AssertionError(f"the run never reached the phases {phases}")


def test_an_interrupted_run_says_how_to_go_on(folder: Path) -> None:
    log = (folder / "trust.log").read_text()
    assert "Stopped by SIGINT. Go on with: search run --resume --out run" in log
    assert "Traceback" not in log


def test_a_budget_of_devices_that_are_not_there_leaves_nothing(folder: Path) -> None:
    refused = search(folder, "run", "--budget", "1gpu-minute", "--space", "tiny.yaml", out="gpu")
    assert refused.returncode == 2
    assert "this cluster has no GPU" in refused.stderr
    assert not (folder / "gpu").exists()


def test_a_cluster_that_is_not_there_is_one_message(folder: Path) -> None:
    words = ("run", "--budget", "1cpu-minute", "--ray-address", "127.0.0.1:9")
    refused = search(folder, *words, out="nowhere")
    assert refused.returncode == 2
    assert "No cluster answers at 127.0.0.1:9 (" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (folder / "nowhere").exists()


def test_a_killed_and_resumed_run_keeps_its_budget(folder: Path) -> None:
    with Record.open(folder / "run" / "record.db") as record:
        spent = record.spent(PHASES)
        trials = record.trials()
    assert 0.9 * BUDGET_SECONDS <= spent <= 1.01 * BUDGET_SECONDS  # what is promised
    assert float((folder / "before.txt").read_text()) < spent
    assert not any(trial.state == "running" for trial in trials)
    judged = [(trial.key, trial.fidelity, trial.seed) for trial in trials]
    assert len(set(judged)) == len(judged)


def test_it_ends_with_a_front_and_the_next_commands(folder: Path) -> None:
    output = (folder / "output.txt").read_text()
    # On a slow machine nothing that was promoted arrives, and the supernet's is the best answer.
    assert re.search(r"Pareto front \((train-\d+e|supernet)", output)
    assert "search pareto run" in output
    assert "search retrain run --arch" in output
    for name in ("report.html", "front.png", "study.db", "space.yaml"):
        assert (folder / "run" / name).stat().st_size > 0


def test_extracted_members_give_the_supernets_logits(folder: Path) -> None:
    with Record.open(folder / "run" / "record.db") as record:
        errors = record.get_meta("extraction")
    assert errors
    assert max(errors.values()) <= 1e-5


def test_the_front_as_json(folder: Path) -> None:
    shown = search(folder, "pareto", "run", "--json")
    members = json.loads(shown.stdout)
    keys = {"id", "key", "fidelity", "top1", "params", "macs", "latency_ms", "architecture"}
    assert members
    assert all(keys <= set(member) for member in members)
    assert {member["fidelity"] for member in members} == {members[0]["fidelity"]}
    one = search(folder, "show", f"run:{members[0]['id']}", "--json")
    assert json.loads(one.stdout)["key"] == members[0]["key"]


def test_status_says_what_was_spent(folder: Path) -> None:
    assert "spent" in search(folder, "status", "run").stdout


def test_a_second_run_into_the_folder_is_refused(folder: Path) -> None:
    again = search(folder, "run", "--budget", "1cpu-minute")
    assert again.returncode == 2
    assert "--resume" in again.stderr


def test_retraining_reads_the_test_split_and_is_shown_beside_the_search(folder: Path) -> None:
    assert not list((folder / "run" / "data").glob("*test*images*"))
    members = json.loads(search(folder, "pareto", "run", "--json").stdout)
    number = str(members[-1]["id"])
    first, again = (
        search(folder, "retrain", "run", "--arch", number, "--epochs", "2") for _ in range(2)
    )
    assert first.returncode == again.returncode == 0, first.stderr + again.stderr
    assert "2 epochs of digits" in first.stdout
    assert "2 epochs of digits" not in again.stdout  # what is done is not done again
    assert "of 359 test images" in first.stdout
    assert "of 359 test images" in again.stdout
    (out,) = (folder / "run" / "retrain").iterdir()
    for name in ("model.safetensors", "architecture.json", "recipe.yaml", "result.json"):
        assert (out / name).stat().st_size > 0
    with Record.open(folder / "run" / "record.db") as record:
        assert record.spent(["retrain"]) > 0
        assert record.spent(PHASES) <= 1.01 * BUDGET_SECONDS


def test_a_finished_run_goes_on_with_more_budget(folder: Path) -> None:
    more = 1.6 * BUDGET_SECONDS
    shutil.copytree(folder / "run", folder / "more")
    with Record.open(folder / "run" / "record.db") as record:
        before = {trial.id: trial for trial in record.trials(state="done")}
        supernet = record.spent(["supernet"])
    extended = search(folder, "run", "--resume", "--budget", f"{more}cpu-seconds", out="more")
    assert extended.returncode == 0, extended.stderr
    with Record.open(folder / "more" / "record.db") as record:
        after = {trial.id: trial for trial in record.trials(state="done")}
        assert 0.9 * more <= record.spent(PHASES) <= 1.01 * more
        assert record.spent(["supernet"]) == pytest.approx(supernet)  # its schedule has ended
    assert before.items() <= after.items()
    assert len(after) > len(before)


def test_a_smaller_budget_is_refused(folder: Path) -> None:
    refused = search(folder, "run", "--resume", "--budget", "5cpu-seconds")
    assert refused.returncode == 2
    assert "keeps its budget or gets a larger one" in refused.stderr


def test_the_doctor_finds_this_machine_sound(tmp_path: Path) -> None:
    found = search(tmp_path, "doctor", "--data", "digits")
    assert found.returncode == 0, found.stdout
    for name in ("packages", "devices", "kernels", "network", "ray", "data"):
        assert f"ok    {name}:" in found.stdout
