"""Results as CSV: a row a network, a row a run."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.strategies.found import all_found, chosen, tested_top1
from benchmarks.strategies.study import SINGLE, Study
from searchspace.architecture import describe
from searchspace.cost import count

Row = Mapping[str, str]
# trained: networks that the run trained alone; front_size: members before some were chosen.
COLUMNS = (
    *("arm", "seed", "key", "mixers", "macs", "params", "fidelity", "trained", "front_size"),
    *("searched_top1", "test_top1", "epochs", "img_size", "space", "num_classes"),
)
RUN_COLUMNS = (
    *("arm", "seed", "trained", "spent_seconds", "until_final_seconds"),
    *("horizon_epochs", "horizon_tau", "horizon_networks", "forecast_error", "last_value_error"),
)


def write_results(study: Study, path: Path) -> None:
    """Write what is there: a row a network, and a row a run beside them.

    Rows of seeds that are not run here stay, e.g. of an earlier day or another machine.
    """
    runs = path.with_name("runs.csv")
    write_rows(path, [*_of_others(study, path), *rows_of(study)])
    write_rows(runs, [*_of_others(study, runs), *runs_of(study)], RUN_COLUMNS)


def _of_others(study: Study, path: Path) -> list[Row]:
    rows = read_rows(path) if path.is_file() else []
    return [row for row in rows if int(row["seed"]) not in study.here()]


def rows_of(study: Study) -> list[Row]:
    """Describe the chosen members of all runs that are done.

    There is no test accuracy until a member is retrained. A run that judged nothing within its
    budget has one row without a network.
    """
    rows = list[Row]()
    for arm, seed, found in all_found(study):
        place = {"arm": arm, "seed": str(seed), "trained": str(found.trained), "front_size": "0"}
        place |= {"img_size": str(study.img_size), "space": study.space}
        rows += [] if found.front else [dict.fromkeys(COLUMNS, "") | place]
        for member in chosen(study, arm, found):
            tested, cost = tested_top1(study, member, seed), count(member.architecture)
            values = (
                *(arm, seed, member.key, describe(member.architecture), cost.macs, cost.params),
                *(member.fidelity, found.trained, len(found.front)),
                *(_number(member.top1), _number(tested), study.epochs, study.img_size),
                *(study.space, member.architecture.num_classes),
            )
            rows.append(dict(zip(COLUMNS, map(str, values), strict=True)))
    return rows


def runs_of(study: Study) -> list[Row]:
    """Describe the runs that are done."""
    return [
        dict.fromkeys(RUN_COLUMNS, "") | {"arm": arm, "seed": str(seed)} | dict(found.run)
        for arm, seed, found in all_found(study)
        if arm != SINGLE
    ]


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def write_rows(path: Path, rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> None:
    """Write results as CSV, whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def read_rows(path: Path) -> list[Row]:
    """Read what `write_rows` wrote."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
