"""Print what 50 gpu-days on 64 H100 buy, by the plan as it is: ``python benchmarks/plan_table.py``.

The rates are estimates for an H100 (`benchmarks/simulation/job.py`). The first column is for a
recipe whose batches have one shard, so that a network is trained on one device; the second for
those of 224 pixels, which have eight.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.simulation.devices import DAY
from benchmarks.simulation.job import plan_for
from search.plan import Plan, climbing_text, idle_devices, plan_warnings, supernet_text


def rows(plan: Plan) -> dict[str, str]:
    """Describe each phase of a plan: gpu-days, hours, idle devices, work."""
    work = {
        "supernet": supernet_text(plan),
        "trust": f"{plan.num_trust} networks for {plan.trust_rung} epochs",
        "search": f"{plan.num_judged:,} judged",
        "promote": climbing_text(plan),
        "finish": "",
    }
    idle = idle_devices(plan)
    found = {
        phase: f"{seconds / DAY:.1f} d, {seconds / plan.devices / 3600:.1f} h, {idle[phase]} idle: "
        f"{work[phase]}"
        for phase, seconds in plan.planned.items()
    }
    smallest, largest = plan.retrain_seconds
    found["retrain"] = f"{smallest / DAY:.1f} to {largest / DAY:.1f} d a network"
    return found | {"notes": " ".join(plan_warnings(plan))}


def main() -> None:
    """Print a table in Markdown."""
    plans = [plan_for(64, 50.0, trial_devices=number) for number in (1, 8)]
    columns = [rows(plan) for plan in plans]
    print("| | one device a trial | up to 8 |\n|---|---|---|")
    for phase in columns[0]:
        print(f"| {phase} | " + " | ".join(column[phase] for column in columns) + " |")


if __name__ == "__main__":
    main()
