"""What a plan says in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from search.plan import PlanInputs, climbing_text, make_plan


@pytest.mark.parametrize(("epochs", "words"), [(1, "for 1 epoch"), (3, "for 3 epochs")])
def test_one_epoch_is_no_epochs(epochs: int, words: str) -> None:
    plan = make_plan(
        PlanInputs(
            budget_seconds=600,
            devices=2,
            measured_seconds=1.0,
            supernet_step=0.1,
            trial_step_seconds=((100_000, 0.01), (1_000_000, 0.02)),
            judge_seconds=0.5,
            steps_per_epoch=10,
            max_epochs=3,
            retrain_steps=1_000,
        )
    )

    text = climbing_text(replace(plan, num_promoted=4, rungs=(epochs,)))

    assert text == f"about 4 networks alone {words}"
