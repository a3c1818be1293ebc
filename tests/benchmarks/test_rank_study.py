"""The rank-correlation study goes on where it was killed, and its table says all."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.rank_study import (
    StudySettings,
    analyse,
    choose_networks,
    read_results,
    read_table,
    result_table,
    run_study,
    study_jobs,
    study_space,
    write_table,
)
from supernet.data import prepare_data

SPACE = """
name: tiny
img_size: 8
patch_size: 4
stages: [{dim: 8, depth: 1}]
mixers:
  window_attention: {window_size: 2, num_heads: [1, 2], terms: [qk+bias, qr+bias]}
  depthwise_conv: {kernel_size: [3, 5]}
"""


def settings(space: Path) -> StudySettings:
    return StudySettings(
        space=str(space),
        networks=3,
        seeds=1,
        epochs=1,
        short_epochs=1,
        supernets=("uniform-unshared", "fair-unshared", "uniform-shared"),
        supernet_epochs=1,
    )


def test_a_study_goes_on_after_a_kill_and_does_nothing_twice(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(SPACE)
    asked = settings(tmp_path / "tiny.yaml")
    prepare_data("digits", img_size=8, folder=tmp_path / "data")
    first = []
    for job in run_study(asked, tmp_path, workers=0):
        first.append(job)
        if len(first) == 3:
            break  # as a kill would, after a result was written
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"kind": "alone", "na')  # and in the middle of a line
    second = list(run_study(asked, tmp_path, workers=0))
    networks = choose_networks(asked, study_space(asked, tmp_path))
    assert [*first, *second] == study_jobs(asked, networks)
    assert len(read_results(tmp_path)) == len(first) + len(second)
    assert list(run_study(asked, tmp_path, workers=0)) == []
    rows = result_table(asked, tmp_path)
    write_table(tmp_path / "table.csv", rows)
    assert read_table(tmp_path / "table.csv") == rows
    estimators = {"alone-0", "train-short", "nwot", "synflow", "grad_norm", "zen"}
    names = {job.name for job in [*first, *second] if job.kind == "supernet"}
    assert names == {"uniform", "fair", "uniform-shared"}
    supernets = {f"supernet-{name}" for name in asked.supernets}
    assert {*estimators, *supernets} <= rows[0].keys()
    assert all(value for row in rows for value in row.values())
    assert {found.name for found in analyse(rows)} == (
        {"params", "macs", *estimators, *supernets} - {"alone-0"}
    )


def test_the_same_seed_names_the_same_networks(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(SPACE)
    asked = settings(tmp_path / "tiny.yaml")
    prepare_data("digits", img_size=8, folder=tmp_path / "data")
    space = study_space(asked, tmp_path)
    networks = choose_networks(asked, space)
    assert networks == choose_networks(asked, space)
    assert len(networks) == 3
    assert all(space.violation(architecture) is None for architecture in networks.values())


def test_estimators_are_compared_with_the_mean_over_seeds() -> None:
    rng = random.Random(0)
    rows = []
    for number in range(9):
        noise = rng.uniform(0, 5)
        rows.append(
            {
                "key": str(number),
                "description": "",
                "params": str(100 - number),
                "macs": "7",
                "alone-0": str(number + noise),
                "alone-1": str(number - noise),
                "good": str(number**3),
                "half": str(number) if number % 2 else "",
                "architecture": ARCHITECTURE,
            }
        )
    found = {trust.name: trust for trust in analyse(rows)}
    assert found["good"].tau.tau == pytest.approx(1)
    assert found["params"].tau.tau == pytest.approx(-1)
    assert found["macs"].tau.tau is None  # the same for all networks
    assert "half" not in found
    ceiling = found["seeds"].tau.tau
    assert ceiling is not None
    assert ceiling < 1
    assert found["good"].top_tau.num_points == 3


def test_networks_that_are_not_trained_yet_are_left_out() -> None:
    rows = [
        {"params": str(n), "alone-0": str(n) if n < 4 else "", "architecture": ARCHITECTURE}
        for n in range(6)
    ]
    assert [(t.name, t.tau.num_points) for t in analyse(rows)] == [("params", 4)]


ARCHITECTURE = (
    '{"family": "swin", "img_size": 8, "in_chans": 3, "num_classes": 10, "patch_size": 4, '
    '"stages": [{"dim": 8, "mixers": [{"kind": "depthwise_conv", "kernel_size": 3}], '
    '"mlp_ratio": 4.0}]}'
)
