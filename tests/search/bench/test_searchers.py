"""`search bench`: the measure is the one defined, and the table is complete without a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import search.bench.problems
from search.bench.landscapes import Landscape, regimes, rugged
from search.bench.problems import OF_TABLES, problem_by_name
from search.bench.searchers import Row, print_table
from search.results.dominance import hypervolume
from search.sampling.design_space import draw_random

TABLES = Path(__file__).parents[3].parent / "shared/bench"
TABLE = TABLES / "nas-bench-macro_cifar10.json"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search.bench.problems, "RANDOM_DESIGNS", 60)
    monkeypatch.setattr(search.bench.problems, "EVOLVED_DESIGNS", 250)


def test_the_bench_prints_a_row_for_every_searcher(quick: None) -> None:
    lines: list[str] = []
    print_table(
        "conditional",
        table=None,
        searchers=("random", "optuna-nsga2", "guided", "plain-guided"),
        seeds=2,
        evaluations=24,
        line=lines.append,
    )
    assert "worst seed" in lines[0]
    assert "@3 | @6 | @12 | @24" in lines[1]
    assert [row.split(" | ")[0] for row in lines[2:]] == [
        "| random",
        "| optuna-nsga2",
        "| guided",
        "| plain-guided",
    ]
    assert all(row.endswith("| 100% |") for row in (lines[2], lines[4], lines[5]))


@pytest.mark.parametrize("name", ["conditional", "micro", "micro-3", "rugged-6x5", "regimes-6x5"])
def test_a_problem_says_the_same_each_time_and_its_front_has_the_fraction_1(
    name: str, quick: None
) -> None:
    problem = problem_by_name(name)
    rng = np.random.default_rng(0)
    designs = [draw_random(problem.space, rng).design for _ in range(5)]
    for design in designs:
        np.testing.assert_array_equal(problem.observe(design), problem.observe(design))
        known = problem.space.known_losses(design)
        for value, loss in zip(known, problem.judge(design), strict=bool(known)):
            assert value is None or value == loss
    assert 0 < problem.fraction(designs) < 1


def test_unknown_problems_searchers_and_tables_are_refused(tmp_path: Path, quick: None) -> None:
    def run(table: Path | None, problem: str | None, searcher: str) -> None:
        print_table(problem, table=table, searchers=(searcher,), seeds=1, evaluations=4, line=fail)

    def fail(line: str) -> None:
        raise AssertionError(f"{line!r} was printed before all was checked")

    with pytest.raises(ValueError, match=r"Unknown problem 'x'. Known: nas-bench-macro"):
        run(None, "x", "random")
    with pytest.raises(ValueError, match=r"Unknown searcher 'x'. Known: guided"):
        run(None, "micro", "x")
    with pytest.raises(ValueError, match=r"cannot be read as the table.*NAS-Bench-Macro"):
        run(tmp_path / "missing.json", None, "random")
    (tmp_path / "small.json").write_text(
        json.dumps({"0": {"mean_acc": 1.0, "test_acc": [1.0], "flops": 2}})
    )
    with pytest.raises(ValueError, match="holds 1 networks, not 6,561"):
        run(tmp_path / "small.json", None, "random")
    with pytest.raises(ValueError, match=r"cannot be read as the table.*Accel-NASBench"):
        run(tmp_path / "missing.csv", "accel-nasbench", "random")
    with pytest.raises(ValueError, match="'micro' needs no table"):
        run(tmp_path / "small.json", "micro", "random")


def test_the_interval_is_students() -> None:
    row = Row(searcher="x", fractions=np.array([[0.5], [0.7], [0.9]]), distinct=1.0)
    # t for 2 degrees of freedom is 4.3027, the standard error 0.2 / sqrt(3).
    assert row.intervals() == [(pytest.approx(0.7), pytest.approx(4.3027 * 0.2 / 3**0.5, 1e-4))]


@pytest.mark.skipif(not TABLE.is_file(), reason="NAS-Bench-Macro is not in ../shared/bench")
def test_the_table_is_scaled_as_defined() -> None:
    table = json.loads(TABLE.read_text())
    error = np.array([100 - entry["mean_acc"] for entry in table.values()])
    flops = np.array([entry["flops"] for entry in table.values()], dtype=float)
    x = (error - error.min()) / (np.quantile(error, 0.9) - error.min())
    y = (flops - flops.min()) / (flops.max() - flops.min())
    reference = np.array([1.01, 1.01])
    some = list(table)[::500]
    chosen = np.column_stack([x, y])[::500]
    full = hypervolume(np.column_stack([x, y]), reference)
    expected = hypervolume(chosen, reference) / full
    assert problem_by_name("nas-bench-macro", TABLE).fraction(some) == pytest.approx(expected)


@pytest.mark.skipif(not TABLE.is_file(), reason="NAS-Bench-Macro is not in ../shared/bench")
def test_one_seed_is_told_and_the_mean_of_three_judged() -> None:
    table = json.loads(TABLE.read_text())
    problem = problem_by_name("nas-bench-macro-1", TABLE)
    for key in list(table)[::1000]:
        told, judged = table[key]["test_acc"], table[key]["mean_acc"]
        assert problem.observe(key)[0] == pytest.approx(100 - told[0])
        assert problem.judge(key)[0] == pytest.approx(100 - judged)


@pytest.mark.skipif(not TABLES.is_dir(), reason="../shared/bench is not there")
def test_accel_nasbench_is_predicted_for_networks_that_are_not_in_the_table(quick: None) -> None:
    path = TABLES / "accel-nasbench_imagenet.csv"
    problem = problem_by_name("accel-nasbench", path)
    network = draw_random(problem.space, np.random.default_rng(0)).design
    assert network not in path.read_text()
    np.testing.assert_array_equal(problem.judge(network), problem.observe(network))
    assert 0 < problem.fraction([network]) < 1


@pytest.mark.parametrize("landscape", [rugged(6, 4, seed=0), regimes(6, 4, seed=0)])
def test_a_landscape_has_what_makes_a_search_hard(landscape: Landscape) -> None:
    error, cost = landscape.losses.T
    failed = error > 70
    assert 0.05 < failed.mean() < 0.16
    # Most designs are in the cheapest part of the range.
    share = (cost - cost.min()) / np.ptp(cost)
    assert np.median(share) < 0.4
    # Single choices, added up, explain less than half of what the error of usual designs is.
    digits = np.indices(landscape.sizes).reshape(6, -1).T[~failed]
    one_hot = (digits[:, :, None] == np.arange(4)).reshape(len(digits), -1)
    features = np.column_stack([one_hot, np.log(cost[~failed])]).astype(float)
    left = error[~failed] - features @ np.linalg.lstsq(features, error[~failed], rcond=None)[0]
    assert np.std(left) > 1.5
    assert landscape.place((0,) * 6) == 0
    assert landscape.place((3,) * 6) == len(error) - 1


def test_every_table_is_a_problem() -> None:
    assert set(OF_TABLES) < set(search.bench.problems.PROBLEMS)
