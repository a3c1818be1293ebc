"""Change the program's meaning a little, again and again, and see whether its tests notice.

``python benchmarks/mutate.py [--count N] [--seed S] [--only PATH ...]`` samples changes of
`benchmarks/mutation/changes.py` over the modules that decide numbers; ``--named`` makes those of
`benchmarks/mutation/named.py`, which no test noticed once. Both work in a copy of the tree.

The tests of a change are those that enter the changed function, found by running the tests of these
modules once (``reach.json``): the quickest first, until one fails. They run in forks of a process
that has collected all tests, ``--jobs`` at a time; where a change is outside of functions, in a
process of its own. Every result is a line of ``results.jsonl`` in ``--out``, and what is there is
not done again. ``--again RESULTS`` makes those that survived another time, before tests were
written for them. ``--report`` counts them; ``--equivalent FILE`` leaves out the changes that it
names, one a line, the reason behind ``#``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.mutation.changes import Change, changes_of, is_python
from benchmarks.mutation.forks import Work, is_inside_function, run_forks
from benchmarks.mutation.named import NAMED
from benchmarks.mutation.scope import MODULES, TESTS
from benchmarks.mutation.trial import TIMES_SLOWER, Copy, Reach

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A module with one change; ``name`` says which, whatever else stands in the module."""

    name: str
    module: str
    line: int
    source: str
    tests: str | None = None
    is_inside: bool = False  # a function's body


def main() -> None:
    """Make changes, run their tests, print what was noticed."""
    arguments = _arguments()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    results = out / ("named.jsonl" if arguments.named else "results.jsonl")
    if not arguments.report:
        chosen = named() if arguments.named else sampled(arguments)
        known = {row["name"] for row in read(results)}
        missing = [mutant for mutant in chosen if mutant.name not in known]
        if missing:
            with Copy(ROOT) as copy:
                reach = Reach({}, {})
                if not arguments.named:
                    reach = Reach.load(out / "reach.json", copy, MODULES, TESTS)
                    copy.compile(TESTS)
                    inside = [mutant for mutant in missing if mutant.is_inside]
                    judge_in_forks(copy, reach, inside, arguments, results.resolve())
                for mutant in missing:
                    if not mutant.is_inside:
                        write(results, judge(copy, reach, mutant, arguments.most_seconds))
        names = {mutant.name for mutant in chosen}
        report([row for row in read(results) if row["name"] in names], arguments.equivalent)
        return
    report(read(results), arguments.equivalent)


def sampled(arguments: argparse.Namespace) -> list[Mutant]:
    """Draw changes over all modules alike: every function's every change may be drawn."""
    pool = []
    for module in arguments.only or sorted(MODULES):
        source = (ROOT / module).read_text(encoding="utf-8")
        seen: Counter[str] = Counter()
        for change in changes_of(source):
            old = " ".join(change.old.split())
            said = f"{module}: {change.kind}: {old[:70]} -> {change.text[:70]}"
            seen[said] += 1
            name = f"{said} ({seen[said]})" if seen[said] > 1 else said
            pool.append((name, module, source, change))
    if arguments.again is not None:
        survived = {row["name"] for row in read(arguments.again) if row["end"] == "survived"}
        return [mutant_of(*row) for row in pool if row[0] in survived]
    random.Random(arguments.seed).shuffle(pool)
    changed = (mutant_of(*row) for row in pool)
    return list(islice((mutant for mutant in changed if is_python(mutant.source)), arguments.count))


def mutant_of(name: str, module: str, source: str, change: Change) -> Mutant:
    """Make a change of a module's text."""
    column = change.start - (source.encode().rfind(b"\n", 0, change.start) + 1)
    return Mutant(
        name,
        module,
        change.line,
        change.apply(source),
        is_inside=is_inside_function(source, change.line, column),
    )


def named() -> list[Mutant]:
    """Make the changes that stand in `NAMED`; what is gone from the program is printed."""
    found = []
    for name, module, old, new, tests in NAMED:
        source = (ROOT / module).read_text(encoding="utf-8")
        if source.count(old) != 1:
            print(f"Not to be found exactly once: {name} ({module})")
            continue
        line = source[: source.index(old)].count("\n") + 1
        found.append(Mutant(name, module, line, source.replace(old, new), tests))
    return found


def batches_for(
    copy: Copy, reach: Reach, mutant: Mutant, most_seconds: float
) -> Iterator[tuple[list[str], float]]:
    """Yield the tests of a change: those that it names, else those that enter what was changed."""
    if mutant.tests is not None:
        yield [mutant.tests], most_seconds * TIMES_SLOWER
        return
    pristine = (copy.folder / mutant.module).read_text(encoding="utf-8")
    yield from reach.batches(pristine, mutant.module, mutant.line, most_seconds)


def judge(copy: Copy, reach: Reach, mutant: Mutant, most_seconds: float) -> dict[str, Any]:
    """Run the tests that enter what was changed."""
    end, tests = "survived", 0
    for batch, seconds in batches_for(copy, reach, mutant, most_seconds):
        tests += len(batch)
        end = copy.run(mutant.module, mutant.source, batch, seconds)
        if end != "survived":
            break
    return told(mutant, end, tests, sys.stdout.fileno())


def judge_in_forks(
    copy: Copy,
    reach: Reach,
    mutants: Sequence[Mutant],
    arguments: argparse.Namespace,
    results: Path,
) -> None:
    """Run the tests that enter what was changed, of several changes at a time."""
    by_name = {mutant.name: mutant for mutant in mutants}
    terminal = os.dup(sys.stdout.fileno())  # the child's output goes elsewhere

    def works() -> Iterator[Work]:
        for mutant in mutants:
            pristine = (copy.folder / mutant.module).read_text(encoding="utf-8")
            found = batches_for(copy, reach, mutant, arguments.most_seconds)
            tests = [test for batch, _ in found for test in batch]
            yield Work(
                name=mutant.name,
                module=mutant.module,
                pristine=pristine,
                source=mutant.source,
                tests=tests,
                seconds=sum(reach.seconds[test] for test in tests),
            )

    def on_end(work: Work, end: str) -> None:
        write(results, told(by_name[work.name], end, len(work.tests), terminal))

    run_forks(copy, TESTS, works(), on_end, jobs=arguments.jobs)


def told(mutant: Mutant, end: str, tests: int, terminal: int) -> dict[str, Any]:
    """Print what became of a change, and describe it for the file of results."""
    os.write(terminal, f"{end:9} {mutant.module}:{mutant.line} {mutant.name}\n".encode())
    return {
        "name": mutant.name,
        "module": mutant.module,
        "line": mutant.line,
        "tests": tests,
        "end": end,
    }


def report(rows: Sequence[dict[str, Any]], equivalent: Path | None) -> None:
    """Print how many of the changes were noticed, by module, and which were not."""
    left_out = set() if equivalent is None else read_equivalent(equivalent)
    judged = [row for row in rows if row["name"] not in left_out]
    noticed = Counter(row["module"] for row in judged if row["end"] != "survived")
    for module, total in sorted(Counter(row["module"] for row in judged).items()):
        print(f"{noticed[module]:4} of {total:4} noticed  {module}")
    for row in judged:
        if row["end"] == "survived":
            print(f"survived  {row['module']}:{row['line']}  {row['name']}")
    total = len(judged)
    share = 100 * noticed.total() / max(total, 1)
    print(
        f"{noticed.total()} of {total} changes were noticed ({share:.1f} %), "
        f"{len(rows) - total} equivalent ones left out."
    )


def read_equivalent(path: Path) -> set[str]:
    """Read the names of changes that change nothing."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {line.rpartition("  # ")[0] or line for line in lines if line.strip()}


def read(path: Path) -> list[dict[str, Any]]:
    """Read results, without a line that a kill left half written."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def write(path: Path, row: dict[str, Any]) -> None:
    """Add a result."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _arguments(words: Iterable[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--count", type=int, default=200, help="changes to make")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="PATH", help="modules, e.g. search/budget.py")
    parser.add_argument(
        "--again", type=Path, help="results.jsonl of another time: what survived there, and is here"
    )
    parser.add_argument("--named", action="store_true", help="the named changes instead")
    parser.add_argument("--report", action="store_true", help="only count what is there")
    parser.add_argument("--equivalent", type=Path, help="changes to leave out, one a line")
    parser.add_argument("--jobs", type=int, default=2, help="changes at a time")
    parser.add_argument("--most-seconds", type=float, default=300.0, help="of tests for a change")
    parser.add_argument("--out", type=Path, default=Path("runs/mutation"))
    return parser.parse_args(None if words is None else list(words))


if __name__ == "__main__":
    main()
