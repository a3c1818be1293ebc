"""What is told of every epoch adds up."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from supernet.data import ImageData
from supernet.training.epoch_report import EpochReport
from supernet.training.training import train
from tests.supernet.training.test_training import FULL, new_net, options
from tests.tiny_data import changed, noise, tiny_data


@pytest.fixture
def data(tmp_path: Path) -> ImageData:
    return tiny_data(tmp_path, *noise(44, 8))


def test_the_report_of_an_epoch_adds_up(data: ImageData) -> None:
    recipe = changed(FULL, batch_size=8)
    seen: list[EpochReport] = []
    began = time.perf_counter()

    train(new_net(), data, recipe, replace(options(data), on_epoch=seen.append))

    lasted = time.perf_counter() - began
    num_steps = data.sizes["train"] // 8
    assert [report.epoch for report in seen] == list(range(1, recipe.total_epochs + 1))
    for report in seen:
        assert report.epochs == recipe.total_epochs
        assert report.images == 8 * num_steps
        assert report.skipped_steps == 0
        assert 0 < report.read_seconds + report.augment_seconds <= report.wait_seconds
        assert report.wait_seconds <= report.seconds
    assert sum(report.seconds for report in seen) <= lasted
