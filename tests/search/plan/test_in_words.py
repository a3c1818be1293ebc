"""What a plan says in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from search.plan import climbing_text
from tests.tiny_run import plan_of_minutes


@pytest.mark.parametrize(("epochs", "words"), [(1, "for 1 epoch"), (3, "for 3 epochs")])
def test_one_epoch_is_no_epochs(epochs: int, words: str) -> None:
    plan = plan_of_minutes()

    text = climbing_text(replace(plan, num_promoted=4, rungs=(epochs,)))

    assert text == f"about 4 networks alone {words}"
