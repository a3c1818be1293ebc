"""`search bench`: the measure is the one defined, and the table is complete without a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import search.bench.problems
from search.bench.problems import built_in_problem, table_problem
from search.bench.searchers import Row, print_table
from search.results.dominance import hypervolume
from search.sampling.design_space import draw_random

TABLE = Path(__file__).parents[3].parent / "shared/bench/nas-bench-macro_cifar10.json"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search.bench.problems, "RANDOM_DESIGNS", 60)
    monkeypatch.setattr(search.bench.problems, "EVOLVED_DESIGNS", 250)


def test_the_bench_prints_a_row_for_every_searcher(quick: None) -> None:
    lines: list[str] = []
    print_table(
        None,
        problem="conditional",
        searchers=("random", "optuna-nsga2", "guided", "plain-guided"),
        seeds=2,
        evaluations=24,
        line=lines.append,
    )
    assert "github.com/xiusu/NAS-Bench-Macro" in lines[0]
    assert "@6 | @12 | @24" in lines[2]
    assert [row.split(" | ")[0] for row in lines[3:]] == [
        "| random",
        "| optuna-nsga2",
        "| guided",
        "| plain-guided",
    ]
    assert all(row.endswith("| 100% |") for row in (lines[3], lines[5], lines[6]))


@pytest.mark.parametrize("name", ["conditional", "micro", "micro-3"])
def test_a_problem_says_the_same_each_time_and_its_front_has_the_fraction_1(
    name: str, quick: None
) -> None:
    problem = built_in_problem(name)
    rng = np.random.default_rng(0)
    designs = [draw_random(problem.space, rng).design for _ in range(5)]
    for design in designs:
        np.testing.assert_array_equal(problem.observe(design), problem.observe(design))
        known = problem.space.known_losses(design)
        for value, loss in zip(known, problem.judge(design), strict=bool(known)):
            assert value is None or value == loss
    assert 0 < problem.fraction(designs) < 1


def test_unknown_problems_searchers_and_tables_are_refused(tmp_path: Path, quick: None) -> None:
    def run(table: Path | None, problem: str, searcher: str) -> None:
        print_table(
            table, problem=problem, searchers=(searcher,), seeds=1, evaluations=4, line=print
        )

    with pytest.raises(ValueError, match=r"Unknown problem 'x'. Known: conditional"):
        run(None, "x", "random")
    with pytest.raises(ValueError, match=r"Unknown searcher 'x'. Known: guided"):
        run(None, "micro", "x")
    with pytest.raises(ValueError, match=r"Cannot read the table .*NAS-Bench-Macro"):
        run(tmp_path / "missing.json", "micro", "random")
    (tmp_path / "small.json").write_text(json.dumps({"0": {"mean_acc": 1.0, "flops": 2}}))
    with pytest.raises(ValueError, match="holds 1 networks, not 6,561"):
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
    assert table_problem(TABLE).fraction(some) == pytest.approx(expected)
