"""Learning rates of detectors and segmenters, step by step."""

from __future__ import annotations

import pytest

from supernet.recipes import load_dense_recipe


def test_a_long_training_warms_up_as_published() -> None:
    """Linearly from a thousandth to all of it within 500 steps, as mmdetection's configuration."""
    recipe = load_dense_recipe("mask_rcnn_1x")
    steps = 12 * 7330
    found = [recipe.lr_at(step, steps) / recipe.lr for step in (0, 250, 499, 500)]
    assert found == pytest.approx([0.001, 0.5005, 1 - 0.999 / 500, 1.0])


@pytest.mark.parametrize("name", ["mask_rcnn_1x", "cascade_mask_rcnn_3x", "upernet_160k"])
@pytest.mark.parametrize("steps", [10, 100, 400])
def test_a_short_trial_is_no_warm_up_only(name: str, steps: int) -> None:
    """It takes a fifth of the steps: behind them the schedule is that of a training without one."""
    recipe = load_dense_recipe(name)
    plain = recipe.model_copy(
        update={"schedule": recipe.schedule.model_copy(update={"warmup_steps": 0})}
    )
    rates = [recipe.lr_at(step, steps) for step in range(steps)]
    without = [plain.lr_at(step, steps) for step in range(steps)]
    fifth = steps // 5
    assert rates[fifth:] == without[fifth:]
    assert rates[0] == pytest.approx(without[0] * recipe.schedule.warmup_factor)
    assert all(one < other for one, other in zip(rates[:fifth], without[:fifth], strict=True))
