"""A tiny run's jobs, and a clock that only their networks move on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from search.run_folder.files import DATA
from search.run_folder.settings import RunSettings
from search.workers import supernet_worker
from search.workers.job import Job, make_job
from supernet.data import prepare_data
from tests.tiny_data import noise, write_images
from tests.tiny_job import NUM_SEARCH, NUM_TRAIN, SPACE, PassClock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[PassClock]:
    """Let time pass by what networks do, and not otherwise."""
    clock = PassClock()
    monkeypatch.setattr(supernet_worker, "time", SimpleNamespace(monotonic=clock.monotonic))
    hook = nn.modules.module.register_module_forward_pre_hook(clock)
    yield clock
    hook.remove()


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Job]:
    """Describe a tiny run of a strategy."""
    (tmp_path / "space.yaml").write_text(SPACE)
    images = noise(NUM_TRAIN + NUM_SEARCH + 6, 8, num_classes=3)
    source = write_images(tmp_path / "images", *images, num_test=6)
    data = prepare_data(source, img_size=8, folder=tmp_path / DATA)
    assert data.sizes == {"train": NUM_TRAIN, "search": NUM_SEARCH, "test": 6}

    def make(strategy: str = "supernet", **more: Any) -> Job:
        settings = RunSettings(data=source, budget="1cpu-minute", strategy=strategy, **more)
        return make_job(settings, tmp_path, data)

    return make
