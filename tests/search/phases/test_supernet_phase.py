"""The supernet's phase on a virtual clock: its schedule, the limits of its calls, checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.faults.small_work import SMALL_WORK, Progress, SmallSupernetWorker
from search.cluster import WorkerLostError
from search.phases import saves, supernet
from search.run_folder.settings import RunSettings
from search.scheduling import START_SECONDS
from tests import local_run
from tests.local_run import LocalRun

MEASURED = 0.02


class Scene:
    """A run whose supernet's steps and checkpoints take what a test says, in seconds."""

    def __init__(
        self,
        folder: Path,
        patch: pytest.MonkeyPatch,
        *,
        step: float,
        save: float = 0.0,
        budget: int = 700,
    ) -> None:
        settings = RunSettings(
            data="digits",
            budget=f"{budget}cpu-seconds",
            sampler="random",
            shares={"supernet": 0.5},
        )
        self.run = LocalRun(folder / "run", settings, patch)
        clock = self.run.clock
        self.saves: list[float] = []  # when each began
        self.calls: list[tuple[str, float]] = []  # methods of workers, and their limits
        scene = self

        class Worker(SmallSupernetWorker):
            def train(self, steps: int) -> Progress:
                clock.work_for(step * steps)
                self.step += steps
                return Progress(step=self.step, loss=1.0)

            def save(self, goes_on: bool = False) -> None:
                scene.saves.append(clock.now)
                clock.work_for(save)
                super().save(goes_on)

        def call_all(workers: list[Any], method: str, *given: Any, **more: Any) -> list[Any]:
            self.calls.append((method, more.get("limit_seconds", 0.0)))
            return [getattr(worker, method)(*given) for worker in workers]

        self.run.work = replace(SMALL_WORK, supernet_worker=Worker)
        patch.setattr(supernet, "call_all", call_all)
        for module in (supernet, saves):
            patch.setattr(module, "time", SimpleNamespace(monotonic=clock))
        # This phase alone.
        patch.setattr(local_run, "search_with", supernet.measure_and_train_supernet)
        assert self.run.enter() == "done"

    def spent(self) -> float:
        """Return the seconds of the phase."""
        with self.run.record() as record:
            return record.spent(["supernet"])

    @property
    def steps(self) -> int:
        """The length that the schedule had in the end."""
        return int((self.run.folder / "supernet" / "step.txt").read_text())


@pytest.mark.parametrize("factor", [0.25, 1.0, 4.0])
def test_a_schedule_takes_its_share_however_far_off_the_measured_steps_were(
    factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, monkeypatch, step=factor * MEASURED, budget=150)
    share = 0.5 * 150
    assert scene.spent() == pytest.approx(share, rel=0.1)
    assert scene.steps == pytest.approx(share / (factor * MEASURED), rel=0.1)


def test_a_schedule_grows_no_longer_than_its_images_have_use_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small sets need steps, 20,000 of them, and not epochs."""
    scene = Scene(tmp_path, monkeypatch, step=0.25 * MEASURED)
    # Of the last call of two seconds the small work takes all steps.
    assert 20_000 <= scene.steps <= 20_000 + 2 / (0.25 * MEASURED)


def test_only_the_first_call_has_the_time_of_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes that make batches start in it, and kernels are compiled."""
    scene = Scene(tmp_path, monkeypatch, step=MEASURED)
    first, *others = [limit for method, limit in scene.calls if method == "train"]
    assert first >= START_SECONDS
    assert len(others) > 100
    # A call is of about two seconds, and a hang is known after a minute.
    assert all(60 <= limit < 120 for limit in others)


@pytest.mark.parametrize("save", [0.01, 0.5, 2.0, 5.0])
def test_checkpoints_cost_a_hundredth_of_the_time(
    save: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, monkeypatch, step=MEASURED, save=save)
    # The first tells what one costs, and the last is the end's.
    between = len(scene.saves) - 2
    assert between * save <= 0.01 * scene.spent()
    # And no more is lost with a worker than that needs.
    longest = max(b - a for a, b in zip(scene.saves, scene.saves[1:], strict=False))
    assert longest <= max(30.0, 100 * save) + save + 4.0


def test_workers_that_read_different_checkpoints_do_not_train_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node may see what others have written after a while only; or never, on a disk of its own.

    Gradients of different weights, for different architectures, would be added up.
    """
    read = iter([[40, 0], [40, 40]])
    called: list[str] = []

    def call_all(workers: list[Any], method: str, *given: Any, **more: Any) -> list[Any]:
        called.append(method)
        return next(read)

    monkeypatch.setattr(supernet, "call_all", call_all)
    session: Any = SimpleNamespace(record=None)
    training = supernet._Training(session)
    with pytest.raises(WorkerLostError, match="different checkpoints, of the steps 0, 40"):
        training._start([None, None], 100, lambda: None)
    assert training._start([None, None], 100, lambda: None) == 40
    assert called == ["start", "start"]
